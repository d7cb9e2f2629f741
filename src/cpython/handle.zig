//! Handle, ThreadSafeHandle and TimerHandle: one scheduled callback each.
//!
//! They extend asyncio's classes of the same name and share one layout, in the place of the slots of
//! their bases. Callback arguments lie in the object itself, where vectorcall can
//! take them; more than `args_inline_max` go into a tuple. Freed handles wait in a pool of their
//! loop, so the common case allocates nothing.
//!
//! Ownership: a handle holds its callback, arguments and context only while it is scheduled, and
//! lets them go when it has run, is cancelled, or the loop closes. So a handle that somebody keeps
//! closes no reference cycle, and handles need not be tracked by the garbage collector, which
//! otherwise costs more than running them: a queue's owner shows the collector what its handles
//! hold (`traverseQueued`). A handle that somebody else holds too, perhaps in a cycle that leads back to
//! the loop, must be known by itself: those that wait in a loop which does not run are tracked (`track`), and
//! only such a loop can be garbage. Handles registered for descriptors live long and are tracked. Free-threaded
//! builds track all.
//!
//! Only the loop's thread runs handles. Any thread may cancel them (`guard.zig`): what a run needs it has taken
//! into its own hands before the call.
//!
//! The context stays with a handle that somebody keeps (`get_context()`). As what is set in it can lead back to the
//! handle, such a handle is tracked from then on, unless nothing is set in it and nobody else can set anything.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const config = @import("config");
const py = @import("py.zig");
const args_ = @import("args.zig");
const contexts = @import("handle_context.zig");
const exclusion = @import("handle_exclusion.zig");
const guard = @import("guard.zig");
const heap_type = @import("heap_type.zig");
const loop_type = @import("loop_type.zig");
const State = @import("state.zig").State;

const Object = py.Object;
const LoopFields = loop_type.Fields;

/// Of a pointer or a slot.
const word = @sizeOf(usize);

/// The basic size of asyncio.TimerHandle: its slots behind the object header, before 3.12 with the
/// list of weak references. `layout.zig` checks it against the running interpreter.
pub const base_size = @sizeOf(c.PyObject) + word * @as(usize, if (config.py_minor >= 12) 9 else 10);

/// Where the base keeps the list of weak references: since 3.12 in front of the object, before in
/// its last slot. Looked at here because asking the interpreter costs a call per handle.
pub const weakrefs_offset: isize = if (config.py_minor < 12)
    @sizeOf(c.PyObject) + 7 * word
else if (config.gil_disabled) -2 * word else -4 * word;

/// The collector's links in front of an object, and since 3.12 the weak references in front of them.
const collector_header_size = if (config.py_minor < 12) 2 * word else 4 * word;

inline fn weakrefs(object: *Object) ?*anyopaque {
    const address: usize = @bitCast(@as(isize, @bitCast(@intFromPtr(object))) + weakrefs_offset);
    return @as(*?*anyopaque, @ptrFromInt(address)).*;
}

const args_inline_max = 3;

/// Begins right behind the object header, in the place of the base's slots, whose names all lead here:
/// the slots hold objects, as these fields do, and stand empty otherwise. A third less memory for each.
/// A program that goes around the names, by the base's own descriptors, can put any object there or
/// none: what lies in a slot is looked at with that in mind.
pub const Fields = extern struct {
    callback: ?*Object,
    context: ?*Object,
    /// Inline arguments, or in the first place a tuple of all if there are more than fit.
    args: [args_inline_max]?*Object,
    /// Debug mode: where the handle was made, and what it looked like before it was cancelled.
    source_traceback: ?*Object,
    repr: ?*Object,
    /// The rest of the larger base: its weak references before 3.12, and TimerHandle's own slots.
    base_rest: [base_size - @sizeOf(c.PyObject) - 7 * word]u8,
    /// A strong reference.
    loop_object: *Object,
    args_count: u32,
    cancelled: bool,
    kind: Kind,
    mark: exclusion.Mark,
    /// Registered for a descriptor: runs each time that is ready, until it is removed.
    lasting: bool,
    /// The garbage collector knows it.
    is_tracked: bool,
    /// The context is one that other handles hold too, see `handle_context.zig`.
    shares_context: bool,
    /// Somebody else may hold the context: it was given, or handed out.
    context_is_known: bool,

    inline fn held(self: *Fields) []?*Object {
        return self.args[0..if (self.args_count > args_inline_max) 1 else self.args_count];
    }

    inline fn loop(self: *const Fields) *LoopFields {
        return loop_type.of(self.loop_object);
    }
};

/// What a TimerHandle has besides; lies behind `Fields`.
pub const TimerFields = extern struct {
    handle: Fields,
    timer: core.Timer,
    when: f64,
    /// `call_at` keeps what it was given unless that was a float.
    when_object: ?*Object,
};

pub fn ofTimer(timer: *core.Timer) *Object {
    const fields: *TimerFields = @alignCast(@fieldParentPtr("timer", timer));
    return TimerLayout.objectOf(fields);
}

pub const TimerLayout = py.Layout(TimerFields, @sizeOf(c.PyObject));
pub const Layout = py.Layout(Fields, @sizeOf(c.PyObject));
pub const of = Layout.of;
pub const timerOf = TimerLayout.of;

comptime {
    // Nothing of ours but objects lies where the base has slots.
    std.debug.assert(Layout.offset + @offsetOf(Fields, "loop_object") >= base_size);
    std.debug.assert(Layout.offset + @offsetOf(Fields, "base_rest") == @sizeOf(c.PyObject) + 7 * word);
}

/// Whether the garbage collector has to know each handle by itself.
const tracked = config.gil_disabled;

pub const Kind = enum(u8) {
    soon,
    /// From `call_soon_threadsafe`, where asyncio has a type for those.
    threadsafe,
    timer,
};

pub const threadsafe_kind: Kind = if (exclusion.enabled) .threadsafe else .soon;

/// A new handle. `context` null means a copy of the current one.
pub inline fn create(loop: *LoopFields, comptime kind: Kind, parsed: args_.Callback) py.Error!*Object {
    const context: contexts.Copy = if (parsed.context) |given|
        .{ .context = py.newRef(given), .is_shared = false }
    else
        try contexts.copyCurrent(&loop.contexts);
    const recycled = if (comptime py.can_recycle) loop.handle_pool.take(kind) else null;
    const object = recycled orelse allocate(loop, kind) catch |err| {
        py.decref(context.context);
        return err;
    };
    if (comptime py.can_recycle) if (recycled != null) py.revive(object);
    const self = of(object);
    py.incref(loop.object());
    self.loop_object = loop.object();
    self.callback = py.newRef(parsed.callback);
    self.context = context.context;
    self.args = @splat(null);
    self.args_count = 0;
    self.cancelled = false;
    self.kind = kind;
    self.mark = .idle;
    self.lasting = false;
    self.is_tracked = false;
    self.shares_context = context.is_shared;
    self.context_is_known = parsed.context != null;
    self.source_traceback = null;
    self.repr = null;
    if (kind == .timer) {
        const timer = timerOf(object);
        timer.timer = .{};
        timer.when_object = null;
    }
    if (parsed.args.len <= args_inline_max) {
        for (parsed.args, 0..) |arg, i| self.args[i] = py.newRef(arg);
    } else {
        self.args[0] = tupleOf(parsed.args) catch |err| {
            py.decref(object);
            return err;
        };
    }
    self.args_count = @intCast(parsed.args.len);
    if (tracked or !loop.isRunning()) track(object);
    return object;
}

/// Makes it a handle that is run many times, until it is cancelled.
pub fn makeLasting(object: *Object) py.Error!void {
    try ownContext(of(object));
    of(object).lasting = true;
    track(object);
}

/// A handle of a queue that others hold, too.
pub fn trackIfShared(object: *Object) void {
    if (!py.isUnique(object)) track(object);
}

pub fn track(object: *Object) void {
    if (of(object).is_tracked) return;
    of(object).is_tracked = true;
    c.PyObject_GC_Track(object);
}

fn ownContext(self: *Fields) py.Error!void {
    if (!self.shares_context) return;
    try contexts.own(&self.context);
    self.shares_context = false;
}

/// A handle's memory comes from Python's allocator, but not by way of the garbage collector: each
/// object made there moves its next run closer, and a burst of handles would pay for many.
fn allocate(loop: *LoopFields, comptime kind: Kind) py.Error!*Object {
    const t = switch (kind) {
        .soon => loop.state.handle_type,
        .threadsafe => loop.state.threadsafe_handle_type,
        .timer => loop.state.timer_handle_type,
    };
    const object = if (comptime py.can_recycle) object: {
        const size = collector_header_size + switch (kind) {
            .soon, .threadsafe => Layout.size,
            .timer => TimerLayout.size,
        };
        const memory: [*]u8 = @ptrCast(c.PyObject_Malloc(size) orelse return py.noMemory());
        @memset(memory[0..collector_header_size], 0);
        break :object c.PyObject_Init(@ptrCast(@alignCast(memory + collector_header_size)), t);
    } else try py.check(c._PyObject_GC_New(t));
    @memset(&of(object).base_rest, 0);
    return object;
}

pub fn free(object: *Object) void {
    const t: *Object = @ptrCast(py.typeOf(object));
    if (comptime py.can_recycle) {
        const bytes: [*]u8 = @ptrCast(object);
        c.PyObject_Free(bytes - collector_header_size);
    } else {
        c.PyObject_GC_Del(object);
    }
    py.decref(t);
}

fn tupleOf(items: []const *Object) py.Error!*Object {
    const tuple = try py.check(c.PyTuple_New(@intCast(items.len)));
    for (items, 0..) |item, i| _ = c.PyTuple_SetItem(tuple, @intCast(i), py.newRef(item));
    return tuple;
}

/// Calls the callback in its context. The caller holds a reference to the handle, and calls
/// `afterCall` when it has looked at what came of it.
pub inline fn call(object: *Object) py.Error!void {
    const self = of(object);
    if (self.shares_context) {
        try contexts.take(&self.loop().contexts, &self.context);
        self.shares_context = false;
    }
    const callback = self.callback orelse return;
    // cancel() from inside the callback empties the fields: keep what is being called.
    py.incref(callback);
    defer py.decref(callback);
    return py.inContext(self.context orelse py.none(), callEntered, .{ self, callback });
}

/// As `call` by a `Handle._run` of the program's own. What it raises leaves the loop, as in asyncio.
pub fn callBy(object: *Object, run: *Object) py.Error!void {
    @branchHint(.cold);
    const self = of(object);
    if (comptime config.gil_disabled) if (@atomicLoad(bool, &self.cancelled, .seq_cst)) return;
    if (self.callback == null) return;
    const held = py.newRef(run);
    defer py.decref(held);
    py.decref(try py.call(held, .{object}));
}

inline fn callEntered(self: *Fields, callback: *Object) py.Error!void {
    const result = if (self.args_count == 0)
        callOutside(self.loop_object, c.PyObject_CallNoArgs, .{callback})
    else
        callWithArgs(self, callback);
    py.decref(try py.check(result));
}

/// Other threads get at the loop while a callback runs.
inline fn callOutside(loop_object: *Object, comptime function: anytype, arguments: anytype) ?*Object {
    if (comptime !guard.enabled) return @call(.auto, function, arguments);
    const left = guard.leave(loop_object);
    defer left.comeBack(loop_object);
    return @call(.auto, function, arguments);
}

fn callWithArgs(self: *Fields, callback: *Object) ?*Object {
    const count = self.args_count;
    if (count > args_inline_max) {
        const tuple = py.newRef(self.args[0] orelse py.none());
        defer py.decref(tuple);
        if (!py.isExact(tuple, &c.PyTuple_Type)) return py.returned(py.raise(c.PyExc_TypeError, "a handle's arguments have been replaced"));
        return callOutside(self.loop_object, c.PyObject_Call, .{ callback, tuple, null });
    }
    var stack: [args_inline_max + 1]?*Object = undefined;
    for (self.args[0..count], 1..) |arg, i| stack[i] = py.newRef(arg orelse py.none());
    defer for (stack[1..][0..count]) |arg| py.decref(arg.?);
    return callOutside(self.loop_object, c.PyObject_Vectorcall, .{ callback, @as([*]const ?*Object, stack[1..].ptr), count | py.arguments_offset, null });
}

pub inline fn afterCall(object: *Object) void {
    if (of(object).lasting) return;
    if (py.isUnique(object)) finish(object) else finishKept(object);
}

/// The handle will not run again: lets go of all it holds. Re-entrant: each field is empty before
/// its reference goes.
pub inline fn finish(object: *Object) void {
    const self = of(object);
    letCallbackGo(self);
    self.shares_context = false;
    py.clear(&self.context);
}

inline fn letCallbackGo(self: *Fields) void {
    const held = self.held();
    self.args_count = 0;
    py.clear(&self.callback);
    for (held) |*arg| py.clear(arg);
}

/// As `finish` for a handle that somebody keeps and may ask for its context. The caller holds a reference.
fn finishKept(object: *Object) void {
    const self = of(object);
    letCallbackGo(self);
    if (self.is_tracked) return;
    const context = self.context orelse return;
    if (!self.shares_context and (self.context_is_known or !contexts.isEmpty(self.loop().state, context))) track(object);
}

/// The loop's thread, around a run of the handle.
pub inline fn beginRun(object: *Object) void {
    if (comptime exclusion.enabled) if (of(object).kind == .threadsafe) exclusion.begin(&of(object).mark);
}

pub inline fn endRun(object: *Object) void {
    if (comptime exclusion.enabled) if (of(object).kind == .threadsafe) exclusion.end(&of(object).mark);
}

fn waitUntilRun(self: *Fields) py.Error!void {
    if (self.loop().isForeignThread()) try exclusion.wait(&self.mark);
}

fn cancel(object: *Object) py.Error!*Object {
    const self = of(object);
    if (self.cancelled) return py.newNone();
    self.cancelled = true;
    if (self.loop().debug and self.repr == null) {
        // A callback that cannot be shown raises here, as in asyncio, and is cancelled all the same.
        const shown = c.PyObject_Repr(object) orelse {
            const saved: py.Saved = .save();
            letGo(object);
            saved.restore();
            return error.Python;
        };
        py.replace(&self.repr, shown);
    }
    letGo(object);
    return py.newNone();
}

fn cancelThreadsafe(object: *Object) py.Error!*Object {
    try waitUntilRun(of(object));
    return cancel(object);
}

fn getCancelledThreadsafe(object: *Object) py.Error!*Object {
    try waitUntilRun(of(object));
    return getCancelled(object);
}

/// What cancelling does: a timer leaves the heap, whose reference is dropped last.
fn letGo(object: *Object) void {
    const self = of(object);
    const in_heap = self.kind == .timer and timerOf(object).timer.isSet();
    // The heap lets go before anything else can run.
    if (in_heap) self.loop().core.timers.remove(self.loop().core.gpa, &timerOf(object).timer);
    finishKept(object);
    if (in_heap) py.decref(object);
}

fn dealloc(object: *Object) callconv(.c) void {
    const self = of(object);
    if (self.is_tracked) c.PyObject_GC_UnTrack(object);
    if (weakrefs(object) != null) c.PyObject_ClearWeakRefs(object);
    finish(object);
    py.clear(&self.source_traceback);
    py.clear(&self.repr);
    const loop = self.loop();
    const kind = self.kind;
    if (kind == .timer) py.clear(&timerOf(object).when_object);
    const recycled = if (comptime py.can_recycle) loop.handle_pool.put(object) else false;
    if (!recycled) free(object);
    // Last: this can be the loop's end, which empties the pool that the handle now waits in.
    py.decref(loop.object());
}

fn traverseFields(object: *Object, visitor: py.Visitor) error{Stop}!void {
    const self = of(object);
    try visitor.object(self.loop_object);
    try visitor.object(self.callback);
    try visitor.object(self.context);
    for (self.held()) |arg| try visitor.object(arg);
    try visitor.object(self.source_traceback);
    try visitor.object(self.repr);
}

/// For the owner of a queue: what one of its handles holds. An untracked handle that only the queue refers to
/// is part of the queue's owner; one that others keep counts as theirs until it has run, or the loop stops.
pub fn traverseQueued(object: *Object, visitor: py.Visitor) error{Stop}!void {
    if (of(object).is_tracked) return visitor.object(object);
    if (!py.isUnique(object)) return;
    try visitor.object(@ptrCast(py.typeOf(object)));
    try traverseFields(object, visitor);
}

fn clearFields(object: *Object) callconv(.c) c_int {
    finish(object);
    const self = of(object);
    py.clear(&self.source_traceback);
    py.clear(&self.repr);
    return 0;
}

fn orNone(reference: ?*Object) *Object {
    return py.newRef(reference orelse py.none());
}

fn getCallback(object: *Object) py.Error!*Object {
    return orNone(of(object).callback);
}

/// A tool's, for one run.
fn setCallback(object: *Object, value: ?*Object) py.Error!void {
    const given = args_.given(value);
    py.replace(&of(object).callback, if (given) |callback| py.newRef(callback) else null);
}

fn getArgs(object: *Object) py.Error!*Object {
    const self = of(object);
    if (self.callback == null) return py.newNone();
    if (self.args_count > args_inline_max) return orNone(self.args[0]);
    var items: [args_inline_max]*Object = undefined;
    for (self.args[0..self.args_count], 0..) |arg, i| items[i] = arg orelse py.none();
    return tupleOf(items[0..self.args_count]);
}

fn getContext(object: *Object) py.Error!*Object {
    const self = of(object);
    try ownContext(self);
    self.context_is_known = true;
    // A handle that still waits is shown by its queue's owner, and looked at again when it has run.
    if (self.callback == null) track(object);
    return orNone(self.context);
}

fn getLoop(object: *Object) py.Error!*Object {
    return py.newRef(of(object).loop_object);
}

fn getCancelled(object: *Object) py.Error!*Object {
    return py.newBool(of(object).cancelled);
}

fn getSourceTraceback(object: *Object) py.Error!*Object {
    return orNone(of(object).source_traceback);
}

fn setSourceTraceback(object: *Object, value: ?*Object) py.Error!void {
    const kept = if (value) |v| (if (v == py.none()) null else py.newRef(v)) else null;
    py.replace(&of(object).source_traceback, kept);
}

fn getRepr(object: *Object) py.Error!*Object {
    return orNone(of(object).repr);
}

fn getScheduled(object: *Object) py.Error!*Object {
    return py.newBool(timerOf(object).timer.isSet());
}

fn getWhen(object: *Object) py.Error!*Object {
    const self = timerOf(object);
    if (self.when_object) |when| return py.newRef(when);
    return py.newFloat(self.when);
}

const context_method = py.Method.noArgs("get_context", getContext, "get_context($self)\n--\n\nasyncio.Handle.get_context().");
const cancelled_method = py.Method.noArgs("cancelled", getCancelled, "cancelled($self)\n--\n\nasyncio.Handle.cancelled().");

const methods = [_]c.PyMethodDef{
    py.Method.noArgs("cancel", cancel, "cancel($self)\n--\n\nasyncio.Handle.cancel(): the callback will not run."),
    cancelled_method,
    context_method,
    .{},
};

const threadsafe_methods = [_]c.PyMethodDef{
    py.Method.noArgs("cancel", cancelThreadsafe, "cancel($self)\n--\n\nasyncio.Handle.cancel(), from any thread: the callback will not run, or has run."),
    py.Method.noArgs("cancelled", getCancelledThreadsafe, "cancelled($self)\n--\n\nasyncio.Handle.cancelled(), from any thread."),
    context_method,
    .{},
};

const timer_methods = [_]c.PyMethodDef{
    py.Method.noArgs("cancel", cancel, "cancel($self)\n--\n\nasyncio.TimerHandle.cancel(): the callback will not run."),
    cancelled_method,
    context_method,
    py.Method.noArgs("when", getWhen, "when($self)\n--\n\nasyncio.TimerHandle.when(): the time it is due, in seconds of loop.time()."),
    .{},
};

const shared_properties = [_]c.PyGetSetDef{
    py.property("_callback", getCallback, setCallback),
    py.getter("_args", getArgs),
    py.getter("_context", getContext),
    py.getter("_loop", getLoop),
    py.getter("_cancelled", getCancelled),
    py.property("_source_traceback", getSourceTraceback, setSourceTraceback),
    py.getter("_repr", getRepr),
};

const properties = shared_properties ++ [_]c.PyGetSetDef{.{}};
const timer_properties = shared_properties ++ [_]c.PyGetSetDef{
    py.getter("_when", getWhen),
    py.getter("_scheduled", getScheduled),
    .{},
};

fn loopObjectOf(object: *Object) ?*Object {
    return of(object).loop_object;
}

/// A handle that goes is in no queue: it only lets go of what it holds.
const guarded: guard.Guard = .{ .loop_of = loopObjectOf, .open = &.{ "tp_dealloc", "tp_clear" } };

fn specOf(
    comptime name: [:0]const u8,
    comptime size: usize,
    comptime method_table: []const c.PyMethodDef,
    comptime property_table: []const c.PyGetSetDef,
) c.PyType_Spec {
    return heap_type.final(name, size, guarded, .{
        .tp_dealloc = &dealloc,
        .tp_traverse = py.traverse(traverseFields),
        .tp_clear = &clearFields,
        .tp_methods = method_table.ptr,
        .tp_getset = property_table.ptr,
    });
}

pub const spec = specOf("zloop._engine.Handle", Layout.size, &methods, &properties);
pub const threadsafe_spec = specOf("zloop._engine.ThreadSafeHandle", Layout.size, &threadsafe_methods, &properties);
pub const timer_spec = specOf("zloop._engine.TimerHandle", TimerLayout.size, &timer_methods, &timer_properties);
