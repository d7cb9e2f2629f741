//! SocketWaiter: one `sock_*` operation that could not be finished at once.
//!
//! A coroutine awaits it; to a Task it looks like a future. The waiter stands in the slot of its
//! descriptor's FdWatch, where a reader or writer of the program would stand, so the two displace
//! one another as in asyncio. When the descriptor is ready the task is resumed right there, not a
//! turn later, and if its next operation is the same one again the kernel has to be told nothing.
//!
//! Receiving happens in the resumed coroutine: an operation that is cancelled has taken nothing
//! out of the socket. Sending goes on by itself, and the task is resumed when all has left.
//!
//! The FdWatch holds a reference while the waiter stands in a slot. Loop's thread only.

const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const args = @import("args.zig");
const fd_watch = @import("fd_watch.zig");
const guard = @import("guard.zig");
const heap_type = @import("heap_type.zig");
const loop_type = @import("loop_type.zig");
const raise = @import("raise.zig");
const sock_operation = @import("sock_operation.zig");
const transport = @import("transport.zig");
const Operation = sock_operation.Operation;
const Source = @import("source.zig").Source;

const Object = py.Object;
const LoopFields = loop_type.Fields;

const Stage = enum {
    /// In a slot, or put out of it by another user of the descriptor.
    waiting,
    /// The descriptor is ready, or the operation has finished: `operation`, `result` and
    /// `exception` say how it goes on.
    woken,
    cancelled,
    /// The coroutine has been told.
    over,
};

pub const Fields = struct {
    /// Its watch is never armed: it names the waiter in the ready queue.
    source: Source,
    /// A strong reference to the loop's object.
    loop: *LoopFields,
    sock: *Object,
    fd: core.sys.fd_t,
    operation: Operation,
    stage: Stage,
    /// Stands in the slot of its descriptor.
    registered: bool,
    /// The flag by which a Task tells `yield future` from `yield from future`.
    blocking: bool,
    /// Of a finished operation; the other two are null.
    result: ?*Object,
    exception: ?*Object,
    /// What to call when the waiter is done, and its context.
    callback: ?*Object,
    context: ?*Object,
    /// Pairs like the one above, from the second on.
    more_callbacks: ?*Object,
    cancel_message: ?*Object,
};

const Layout = py.Layout(Fields, @sizeOf(c.PyObject));
pub const of = Layout.of;

pub fn isWaiter(loop: *const LoopFields, object: *const Object) bool {
    return py.isExact(object, loop.state.socket_waiter_type);
}

/// Waits for the descriptor. Takes `operation` over, also when it fails.
pub fn create(loop: *LoopFields, sock: *Object, fd: core.sys.fd_t, operation: Operation) py.Error!*Object {
    var taken = operation;
    const made = c._PyObject_GC_New(loop.state.socket_waiter_type) orelse {
        taken.release();
        return error.Python;
    };
    py.incref(loop.object());
    const self = of(made);
    self.* = .{
        .source = .{ .watch = .{}, .vtable = &vtable, .object = made },
        .loop = loop,
        .sock = py.newRef(sock),
        .fd = fd,
        .operation = taken,
        .stage = .waiting,
        .registered = false,
        .blocking = false,
        .result = null,
        .exception = null,
        .callback = null,
        .context = null,
        .more_callbacks = null,
        .cancel_message = null,
    };
    c.PyObject_GC_Track(made);
    errdefer py.decref(made);
    try register(self);
    return made;
}

fn register(self: *Fields) py.Error!void {
    try fd_watch.add(self.loop, self.fd, self.operation.direction(), self.source.object, null);
    self.registered = true;
}

/// The FdWatch has put another into the slot, or emptied it. As in asyncio the operation waits on,
/// until it is cancelled.
pub fn displaced(object: *Object) void {
    of(object).registered = false;
}

/// The program closed the socket, and its number has come round again.
pub fn lost(object: *Object) void {
    const self = of(object);
    self.registered = false;
    if (self.stage != .waiting) return;
    raise.errno(.BADF) catch {};
    self.exception = py.takeException();
    transport.queueStep(self) catch c.PyErr_WriteUnraisable(object);
}

/// Whether the socket has lost the descriptor that the operation waits for.
pub fn isClosed(loop: *LoopFields, object: *Object) bool {
    const self = of(object);
    const fd = sock_operation.fileno(loop, self.sock) catch {
        c.PyErr_Clear();
        return true;
    };
    return fd != self.fd;
}

pub fn queue(loop: *LoopFields, object: *Object) void {
    py.incref(object);
    loop.core.ready.pushAssumeCapacity(.ofSource(&of(object).source, .step));
}

pub fn isFor(object: *Object, sock: *const Object) bool {
    return of(object).sock == sock;
}

fn withdraw(self: *Fields) void {
    if (!self.registered) return;
    self.registered = false;
    fd_watch.withdraw(self.loop, self.fd, self.operation.direction(), self.source.object);
}

/// The descriptor is ready.
fn step(source: *Source) py.Error!void {
    const self: *Fields = @alignCast(@fieldParentPtr("source", source));
    if (self.stage != .waiting) return;
    if (self.exception != null) {
        self.stage = .woken;
        return wake(self);
    }
    if (!self.registered) return;
    if (!self.operation.isReceiving()) {
        const outcome = sock_operation.proceed(self.loop, self.sock, self.fd, &self.operation) catch failed: {
            if (py.isExit()) return error.Python;
            self.exception = py.takeException();
            break :failed null;
        };
        self.result = outcome;
        if (outcome == null and self.exception == null) return;
    }
    const resting = fd_watch.take(self.loop, self.fd, self.operation.direction(), self.source.object, self.sock);
    defer fd_watch.rest(self.loop, resting);
    self.registered = false;
    self.stage = .woken;
    try wake(self);
}

/// Resumes whoever waits, here and now. Its exceptions are those of a callback.
fn wake(self: *Fields) py.Error!void {
    const object = py.newRef(self.source.object);
    defer py.decref(object);
    try scheduleMore(self);
    const callback = self.callback orelse return;
    self.callback = null;
    defer py.decref(callback);
    const context = self.context;
    self.context = null;
    defer py.xdecref(context);
    if (context) |entered| try py.checkInt(c.PyContext_Enter(entered));
    const result = py.call(callback, .{object});
    const saved: py.Saved = if (result) |_| .{} else |_| .save();
    if (context) |entered| _ = c.PyContext_Exit(entered);
    if (result) |value| return py.decref(value) else |_| saved.restore();
    if (py.isExit()) return error.Python;
    const given = try py.newTuple(.{object});
    defer py.decref(given);
    try self.loop.methodFailed(callback, given, context orelse py.none());
}

fn scheduleMore(self: *Fields) py.Error!void {
    const pairs = self.more_callbacks orelse return;
    self.more_callbacks = null;
    defer py.decref(pairs);
    const iterator = try py.check(c.PyObject_GetIter(pairs));
    defer py.decref(iterator);
    while (c.PyIter_Next(iterator)) |pair| {
        defer py.decref(pair);
        try schedule(self, py.tupleItemBorrowed(pair, 0), py.tupleItemBorrowed(pair, 1));
    }
    if (c.PyErr_Occurred() != null) return error.Python;
}

fn schedule(self: *Fields, callback: *Object, context: ?*Object) py.Error!void {
    const state = self.loop.state;
    const stack = [_]?*Object{ self.loop.object(), callback, self.source.object, context orelse py.none() };
    py.decref(try py.check(c.PyObject_VectorcallMethod(state.name(.call_soon), &stack, 3, state.context_kwnames)));
}

fn contextsOf(source: *Source) [2]?*Object {
    const self: *Fields = @alignCast(@fieldParentPtr("source", source));
    return .{ self.context, null };
}

const vtable: Source.VTable = .{ .ready = unused, .step = step, .contexts = contextsOf, .is_waiter = true, .is_transport = false };

fn unused(_: *Source, _: core.reactor.Readiness) py.Error!void {
    unreachable;
}

/// What `await` runs: gives the waiter itself to the task until there is a result.
fn next(object: *Object) callconv(.c) ?*Object {
    return py.returned(resume_(object)) orelse null;
}

fn resume_(object: *Object) py.Error!*Object {
    const self = of(object);
    switch (self.stage) {
        .waiting => {},
        .woken => {
            if (self.exception) |exception| {
                self.exception = null;
                self.stage = .over;
                defer py.decref(exception);
                py.restoreException(exception);
                return error.Python;
            }
            const result = self.result orelse sock_operation.proceed(self.loop, self.sock, self.fd, &self.operation) catch |err| {
                self.stage = .over;
                return err;
            };
            self.result = null;
            if (result) |value| {
                self.stage = .over;
                return stopWith(value);
            }
            self.stage = .waiting;
            try register(self);
        },
        .cancelled => {
            self.stage = .over;
            return raiseCancelled(self);
        },
        .over => return py.raise(c.PyExc_RuntimeError, "cannot reuse already awaited socket operation"),
    }
    self.blocking = true;
    return py.newRef(object);
}

/// Ends the iteration with a value, whose reference it takes. None needs no exception object.
fn stopWith(value: *Object) py.Error {
    defer py.decref(value);
    if (value == py.none()) return error.Python;
    const stop = try py.call(c.PyExc_StopIteration, .{value});
    defer py.decref(stop);
    c.PyErr_SetObject(c.PyExc_StopIteration, stop);
    return error.Python;
}

fn raiseCancelled(self: *Fields) py.Error {
    const kind = self.loop.state.cancelled_error;
    const exception = if (self.cancel_message) |message| try py.call(kind, .{message}) else try py.call(kind, .{});
    defer py.decref(exception);
    c.PyErr_SetObject(kind, exception);
    return error.Python;
}

fn itself(object: *Object) callconv(.c) ?*Object {
    return py.newRef(object);
}

fn send(object: *Object, value: *Object) py.Error!*Object {
    if (value != py.none()) return py.raise(c.PyExc_TypeError, "can't send a value to a socket operation");
    return resume_(object) catch |err| {
        // What an iterator may leave unsaid a method may not.
        if (c.PyErr_Occurred() == null) c.PyErr_SetNone(c.PyExc_StopIteration);
        return err;
    };
}

/// `throw(exception)` or the older `throw(type, value, traceback)`.
fn throw(object: *Object, argv: []const *Object) py.Error!*Object {
    const self = of(object);
    withdraw(self);
    self.stage = .over;
    self.operation.end();
    if (argv.len == 0 or argv.len > 3) return py.raise(c.PyExc_TypeError, "throw expected 1 to 3 arguments");
    const kind = argv[0];
    const value = if (argv.len > 1) args.given(argv[1]) else null;
    const traceback = if (argv.len > 2) args.given(argv[2]) else null;
    if (traceback) |given| if (!py.isInstance(given, &c.PyTraceBack_Type)) {
        return py.raise(c.PyExc_TypeError, "throw() third argument must be a traceback");
    };
    const base: *c.PyTypeObject = @ptrCast(c.PyExc_BaseException);
    if (py.isInstance(kind, base)) {
        if (value != null) return py.raise(c.PyExc_TypeError, "instance exception may not have a separate value");
        py.restoreException(kind);
    } else if (py.isInstance(kind, &c.PyType_Type) and c.PyType_IsSubtype(@ptrCast(kind), base) != 0) {
        if (value) |given| c.PyErr_SetObject(kind, given) else c.PyErr_SetNone(kind);
    } else {
        return py.raise(c.PyExc_TypeError, "exceptions must be classes deriving BaseException or instances of such a class");
    }
    const given = traceback orelse return error.Python;
    const exception = py.takeException();
    defer py.decref(exception);
    _ = c.PyException_SetTraceback(exception, given);
    py.restoreException(exception);
    return error.Python;
}

fn close(object: *Object) py.Error!*Object {
    const self = of(object);
    withdraw(self);
    self.stage = .over;
    self.operation.end();
    return py.newNone();
}

// What a Task asks of a future.

fn addDoneCallback(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const self = of(object);
    const given = try args.parse("add_done_callback", &.{ "fn", "context" }, .{ .required = 1, .positional_max = 1 }, argv, names);
    const callback = given[0].?;
    const context = if (args.given(given[1])) |known| py.newRef(known) else try py.check(c.PyContext_CopyCurrent());
    defer py.decref(context);
    if (self.stage != .waiting) return scheduledLate(self, callback, context);
    if (self.callback == null) {
        self.callback = py.newRef(callback);
        self.context = py.newRef(context);
        return py.newNone();
    }
    const pair = try py.newTuple(.{ callback, context });
    defer py.decref(pair);
    const pairs = if (self.more_callbacks) |known| py.newRef(known) else try py.check(c.PyList_New(0));
    defer py.decref(pairs);
    // Before 3.12 making them can have run a finalizer, and that have ended the waiter.
    if (self.stage != .waiting) return scheduledLate(self, callback, context);
    try py.checkInt(c.PyList_Append(pairs, pair));
    py.replace(&self.more_callbacks, py.newRef(pairs));
    return py.newNone();
}

fn scheduledLate(self: *Fields, callback: *Object, context: *Object) py.Error!*Object {
    try schedule(self, callback, context);
    return py.newNone();
}

/// How many were removed, as a future says; those beyond the first are never taken back by asyncio.
fn removeDoneCallback(object: *Object, callback: *Object) py.Error!*Object {
    const self = of(object);
    const known = py.newRef(self.callback orelse return py.newInt(0));
    defer py.decref(known);
    const equal = c.PyObject_RichCompareBool(known, callback, c.Py_EQ);
    if (equal < 0) return error.Python;
    // The comparison is the program's, and can have ended the waiter.
    if (equal == 0 or self.callback != known) return py.newInt(0);
    py.clear(&self.callback);
    py.clear(&self.context);
    return py.newInt(1);
}

fn cancel(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const self = of(object);
    const given = try args.parse("cancel", &.{"msg"}, .{}, argv, names);
    if (self.stage != .waiting) return py.newBool(false);
    withdraw(self);
    self.stage = .cancelled;
    self.operation.end();
    if (args.given(given[0])) |message| py.replace(&self.cancel_message, py.newRef(message));
    const callback = self.callback;
    self.callback = null;
    defer py.xdecref(callback);
    const context = self.context;
    self.context = null;
    defer py.xdecref(context);
    if (callback) |waiting| try schedule(self, waiting, context);
    try scheduleMore(self);
    return py.newBool(true);
}

fn cancelled(object: *Object) py.Error!*Object {
    return py.newBool(of(object).stage == .cancelled);
}

fn done(object: *Object) py.Error!*Object {
    return py.newBool(of(object).stage != .waiting);
}

/// None once it is done: the operation's result goes to the coroutine that awaits it.
fn getResult(object: *Object) py.Error!*Object {
    const self = of(object);
    return switch (self.stage) {
        .cancelled => raiseCancelled(self),
        .waiting => {
            c.PyErr_SetString(self.loop.state.invalid_state_error, "Result is not set.");
            return error.Python;
        },
        .woken, .over => py.newNone(),
    };
}

fn getException(object: *Object) py.Error!*Object {
    return getResult(object);
}

fn getLoop(object: *Object) py.Error!*Object {
    return py.newRef(of(object).loop.object());
}

fn getBlocking(object: *Object) py.Error!*Object {
    return py.newBool(of(object).blocking);
}

fn setBlocking(object: *Object, value: ?*Object) py.Error!void {
    of(object).blocking = try py.isTrue(value orelse py.none());
}

/// Bytes that have left, for `sendfile`.
fn getSent(object: *Object) py.Error!*Object {
    return py.newInt(of(object).operation.sentCount());
}

fn repr(object: *Object) callconv(.c) ?*Object {
    const self = of(object);
    return c.PyUnicode_FromFormat("<SocketWaiter %s fd=%d %s>", @as([*:0]const u8, @tagName(self.operation)), @as(c_int, self.fd), @as([*:0]const u8, @tagName(self.stage)));
}

const references = .{ "result", "exception", "callback", "context", "more_callbacks", "cancel_message" };

fn dealloc(object: *Object) callconv(.c) void {
    const self = of(object);
    const t: *Object = @ptrCast(py.typeOf(object));
    c.PyObject_GC_UnTrack(object);
    _ = clearFields(object);
    self.operation.release();
    py.decref(self.sock);
    py.decref(self.loop.object());
    c.PyObject_GC_Del(object);
    py.decref(t);
}

fn traverseFields(object: *Object, visitor: py.Visitor) error{Stop}!void {
    const self = of(object);
    try visitor.object(self.loop.object());
    try visitor.object(self.sock);
    inline for (references) |field| try visitor.object(@field(self, field));
    try self.operation.traverse(visitor);
}

fn clearFields(object: *Object) callconv(.c) c_int {
    const self = of(object);
    inline for (references) |field| py.clear(&@field(self, field));
    return 0;
}

const methods = [_]c.PyMethodDef{
    py.Method.oneArg("send", send, "send($self, value, /)\n--\n\nGoes on with the operation; StopIteration has the result."),
    py.Method.args("throw", throw, "throw($self, *exc)\n--\n\nGives the operation up and raises."),
    py.Method.noArgs("close", close, "close($self)\n--\n\nGives the operation up."),
    py.Method.keywords("add_done_callback", addDoneCallback, "add_done_callback($self, fn, *, context=None)\n--\n\nasyncio.Future.add_done_callback()."),
    py.Method.oneArg("remove_done_callback", removeDoneCallback, "remove_done_callback($self, fn, /)\n--\n\nasyncio.Future.remove_done_callback()."),
    py.Method.keywords("cancel", cancel, "cancel($self, msg=None)\n--\n\nasyncio.Future.cancel(): the descriptor is free for others at once."),
    py.Method.noArgs("cancelled", cancelled, "cancelled($self)\n--\n\nasyncio.Future.cancelled()."),
    py.Method.noArgs("done", done, "done($self)\n--\n\nasyncio.Future.done()."),
    py.Method.noArgs("result", getResult, "result($self)\n--\n\nNone once it is done, or raises CancelledError."),
    py.Method.noArgs("exception", getException, "exception($self)\n--\n\nNone once it is done, or raises CancelledError."),
    py.Method.noArgs("get_loop", getLoop, "get_loop($self)\n--\n\nasyncio.Future.get_loop()."),
    .{},
};

const properties = [_]c.PyGetSetDef{
    py.property("_asyncio_future_blocking", getBlocking, setBlocking),
    py.getter("_loop", getLoop),
    py.getter("sent", getSent),
    .{},
};

pub const spec = heap_type.final("zloop._engine.SocketWaiter", Layout.size, guard.byLoop(Layout), .{
    .tp_dealloc = &dealloc,
    .tp_traverse = py.traverse(traverseFields),
    .tp_clear = &clearFields,
    .tp_repr = &repr,
    .tp_iter = &itself,
    .tp_iternext = &next,
    .am_await = &itself,
    .tp_methods = &methods,
    .tp_getset = &properties,
});
