//! The native base of `zloop.Loop`: its fields, its part as the core loop's host, and the type.
//!
//! The Python class puts this type in front of asyncio.SelectorEventLoop. What asyncio's code
//! writes to `self._closed`, `_stopping`, `_debug`, `_thread_id` or `_current_handle` arrives here
//! through properties of the same names, so both sides always agree.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const config = @import("config");
const py = @import("py.zig");
const raise = @import("raise.zig");
const datagram_receive = @import("datagram_receive.zig");
const debug = @import("debug.zig");
const eval_breaker = @import("eval_breaker.zig");
const guard = @import("guard.zig");
const handle = @import("handle.zig");
const handle_context = @import("handle_context.zig");
const handle_pool = @import("handle_pool.zig");
const heap_type = @import("heap_type.zig");
const loop_nested = @import("loop_nested.zig");
const loop_patched = @import("loop_patched.zig");
const loop_tasks = @import("loop_tasks.zig");
const loop_time = @import("loop_time.zig");
const stream_write = @import("stream_write.zig");
const Source = @import("source.zig").Source;
const State = @import("state.zig").State;
const Work = @import("work.zig").Work;

const Object = py.Object;

/// Raw malloc: the core's containers may grow while other threads run Python.
pub const gpa = std.heap.c_allocator;

/// Plain reads land here and leave as bytes objects of their exact size.
pub const read_buffer_size = 256 * 1024;

pub const Fields = struct {
    core: core.Loop(Fields),
    /// A strong reference, let go last: it owns `state`, which the loop and all that holds the loop use.
    module: *Object,
    state: *State,
    debug: bool = false,
    closed: bool = false,
    stopping: bool = false,
    clock: loop_time.Clock = .{},
    patched: loop_patched.Patched = .{},
    runs: loop_nested.Runs = .{},
    /// The program has put its own function in the place of `loop._selector.select`.
    polls_by_selector: bool = false,
    /// A callback is running: writes may wait for the end of the turn.
    in_callback: bool = false,
    /// The program wants no write to wait.
    send_at_once: bool = false,
    /// The thread inside run_forever, or 0.
    thread_id: c_ulong = 0,
    thread_state: ?*anyopaque = null,
    /// What the interpreter wants of that thread.
    requests: eval_breaker.Requests = .{},
    current_handle: ?*Object = null,
    task_factory: ?*Object = null,
    /// A `select.select()` that somebody has put in the place of the real one, to run other things meanwhile
    /// (gevent, eventlet): the loop waits by it.
    select: ?*Object = null,
    task_keywords: loop_tasks.Keywords = .{},
    contexts: handle_context.Shared,
    handle_pool: handle_pool.Pool = .{},
    /// Transports with bytes written during this turn, to be sent by its end.
    /// Each element holds a reference.
    dirty: core.Fifo(*Source) = .empty,
    /// When the first of them was written to.
    dirty_since_ns: u64 = 0,
    write_pool: stream_write.Queue.Pool = .{},
    /// Allocated by the first read, given back when the loop closes.
    read_buffer: []u8 = &.{},
    /// Plaintext on its way from OpenSSL into an object. As the read buffer.
    tls_scratch: []u8 = &.{},
    tls_pool: @import("tls_bio.zig").Pool = .{},
    tls_burst: @import("tls_burst.zig").Burst = .{},
    /// Accepted TLS connections get the direct engine.
    tls_native: bool = false,
    /// What datagram sockets share; made by the first that receives.
    datagrams: ?*datagram_receive.Shared = null,

    pub inline fn object(self: *Fields) *Object {
        return Layout.objectOf(self);
    }

    // The host's part: see core/loop.zig.

    pub const Error = py.Error || core.reactor.OpenError || std.mem.Allocator.Error || error{Unexpected};
    pub const Work = @import("work.zig").Work;

    pub fn workOfTimer(_: *Fields, timer: *core.Timer) Self.Work {
        return .ofHandle(handle.ofTimer(timer));
    }

    pub fn queueWatch(self: *Fields, watch: *core.Watch) void {
        const source: *Source = .ofWatch(watch);
        if (source.vtable.queue) |queue| return queue(self, source);
        py.incref(source.object);
        self.core.ready.pushAssumeCapacity(.ofSource(source, .ready));
    }

    pub inline fn idle(self: *Fields) void {
        self.contexts.drop();
        self.handle_pool.idle(self.core.polled_ns);
    }

    pub inline fn patienceNs(self: *const Fields) ?u64 {
        return self.handle_pool.patienceNs();
    }

    pub inline fn waitElsewhere(self: *Fields, fd: core.sys.fd_t, wait_ns: ?u64) Error!?u64 {
        const function = self.select orelse return wait_ns;
        try waitBy(function, fd, wait_ns);
        return 0;
    }

    /// `select.select([fd], [], [], timeout)`. Closing the loop is refused while it runs, so the reactor stays.
    fn waitBy(given: *Object, fd: core.sys.fd_t, wait_ns: ?u64) py.Error!void {
        @branchHint(.cold);
        const function = py.newRef(given);
        defer py.decref(function);
        const number = try py.newInt(fd);
        defer py.decref(number);
        const readers = try py.newTuple(.{number});
        defer py.decref(readers);
        const nothing = try py.newTuple(.{});
        defer py.decref(nothing);
        const timeout = if (wait_ns) |ns| try py.newFloat(core.clock.toSeconds(ns)) else py.newNone();
        defer py.decref(timeout);
        py.decref(try py.call(function, .{ readers, nothing, nothing, timeout }));
    }

    pub fn beforeWait(self: *Fields) void {
        self.thread_state = c.PyEval_SaveThread();
    }

    pub fn afterWait(self: *Fields) void {
        c.PyEval_RestoreThread(self.thread_state.?);
        self.handle_pool.waited();
    }

    pub inline fn timeNs(self: *Fields) py.Error!u64 {
        if (loop_time.isOverridden(self)) return loop_time.nowNs(self);
        return core.clock.nowNs();
    }

    pub inline fn isStopping(self: *const Fields) bool {
        return self.stopping;
    }

    /// Python's own signal handlers run here; what they raise ends the run. Callbacks in Python look at signals by
    /// themselves, those in C do not: without this a signal that arrives during one would be seen by nobody.
    pub inline fn checkSignals(self: *Fields) Error!void {
        try self.requests.serveSignals();
    }

    pub inline fn pollsItself(self: *const Fields) bool {
        return self.polls_by_selector;
    }

    /// By the program's `select`, which calls `_Watched.select`, and so `pollMethod`, as asyncio calls its selector's.
    pub fn pollBy(self: *Fields, timeout_ns: ?u64) Error!void {
        @branchHint(.cold);
        const selector = try py.getAttr(self.object(), self.state.name(._selector));
        defer py.decref(selector);
        const timeout = if (timeout_ns) |ns| try py.newFloat(core.clock.toSeconds(ns)) else py.newNone();
        defer py.decref(timeout);
        // What it found is queued already.
        py.decref(try py.callMethod(selector, self.state.name(.select), .{timeout}));
    }

    pub inline fn run(self: *Fields, work: Self.Work) Error!void {
        if (self.runs.depth > 1 and try loop_nested.deferIfEntered(self, work)) return;
        const ran = if (self.debug) debug.run(self, work) else self.runPlain(work);
        const result = if (ran) |_| self.requests.serve() else |err| err;
        if (self.dirty.len > 0) {
            // What was written leaves also when the callback ends the run.
            result catch |err| {
                const left: py.Saved = .save();
                stream_write.flushDirty(self) catch c.PyErr_WriteUnraisable(null);
                left.restore();
                return err;
            };
            if (stream_write.isFlushDue(self)) return stream_write.flushDirty(self);
        }
        return result;
    }

    pub inline fn turnDone(self: *Fields) Error!void {
        if (self.dirty.len > 0) return stream_write.flushDirty(self);
    }

    pub inline fn runPlain(self: *Fields, work: Self.Work) py.Error!void {
        defer py.decref(work.object());
        // A callback can switch debug mode on and off.
        const debugging = self.debug;
        self.in_callback = true;
        defer self.in_callback = false;
        switch (work.kind()) {
            .handle => {
                defer if (!debugging) handle.afterCall(work.handle());
                handle.beginRun(work.handle());
                defer handle.endRun(work.handle());
                if (self.patched.handle_run) |run_| return handle.callBy(work.handle(), run_);
                handle.call(work.handle()) catch return self.callbackFailed(work.handle());
            },
            .ready => {
                const source = work.source();
                const readiness = source.watch.pending;
                source.watch.pending = .none;
                source.vtable.ready(source, readiness) catch return self.sourceFailed(source);
            },
            .step => {
                const source = work.source();
                source.vtable.step(source) catch return self.sourceFailed(source);
            },
        }
    }

    const Self = @This();

    /// Reports the exception that is set as asyncio's Handle does; those that must leave the loop
    /// come back as the error.
    pub fn callbackFailed(self: *Fields, failed: *Object) py.Error!void {
        @branchHint(.cold);
        if (py.isExit()) return error.Python;
        const exception = py.takeException();
        defer py.decref(exception);
        py.decref(try py.callMethod(self.object(), self.state.name(._callback_failed), .{ failed, exception }));
    }

    /// As `callbackFailed` for what no callback raised: a logger, a future's callback.
    fn sourceFailed(self: *Fields, source: *Source) py.Error!void {
        @branchHint(.cold);
        if (py.isExit()) return error.Python;
        const pending: py.Saved = .save();
        const nothing = try py.newTuple(.{});
        defer py.decref(nothing);
        pending.restore();
        return self.methodFailed(source.object, nothing, source.vtable.contexts(source)[0] orelse py.none());
    }

    /// As `callbackFailed` for a method of a protocol that the loop called by itself, in `context`, which has been left;
    /// None for the current one.
    pub fn methodFailed(self: *Fields, method: *Object, arguments: *Object, context: *Object) py.Error!void {
        @branchHint(.cold);
        if (py.isExit()) return error.Python;
        const exception = py.takeException();
        defer py.decref(exception);
        py.decref(try py.callMethod(self.object(), self.state.name(._method_failed), .{ method, arguments, exception, context }));
    }

    pub inline fn isRunning(self: *const Fields) bool {
        return @atomicLoad(c_ulong, &self.thread_id, .monotonic) != 0;
    }

    /// Whether the loop runs in another thread than this.
    pub fn isForeignThread(self: *const Fields) bool {
        const id = @atomicLoad(c_ulong, &self.thread_id, .monotonic);
        return id != 0 and id != c.PyThread_get_thread_ident();
    }

    /// What may be queued only, never run, a forked child's copy takes as asyncio's does.
    pub fn checkClosed(self: *const Fields) py.Error!void {
        if (self.closed) return raise.fromCore(error.Closed);
    }

    /// Before anything that runs the loop or touches the kernel for it.
    pub fn checkUsable(self: *const Fields) py.Error!void {
        try self.checkClosed();
        if (self.core.isParents()) return raise.fromCore(error.Forked);
    }

    pub fn readBuffer(self: *Fields) py.Error![]u8 {
        if (self.read_buffer.len == 0) {
            self.read_buffer = gpa.alloc(u8, read_buffer_size) catch return py.noMemory();
        }
        return self.read_buffer;
    }

    /// The read buffer, out of reach of any turn that runs before `putReadBuffer`: a program that runs
    /// the loop inside a callback must not find somebody's bytes overwritten.
    pub fn takeReadBuffer(self: *Fields) py.Error![]u8 {
        const buffer = try self.readBuffer();
        self.read_buffer = &.{};
        return buffer;
    }

    pub fn putReadBuffer(self: *Fields, buffer: []u8) void {
        if (self.read_buffer.len == 0 and !self.closed) self.read_buffer = buffer else gpa.free(buffer);
    }

    pub fn takeScratch(self: *Fields) py.Error![]u8 {
        const buffer = self.tls_scratch;
        self.tls_scratch = &.{};
        if (buffer.len > 0) return buffer;
        return gpa.alloc(u8, @import("tls_read.zig").scratch_size) catch return py.noMemory();
    }

    pub fn putScratch(self: *Fields, buffer: []u8) void {
        if (self.tls_scratch.len == 0 and !self.closed) self.tls_scratch = buffer else gpa.free(buffer);
    }

    fn freeBuffers(self: *Fields) void {
        gpa.free(self.read_buffer);
        self.read_buffer = &.{};
        gpa.free(self.tls_scratch);
        self.tls_scratch = &.{};
        self.tls_pool.deinit();
        if (self.datagrams) |shared| {
            self.datagrams = null;
            shared.destroy();
        }
    }

    /// Lets go of what a run keeps at hand.
    fn dropRunState(self: *Fields) void {
        self.contexts.drop();
        self.task_keywords.drop();
    }

    /// Empties queues, heap and table. Releasing can run Python code that queues more, so it goes
    /// on until nothing is left; a closed loop takes nothing new.
    fn release(self: *Fields) void {
        // In a child no thread is left that could hold the lock.
        if (self.core.isForked()) self.core.inbox.mutex = .unlocked;
        // Other threads may be past their look at `closed`.
        if (self.closed) self.core.inbox.close();
        self.core.inbox.drainInto(gpa, &self.core.ready) catch {};
        while (self.core.ready.pop()) |work| {
            switch (work.kind()) {
                .handle => handle.finish(work.handle()),
                .ready => work.source().watch.pending = .none,
                .step => {},
            }
            py.decref(work.object());
        }
        while (self.core.timers.popDue(gpa, std.math.maxInt(u64))) |timer| {
            const object_ = handle.ofTimer(timer);
            handle.finish(object_);
            py.decref(object_);
        }
        loop_nested.release(self);
        while (self.dirty.pop()) |source| py.decref(source.object);
        // Releasing can close the reactor, by a finalizer: look each time.
        while (true) {
            const reactor = if (self.core.isForked()) null else if (self.core.reactor) |*open| open else null;
            var silent: SilentReactor = .{};
            const watch = (if (reactor) |own| self.core.watches.popAny(own) else self.core.watches.popAny(&silent)) orelse break;
            py.decref(Source.ofWatch(watch).object);
        }
        py.clear(&self.current_handle);
        self.dropRunState();
    }

    /// For a forked child's copy: the kernel object is the parent's too and stays as it is.
    const SilentReactor = struct {
        pub fn set(_: *SilentReactor, _: anytype, _: core.reactor.Interest, _: core.reactor.Interest) core.reactor.SetError!void {}
    };
};

pub const Layout = py.Layout(Fields, @sizeOf(c.PyObject));
pub const of = Layout.of;

fn new(t: *c.PyTypeObject, _: *Object, _: ?*Object) callconv(.c) ?*Object {
    const module = c.PyType_GetModuleByDef(t, &@import("module.zig").definition) orelse return null;
    const object = c.PyType_GenericAlloc(t, 0) orelse return null;
    const state: *State = .of(module);
    of(object).* = .{
        .core = .init(gpa),
        .module = py.newRef(module),
        .state = state,
        .contexts = .{ .enabled = state.shares_contexts },
    };
    lookAtProgram(of(object)) catch {
        py.decref(object);
        return null;
    };
    return object;
}

/// What the program has put in the place of asyncio's and our own functions.
fn lookAtProgram(self: *Fields) py.Error!void {
    try loop_time.lookAtClass(self);
    try loop_patched.look(self);
}

fn dealloc(object: *Object) callconv(.c) void {
    const self = of(object);
    const t: *Object = @ptrCast(py.typeOf(object));
    c.PyObject_GC_UnTrack(object);
    self.closed = true;
    self.release();
    py.clear(&self.task_factory);
    py.clear(&self.select);
    py.clear(&self.patched.handle_run);
    self.core.deinit();
    self.dirty.deinit(gpa);
    self.runs.deferred.deinit(gpa);
    self.write_pool.deinit(gpa);
    self.freeBuffers();
    self.handle_pool.empty();
    const module = self.module;
    c.PyObject_GC_Del(object);
    py.decref(t);
    py.decref(module);
}

/// A longer queue of a running loop, which cannot be garbage, is not shown to the garbage collector, whose every
/// run would go through it.
const traverse_running_max = 1024;
/// So much of the queue of a loop that does not run is shown: each end of a run looks at it. A loop dropped unclosed
/// with more pending counts as in use and is never found.
const traverse_count_max = 64 * 1024;

fn traverseFields(object: *Object, visitor: py.Visitor) error{Stop}!void {
    const self = of(object);
    try visitor.object(self.module);
    const count_max: usize = if (self.isRunning()) traverse_running_max else traverse_count_max;
    if (self.core.ready.len <= count_max) for (0..self.core.ready.len) |i| {
        const work = self.core.ready.at(i);
        if (work.kind() == .handle) try handle.traverseQueued(work.handle(), visitor) else try visitor.object(work.object());
    };
    // The collector runs while the world stands still: nobody holds the inbox's lock.
    const posted = self.core.inbox.items.items;
    if (posted.len <= count_max) for (posted) |work| try handle.traverseQueued(work.handle(), visitor);
    for (self.runs.deferred.items) |work| {
        if (work.kind() == .handle) try handle.traverseQueued(work.handle(), visitor) else try visitor.object(work.object());
    }
    const timers = self.core.timers.entries.items;
    if (timers.len <= count_max) for (timers) |entry| try handle.traverseQueued(handle.ofTimer(entry.timer), visitor);
    for (self.core.watches.slots.items) |slot| {
        if (slot) |watch| try visitor.object(Source.ofWatch(watch).object);
    }
    for (0..self.dirty.len) |i| try visitor.object(self.dirty.at(i).object);
    try visitor.object(self.current_handle);
    try visitor.object(self.task_factory);
    try visitor.object(self.select);
    try visitor.object(self.patched.handle_run);
    try visitor.object(self.task_keywords.plain);
    try visitor.object(self.task_keywords.eager);
    try visitor.object(self.contexts.latest);
    try visitor.object(self.contexts.running);
}

fn clearFields(object: *Object) callconv(.c) c_int {
    of(object).release();
    py.clear(&of(object).task_factory);
    py.clear(&of(object).select);
    py.clear(&of(object).patched.handle_run);
    return 0;
}

fn runOnce(object: *Object) py.Error!*Object {
    const self = of(object);
    try self.checkUsable();
    try lookAtProgram(self);
    const outer: loop_nested.Outer = try .begin(self);
    defer outer.end(self);
    self.core.beginRun();
    self.requests = .ofThisThread(self.state.knows_requests);
    defer self.dropRunState();
    while (true) {
        self.core.turn(self) catch |err| {
            // sys.exit() in a child that forked inside a callback: whoever called run_forever() will want to run
            // the loop to its end, as asyncio.run() does, before the process exits with that status.
            if (err == error.Python and self.core.isParents() and py.isExit()) self.core.runInChild();
            return raise.fromCore(err);
        };
        if (self.stopping or self.closed) return py.newNone();
    }
}

/// `_Watched.select(timeout)`: polls once and queues what is ready. Gives how many callbacks that are.
fn pollMethod(object: *Object, timeout: *Object) py.Error!*Object {
    const self = of(object);
    try self.checkClosed();
    if (self.isForeignThread()) return py.raise(c.PyExc_RuntimeError, "the loop polls in its own thread only");
    var timeout_ns: ?u64 = null;
    if (timeout != py.none()) {
        const seconds = c.PyFloat_AsDouble(timeout);
        if (seconds == -1 and c.PyErr_Occurred() != null) return error.Python;
        if (seconds != seconds) return py.raise(c.PyExc_ValueError, "Invalid value NaN (not a number)");
        timeout_ns = core.clock.fromSecondsCeil(seconds);
    }
    self.core.drainInbox() catch return py.noMemory();
    const count = self.core.ready.len;
    // Its caller can have queued something since asyncio would have looked.
    if (count > 0) timeout_ns = 0;
    self.core.pollOnce(self, timeout_ns) catch |err| return raise.fromCore(err);
    return py.newInt(self.core.ready.len -| count);
}

fn releaseMethod(object: *Object) py.Error!*Object {
    const self = of(object);
    self.release();
    self.core.closeReactor();
    self.handle_pool.empty();
    self.freeBuffers();
    return py.newNone();
}

/// Sends what waits for the end of the turn, before a fork: the child must find it in the kernel. Without the GIL
/// only the loop's own thread may touch the transports.
fn sendWaiting(object: *Object) py.Error!*Object {
    const self = of(object);
    const is_mine = !config.gil_disabled or !self.isForeignThread();
    if (is_mine and !self.core.isForked() and self.dirty.len > 0) try stream_write.flushDirty(self);
    return py.newNone();
}

fn isForked(object: *Object) py.Error!*Object {
    return py.newBool(of(object).core.isForked());
}

fn stop(object: *Object) py.Error!*Object {
    of(object).stopping = true;
    return py.newNone();
}

fn isRunning(object: *Object) py.Error!*Object {
    return py.newBool(of(object).isRunning());
}

fn isClosed(object: *Object) py.Error!*Object {
    return py.newBool(of(object).closed);
}

fn getDebug(object: *Object) py.Error!*Object {
    return py.newBool(of(object).debug);
}

fn writeToSelf(object: *Object) py.Error!*Object {
    of(object).core.wake();
    return py.newNone();
}

fn checkClosedMethod(object: *Object) py.Error!*Object {
    try of(object).checkClosed();
    return py.newNone();
}

fn checkUsableMethod(object: *Object) py.Error!*Object {
    try of(object).checkUsable();
    return py.newNone();
}

/// Properties that asyncio's own methods assign.
fn flag(comptime field: []const u8) c.PyGetSetDef {
    const Access = struct {
        fn get(object: *Object) py.Error!*Object {
            return py.newBool(@field(of(object), field));
        }
        fn set(object: *Object, value: ?*Object) py.Error!void {
            @field(of(object), field) = try py.isTrue(value orelse py.none());
        }
    };
    return py.property("_" ++ field, Access.get, Access.set);
}

fn getThreadId(object: *Object) py.Error!*Object {
    const id = @atomicLoad(c_ulong, &of(object).thread_id, .monotonic);
    if (id == 0) return py.newNone();
    return py.check(c.PyLong_FromUnsignedLong(id));
}

/// The run is over: a loop that does not run can be garbage, together with those who keep handles of it.
fn trackQueued(self: *Fields) void {
    const ready_count = @min(self.core.ready.len, traverse_count_max);
    for (0..ready_count) |i| {
        const work = self.core.ready.at(i);
        if (work.kind() == .handle) handle.trackIfShared(work.handle());
    }
    const timers = self.core.timers.entries.items;
    for (timers[0..@min(timers.len, traverse_count_max)]) |entry| handle.trackIfShared(handle.ofTimer(entry.timer));
}

fn setThreadId(object: *Object, value: ?*Object) py.Error!void {
    const given = value orelse py.none();
    if (given == py.none()) {
        @atomicStore(c_ulong, &of(object).thread_id, 0, .monotonic);
        // Without a GIL all handles are tracked.
        if (comptime !config.gil_disabled) trackQueued(of(object));
        return;
    }
    const id = c.PyLong_AsUnsignedLong(given);
    if (c.PyErr_Occurred() != null) return error.Python;
    @atomicStore(c_ulong, &of(object).thread_id, id, .monotonic);
}

fn getCurrentHandle(object: *Object) py.Error!*Object {
    return py.newRef(of(object).current_handle orelse py.none());
}

fn setCurrentHandle(object: *Object, value: ?*Object) py.Error!void {
    const kept = if (value) |v| (if (v == py.none()) null else py.newRef(v)) else null;
    py.replace(&of(object).current_handle, kept);
}

fn setSelect(object: *Object, value: ?*Object) py.Error!void {
    py.replace(&of(object).select, if (value) |given| py.newRef(given) else null);
}

fn getSelect(object: *Object) py.Error!*Object {
    return py.newRef(of(object).select orelse py.none());
}

/// A list of the handles that wait to run, for tools that look at `_ready`; changing it changes
/// nothing.
fn getReady(object: *Object) py.Error!*Object {
    const self = of(object);
    const list = try py.check(c.PyList_New(0));
    errdefer py.decref(list);
    // Without a GIL another thread can get in at each append.
    var i: usize = 0;
    while (i < self.core.ready.len) : (i += 1) {
        const work = self.core.ready.at(i);
        if (work.kind() == .handle) try py.checkInt(c.PyList_Append(list, work.object()));
    }
    return list;
}

fn getScheduled(object: *Object) py.Error!*Object {
    const self = of(object);
    const list = try py.check(c.PyList_New(0));
    errdefer py.decref(list);
    var i: usize = 0;
    while (i < self.core.timers.entries.items.len) : (i += 1) {
        try py.checkInt(c.PyList_Append(list, handle.ofTimer(self.core.timers.entries.items[i].timer)));
    }
    return list;
}

/// asyncio's constructor assigns containers that are never used here.
fn ignoreAssignment(_: *Object, _: ?*Object) py.Error!void {}

const methods = [_]c.PyMethodDef{
    py.Method.noArgs("_run_once", runOnce, "_run_once($self)\n--\n\nRuns turns until the loop is stopped; asyncio's run_forever calls it."),
    py.Method.oneArg("_poll", pollMethod, "_poll($self, timeout, /)\n--\n\nPolls once, for so many seconds at most or None, and queues what is ready; how many callbacks that are."),
    py.Method.noArgs("_release", releaseMethod, "_release($self)\n--\n\nDrops all queued work and closes the reactor."),
    py.Method.noArgs("_check_closed", checkClosedMethod, "_check_closed($self)\n--\n\nRaises RuntimeError if the loop is closed."),
    py.Method.noArgs("_check_usable", checkUsableMethod, "_check_usable($self)\n--\n\nRaises RuntimeError if the loop is closed or the parent process's."),
    py.Method.noArgs("_write_to_self", writeToSelf, "_write_to_self($self)\n--\n\nWakes the loop if it waits; any thread."),
    py.Method.noArgs("_send_waiting", sendWaiting, "_send_waiting($self)\n--\n\nGives what transports keep for the end of the turn to the kernel."),
    py.Method.noArgs("_is_forked", isForked, "_is_forked($self)\n--\n\nWhether this is a forked child's copy of its parent's loop."),
    py.Method.noArgs("stop", stop, "stop($self)\n--\n\nasyncio.loop.stop()."),
    py.Method.noArgs("is_running", isRunning, "is_running($self)\n--\n\nasyncio.loop.is_running()."),
    py.Method.noArgs("is_closed", isClosed, "is_closed($self)\n--\n\nasyncio.loop.is_closed()."),
    py.Method.noArgs("get_debug", getDebug, "get_debug($self)\n--\n\nasyncio.loop.get_debug()."),
    py.Method.noArgs("time", loop_time.time, "time($self)\n--\n\nasyncio.loop.time(): seconds, the same clock as time.monotonic()."),
} ++ @import("loop_schedule.zig").methods ++ loop_tasks.methods ++ @import("loop_fds.zig").methods ++ @import("loop_streams.zig").methods ++ @import("loop_datagrams.zig").methods ++ @import("loop_socks.zig").methods ++ [_]c.PyMethodDef{.{}};

const properties = loop_tasks.properties ++ [_]c.PyGetSetDef{
    flag("closed"),
    flag("stopping"),
    flag("debug"),
    flag("tls_native"),
    flag("polls_by_selector"),
    flag("send_at_once"),
    py.property("_thread_id", getThreadId, setThreadId),
    py.property("_current_handle", getCurrentHandle, setCurrentHandle),
    py.property("_select", getSelect, setSelect),
    py.property("_ready", getReady, ignoreAssignment),
    py.property("_scheduled", getScheduled, ignoreAssignment),
    .{},
};

fn itself(object: *Object) ?*Object {
    return object;
}

const guarded: guard.Guard = .{
    .loop_of = itself,
    .open = &.{
        // Nobody else has the object any more.
        "tp_dealloc",
        // What it sets is guarded, or single words.
        "tp_setattro",
        // By way of the inbox.
        "call_soon_threadsafe",
        "_write_to_self",
        // Single words, which other threads may ask for while the loop computes.
        "_check_closed",
        "_check_usable",
        "_closed",
        "_debug",
        "_is_forked",
        "_stopping",
        "_thread_id",
        "_tls_native",
        "get_debug",
        "is_closed",
        "is_running",
        "stop",
        "time",
        // Touch nothing of the loop's but what its own thread keeps for them, and see `loop_tasks.zig`.
        "create_future",
        "create_task",
    },
};

pub const spec = heap_type.base("zloop._engine.Loop", Layout.size, guarded, .{
    .tp_new = &new,
    .tp_dealloc = &dealloc,
    .tp_traverse = py.traverse(traverseFields),
    .tp_clear = &clearFields,
    .tp_setattro = &loop_time.setAttribute,
    .tp_methods = &methods,
    .tp_getset = &properties,
});
