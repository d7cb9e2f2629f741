//! Runs of a loop inside a callback of its own, which nest_asyncio and nest_asyncio2 allow; see `_running.py` for
//! what Python keeps of the outer run.
//!
//! A context cannot be entered twice. What would run in one that is entered further up the stack waits until the
//! inner run is over (`deferIfEntered`), then comes before what is queued. A transport whose work waits is not watched
//! meanwhile, so nothing is read that could not be delivered, and no poll reports it again and again.
//!
//! Ownership: `deferred` holds one reference to each, as the ready queue does. Loop's thread.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const handle = @import("handle.zig");
const loop_type = @import("loop_type.zig");
const stream_write = @import("stream_write.zig");
const Work = @import("work.zig").Work;

const Object = py.Object;
const LoopFields = loop_type.Fields;
const gpa = loop_type.gpa;

/// What a loop keeps of its runs.
pub const Runs = struct {
    /// How many are on the stack.
    depth: u32 = 0,
    deferred: std.ArrayList(Work) = .empty,
};

/// What belongs to the run outside of the one that begins.
pub const Outer = struct {
    in_callback: bool,
    current_handle: ?*Object,
    deferred_count: usize,

    pub fn begin(loop: *LoopFields) py.Error!Outer {
        // What the callback outside has written leaves before anything waits.
        if (loop.runs.depth > 0 and loop.dirty.len > 0) try stream_write.flushDirty(loop);
        const outer: Outer = .{
            .in_callback = loop.in_callback,
            .current_handle = loop.current_handle,
            .deferred_count = loop.runs.deferred.items.len,
        };
        loop.in_callback = false;
        loop.current_handle = null;
        loop.runs.depth += 1;
        return outer;
    }

    /// An exception that is set stays set.
    pub fn end(outer: Outer, loop: *LoopFields) void {
        loop.runs.depth -= 1;
        loop.in_callback = outer.in_callback;
        py.replace(&loop.current_handle, outer.current_handle);
        if (loop.runs.deferred.items.len > outer.deferred_count) queueAgain(loop, outer.deferred_count);
    }
};

fn queueAgain(loop: *LoopFields, from: usize) void {
    const saved: py.Saved = .save();
    defer saved.restore();
    const deferred = &loop.runs.deferred;
    // Out of memory they wait for the end of the next run.
    loop.core.ready.ensureUnusedCapacity(gpa, deferred.items.len - from) catch return;
    while (deferred.items.len > from) {
        const work = deferred.pop().?;
        loop.core.ready.pushFrontAssumeCapacity(work);
        if (work.kind() == .ready and !loop.closed) watchAgain(loop, work) catch c.PyErr_WriteUnraisable(work.object());
    }
}

fn watchAgain(loop: *LoopFields, work: Work) py.Error!void {
    const source = work.source();
    const wanted = source.vtable.wanted orelse return;
    const interest = wanted(source);
    if (!interest.isNone()) try source.arm(loop, interest);
}

/// Takes work over whose context is entered further up the stack; false if it can run.
pub fn deferIfEntered(loop: *LoopFields, work: Work) (py.Error || std.mem.Allocator.Error)!bool {
    @branchHint(.cold);
    if (!try isEntered(work)) return false;
    const deferred = &loop.runs.deferred;
    for (deferred.items) |other| if (other.bits == work.bits and isReported(work)) {
        py.decref(work.object());
        return true;
    };
    try deferred.append(gpa, work);
    if (work.kind() == .ready and work.source().vtable.wanted != null) work.source().disarm(loop, .none);
    return true;
}

/// Whether each poll queues it anew, as long as the descriptor is ready.
fn isReported(work: Work) bool {
    return switch (work.kind()) {
        .handle => handle.of(work.handle()).lasting,
        .ready => false,
        .step => work.source().vtable.is_waiter,
    };
}

fn isEntered(work: Work) py.Error!bool {
    const contexts: [2]?*Object = switch (work.kind()) {
        .handle => .{ handle.of(work.handle()).context, null },
        .ready, .step => work.source().vtable.contexts(work.source()),
    };
    for (contexts) |found| if (found) |context| {
        if (py.isExact(context, &c.PyContext_Type) and try cannotEnter(context)) return true;
    };
    return false;
}

/// There is no other way to ask.
fn cannotEnter(context: *Object) py.Error!bool {
    if (c.PyContext_Enter(context) < 0) {
        if (!py.matches(c.PyExc_RuntimeError)) return error.Python;
        c.PyErr_Clear();
        return true;
    }
    try py.checkInt(c.PyContext_Exit(context));
    return false;
}

pub fn release(loop: *LoopFields) void {
    while (loop.runs.deferred.pop()) |work| {
        switch (work.kind()) {
            .handle => handle.finish(work.handle()),
            .ready => work.source().watch.pending = .none,
            .step => {},
        }
        py.decref(work.object());
    }
}
