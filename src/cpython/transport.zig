//! What all transports do alike: calls of protocol methods in the transport's context, reports,
//! flow control, and what counts as bytes.
//!
//! The functions take any transport's fields that are called `source`, `loop`, `protocol` and
//! `context`; those about flow control also need `queue`, `high_water`, `low_water`,
//! `protocol_paused` and `writer_context`. None of them keeps anything.
//!
//! Contexts: what is read reaches the protocol in `context`. asyncio's transports make a handle for
//! connection_made, one for reading and one for connection_lost, each with a copy of the context that is current
//! then: what connection_made sets the others do not see. Since 3.15 its stream transports, and only they, have one
//! context for all three. The fields' declaration `has_one_context` says which of the two a transport does; both
//! copy once per connection or less, and never per packet.

const std = @import("std");
const c = @import("c.zig");
const core = @import("core");
const py = @import("py.zig");
const args = @import("args.zig");
const raise = @import("raise.zig");
const State = @import("state.zig").State;
const Name = @import("state.zig").Name;

const Object = py.Object;
const gpa = @import("loop_type.zig").gpa;

/// The socket that a transport holds, for its traverse function. A plain one refers to nothing, and is
/// hidden from the garbage collector: found together with its transport it would be finalized, which
/// closes it, perhaps before somebody's `__del__` writes to the transport one last time; and the
/// number could be another's by then.
pub fn visitSocket(self: anytype, visitor: py.Visitor) error{Stop}!void {
    const sock = self.sock orelse return;
    const is_plain = @as(*Object, @ptrCast(py.typeOf(sock))) == self.loop.state.socket_type;
    if (!is_plain) try visitor.object(sock);
}

/// Queues the next step of the life cycle, which runs in a later turn or behind what is queued.
pub fn queueStep(self: anytype) py.Error!void {
    self.loop.core.post(.ofSource(&self.source, .step)) catch |err| return raise.fromCore(err);
    py.incref(self.source.object);
}

pub fn setResultUnlessCancelled(state: *State, waiter: *Object) py.Error!void {
    const cancelled = try py.callMethod(waiter, state.name(.cancelled), .{});
    defer py.decref(cancelled);
    if (try py.isTrue(cancelled)) return;
    py.decref(try py.callMethod(waiter, state.name(.set_result), .{py.none()}));
}

/// connection_made, then `begin`. An exception that leaves the loop from the first does not keep the
/// second from happening, as in asyncio, which queues them one by one.
pub fn start(self: anytype, comptime begin: fn (@TypeOf(self)) py.Error!void) py.Error!void {
    self.started = true;
    const protocol = self.protocol orelse return beginEntered(self, begin);
    connectionMade(self, protocol) catch {
        const left: py.Saved = .save();
        beginEntered(self, begin) catch c.PyErr_WriteUnraisable(self.source.object);
        left.restore();
        return error.Python;
    };
    return beginEntered(self, begin);
}

/// A connection that cannot begin is reported and ended in its own context.
fn beginEntered(self: anytype, comptime begin: fn (@TypeOf(self)) py.Error!void) py.Error!void {
    return py.inContext(self.context.?, begin, .{self});
}

/// Arms the watch for room in the kernel. What follows from it runs in a copy of the context of whoever wrote what
/// waits, `written_in` if that is not the current one: asyncio makes a handle here. Nothing is armed twice, so the
/// first writer's stays until all has left.
pub fn armWrite(self: anytype, written_in: ?*Object, comptime arm: fn (@TypeOf(self), core.reactor.Interest) py.Error!void) py.Error!void {
    const armed = self.source.watch.armed;
    if (!armed.write) {
        const context = if (comptime hasOneContext(@TypeOf(self)))
            py.newRef(self.context.?)
        else
            try py.check(if (written_in) |given| c.PyContext_Copy(given) else c.PyContext_CopyCurrent());
        py.replace(&self.writer_context, context);
    }
    try arm(self, .{ .read = armed.read, .write = true });
}

/// The context of what room in the kernel makes the transport do.
pub fn writerContext(self: anytype) *Object {
    return self.writer_context orelse self.context.?;
}

fn hasOneContext(comptime Self: type) bool {
    return @typeInfo(Self).pointer.child.has_one_context;
}

fn connectionMade(self: anytype, protocol: *Object) py.Error!void {
    if (comptime hasOneContext(@TypeOf(self))) return callReported(self, protocol, .connection_made, .{self.source.object});
    return callReportedInCopy(self, protocol, .connection_made, .{self.source.object});
}

/// As `callReported`, where asyncio has a handle of its own for the call.
pub fn callReportedInCopy(self: anytype, protocol: *Object, comptime method: Name, arguments: anytype) py.Error!void {
    const own = try py.check(c.PyContext_Copy(self.context.?));
    defer py.decref(own);
    return callReportedIn(own, self, protocol, method, arguments);
}

/// The caller begins something for which asyncio's transport makes a handle: a copy of the caller's context is the
/// transport's from now on, unless it has one for life.
pub fn takeCallersContext(self: anytype) py.Error!void {
    if (comptime hasOneContext(@TypeOf(self))) return;
    py.replace(&self.context, try py.check(c.PyContext_CopyCurrent()));
}

/// Calls a protocol method in the transport's context; false if it raised, with the exception set.
/// Exceptions that must leave the loop come back as the error.
pub fn enteredCall(self: anytype, protocol: *Object, comptime method: Name, arguments: anytype) py.Error!bool {
    return enteredCallIn(self.context.?, self, protocol, method, arguments);
}

fn enteredCallIn(context: *Object, self: anytype, protocol: *Object, comptime method: Name, arguments: anytype) py.Error!bool {
    const held = py.newRef(protocol);
    defer py.decref(held);
    py.inContext(context, callForNothing, .{ held, self.loop.state.name(method), arguments }) catch |err|
        return if (py.isExit()) err else false;
    return true;
}

fn callForNothing(object: *Object, name: *Object, arguments: anytype) py.Error!void {
    py.decref(try py.callMethod(object, name, arguments));
}

/// As `enteredCall`, with asyncio's report of an exception in a callback.
pub fn callReported(self: anytype, protocol: *Object, comptime method: Name, arguments: anytype) py.Error!void {
    return callReportedIn(self.context.?, self, protocol, method, arguments);
}

fn callReportedIn(given: *Object, self: anytype, protocol: *Object, comptime method: Name, arguments: anytype) py.Error!void {
    const context = py.newRef(given);
    defer py.decref(context);
    if (try enteredCallIn(context, self, protocol, method, arguments)) return;
    try methodFailed(self, context, protocol, method, arguments);
}

/// As `methodFailed` for a caller that has entered `context`: asyncio reports when it has left it.
pub fn methodFailedInside(self: anytype, context: *Object, protocol: *Object, comptime method: Name, arguments: anytype) py.Error!void {
    if (py.isExit()) return error.Python;
    const pending: py.Saved = .save();
    try py.checkInt(c.PyContext_Exit(context));
    pending.restore();
    const reported = methodFailed(self, context, protocol, method, arguments);
    const left: ?py.Saved = if (reported) |_| null else |_| .save();
    const entered = c.PyContext_Enter(context);
    if (left) |saved| {
        if (entered < 0) c.PyErr_WriteUnraisable(self.source.object);
        saved.restore();
        return error.Python;
    }
    return py.checkInt(entered);
}

/// Reports the exception that is set as asyncio reports one that a callback raised which ran in `context`.
pub fn methodFailed(self: anytype, context: *Object, protocol: *Object, comptime method: Name, arguments: anytype) py.Error!void {
    const pending: py.Saved = .save();
    const bound = py.getAttr(protocol, self.loop.state.name(method)) catch none: {
        c.PyErr_Clear();
        break :none py.newNone();
    };
    defer py.decref(bound);
    const given = py.newTuple(arguments) catch |err| {
        pending.restore();
        return err;
    };
    defer py.decref(given);
    pending.restore();
    try self.loop.methodFailed(bound, given, context);
}

/// asyncio's report of an exception that costs the connection.
pub fn report(self: anytype, exception: *Object, message: [*:0]const u8) py.Error!void {
    const state = self.loop.state;
    const details = try py.check(c.PyDict_New());
    defer py.decref(details);
    const text = try py.check(c.PyUnicode_FromString(message));
    defer py.decref(text);
    try py.checkInt(c.PyDict_SetItem(details, state.name(.message), text));
    try py.checkInt(c.PyDict_SetItem(details, state.name(.exception), exception));
    try py.checkInt(c.PyDict_SetItem(details, state.name(.transport), self.source.object));
    try py.checkInt(c.PyDict_SetItem(details, state.name(.protocol), self.protocol orelse py.none()));
    py.decref(try py.callMethod(self.loop.object(), state.name(.call_exception_handler), .{details}));
}

pub fn isBytesLike(data: *Object) bool {
    return py.isInstance(data, &c.PyBytes_Type) or py.isInstance(data, &c.PyByteArray_Type) or
        py.isInstance(data, &c.PyMemoryView_Type);
}

/// Exact bytes are kept as they are; anything else is copied now, so that later changes to it do
/// not reach the peer.
pub fn immutable(data: *Object) py.Error!*Object {
    if (py.isExact(data, &c.PyBytes_Type)) return py.newRef(data);
    var view: c.Py_buffer = undefined;
    try py.checkInt(c.PyObject_GetBuffer(data, &view, c.PyBUF_FULL_RO));
    defer c.PyBuffer_Release(&view);
    return copyOfView(&view);
}

/// A bytes object.
pub fn copyOfView(view: *const c.Py_buffer) py.Error!*Object {
    const copy = try py.check(c.PyBytes_FromStringAndSize(null, view.len));
    errdefer py.decref(copy);
    try py.checkInt(c.PyBuffer_ToContiguous(py.bytesOf(copy).ptr, view, view.len, 'C'));
    return copy;
}

/// What `writelines()` was given: bytes objects that are not empty. Owns a reference to each.
pub const Pieces = struct {
    list: std.ArrayList(*Object) = .empty,

    /// All pieces are taken before any is written: a bad one leaves nothing half written.
    pub fn take(given: *Object) py.Error!Pieces {
        var self: Pieces = .{};
        errdefer self.deinit();
        const iterator = try py.check(c.PyObject_GetIter(given));
        defer py.decref(iterator);
        while (c.PyIter_Next(iterator)) |item| {
            defer py.decref(item);
            self.list.ensureUnusedCapacity(gpa, 1) catch return py.noMemory();
            const bytes = try immutable(item);
            if (py.bytesOf(bytes).len > 0) self.list.appendAssumeCapacity(bytes) else py.decref(bytes);
        }
        if (c.PyErr_Occurred() != null) return error.Python;
        return self;
    }

    pub fn deinit(self: *Pieces) void {
        for (self.list.items) |piece| py.decref(piece);
        self.list.deinit(gpa);
    }
};

/// asyncio's LOG_THRESHOLD_FOR_CONNLOST_WRITES.
const lost_writes_warned_from = 5;

/// Counts a write that is dropped because there is nobody to write to.
pub fn countLostWrite(self: anytype, warning: [*:0]const u8) py.Error!void {
    if (self.conn_lost >= lost_writes_warned_from) {
        const text = try py.check(c.PyUnicode_FromString(warning));
        defer py.decref(text);
        py.decref(try py.callMethod(self.loop.state.logger, self.loop.state.name(.warning), .{text}));
    }
    self.conn_lost +|= 1;
}

pub fn maybePause(self: anytype) py.Error!void {
    if (self.queue.size <= self.high_water or self.protocol_paused) return;
    self.protocol_paused = true;
    try callFlowControl(self, .pause_writing, "protocol.pause_writing() failed");
}

pub fn maybeResume(self: anytype) py.Error!void {
    if (!self.protocol_paused or self.queue.size > self.low_water) return;
    self.protocol_paused = false;
    try callFlowControl(self, .resume_writing, "protocol.resume_writing() failed");
}

/// As `maybePause`, for what the loop finds out between callbacks: in the transport's context.
pub fn maybePauseEntered(self: anytype) py.Error!void {
    if (self.queue.size <= self.high_water or self.protocol_paused) return;
    return py.inContext(self.context.?, maybePause, .{self});
}

pub fn callFlowControl(self: anytype, comptime method: Name, comptime message: [:0]const u8) py.Error!void {
    const protocol = py.newRef(self.protocol orelse return);
    defer py.decref(protocol);
    if (py.callMethod(protocol, self.loop.state.name(method), .{})) |result| {
        py.decref(result);
    } else |err| {
        if (py.isExit()) return err;
        const exception = py.takeException();
        defer py.decref(exception);
        try report(self, exception, message);
    }
}

pub const high_water_default = 64 * 1024;

/// `get_write_buffer_limits()`.
pub fn limits(self: anytype) py.Error!*Object {
    const low = try py.newInt(self.low_water);
    defer py.decref(low);
    const high = try py.newInt(self.high_water);
    defer py.decref(high);
    return py.newTuple(.{ low, high });
}

/// `set_write_buffer_limits(high=None, low=None)`, without asking whether the protocol must pause.
pub fn setLimits(self: anytype, argv: []const *Object, names: ?*Object) py.Error!void {
    const slots = try args.parse("set_write_buffer_limits", &.{ "high", "low" }, .{}, argv, names);
    const parsed = try parseLimits(slots[0], slots[1], high_water_default);
    self.high_water = parsed.high;
    self.low_water = parsed.low;
}

pub const Limits = struct { high: usize, low: usize };

/// asyncio's defaults and its error for limits that do not fit each other.
pub fn parseLimits(high_given: ?*Object, low_given: ?*Object, high_default: c.Ssize) py.Error!Limits {
    var low: c.Ssize = 0;
    if (args.given(low_given)) |given| low = try asSize(given);
    const high = if (args.given(high_given)) |given|
        try asSize(given)
    else if (args.given(low_given) != null)
        4 *| low
    else
        high_default;
    if (args.given(low_given) == null) low = @divFloor(high, 4);
    if (!(high >= low and low >= 0)) {
        return py.raiseFormat(c.PyExc_ValueError, "high (%zd) must be >= low (%zd) must be >= 0", .{ high, low });
    }
    return .{ .high = @intCast(high), .low = @intCast(low) };
}

/// Python's numbers have no end, and asyncio takes any of them: no buffer reaches what is cut off here.
fn asSize(object: *Object) py.Error!c.Ssize {
    const is_float = py.isInstance(object, &c.PyFloat_Type);
    const value = if (is_float) -1 else c.PyLong_AsSsize_t(object);
    if (value != -1) return value;
    if (!is_float) {
        if (c.PyErr_Occurred() == null) return value;
        if (!py.matches(c.PyExc_OverflowError)) return error.Python;
        c.PyErr_Clear();
    }
    const zero = try py.newInt(0);
    defer py.decref(zero);
    const negative = c.PyObject_RichCompareBool(object, zero, c.Py_LT);
    if (negative < 0) return error.Python;
    if (negative != 0) return std.math.minInt(c.Ssize) / 4;
    if (!is_float) return std.math.maxInt(c.Ssize);
    const number = c.PyFloat_AsDouble(object);
    // Not a number fits nothing.
    return if (number != number) -1 else std.math.lossyCast(c.Ssize, number);
}
