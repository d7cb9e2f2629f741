//! The beginning and the end of a stream: connection_made, closing, errors, connection_lost.

const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const debug = @import("debug.zig");
const loop_type = @import("loop_type.zig");
const raise = @import("raise.zig");
const stream = @import("stream.zig");
const stream_write = @import("stream_write.zig");
const transport = @import("transport.zig");
const Source = @import("source.zig").Source;

const Object = py.Object;
const Fields = stream.Fields;

pub const queueStep = transport.queueStep;
pub const report = transport.report;

/// Each queued step is one of two: the first is the start, the second the end.
pub fn step(source: *Source) py.Error!void {
    const self: *Fields = .ofSource(source);
    if (!self.started) return start(self);
    try connectionLost(self);
}

/// connection_made, then reading, then the waiter: asyncio's order.
pub fn start(self: *Fields) py.Error!void {
    return transport.start(self, begin);
}

fn begin(self: *Fields) py.Error!void {
    if (self.isReading() and !self.loop.closed) {
        self.source.arm(self.loop, stream.interest(self)) catch |err| {
            if (py.isExit()) return err;
            const exception = py.takeException();
            defer py.decref(exception);
            try fatalError(self, exception, "Fatal read error on socket transport");
        };
    }
    if (self.waiter) |waiter| {
        self.waiter = null;
        defer py.decref(waiter);
        try transport.setResultUnlessCancelled(self.loop.state, waiter);
    }
}

/// Ends the connection because of `exception`. An OSError is the network's business and logged in
/// debug mode only; anything else is reported.
pub fn fatalError(self: *Fields, exception: *Object, message: [*:0]const u8) py.Error!void {
    if (py.isInstance(exception, @ptrCast(c.PyExc_OSError))) {
        try debug.log(self.loop, "%r: fatal error on transport", self.object());
    } else {
        try report(self, exception, message);
    }
    try forceClose(self, exception);
}

/// As `fatalError` for the exception that is set; one that must leave the loop comes back.
pub fn fatalPending(self: *Fields, message: [*:0]const u8) py.Error!void {
    if (py.isExit()) return error.Python;
    const exception = py.takeException();
    defer py.decref(exception);
    try fatalError(self, exception, message);
}

/// Ends the connection now: what is queued is dropped.
pub fn forceClose(self: *Fields, exception: ?*Object) py.Error!void {
    if (self.conn_lost > 0) return;
    self.conn_lost = 1;
    self.closing = true;
    self.source.disarm(self.loop, .none);
    const dropped_size = self.queue.size;
    self.queue.clear(&self.loop.write_pool, loop_type.gpa);
    core.sys.trimAfterFreeing(dropped_size);
    try queueLost(self, exception);
}

/// Where a connection has no context for life, connection_lost runs in the context of whoever ended it, as a
/// call_soon would.
fn queueLost(self: *Fields, exception: ?*Object) py.Error!void {
    self.lost_exception = if (exception) |e| py.newRef(e) else null;
    if (!self.handling) try transport.takeCallersContext(self);
    if (self.loop.closed) {
        // Nobody is left to call connection_lost. asyncio raises too, and leaves the socket open.
        try releaseDescriptor(self);
        try detach(self);
        return self.loop.checkClosed();
    }
    try queueStep(self);
}

pub fn closeTransport(self: *Fields) py.Error!void {
    if (self.closing) return;
    self.closing = true;
    stream.stopReading(self);
    try stream_write.settle(self);
    if (self.conn_lost > 0 or !self.queue.isEmpty()) return;
    self.conn_lost = 1;
    self.source.disarm(self.loop, .none);
    try queueLost(self, null);
}

pub fn connectionLost(self: *Fields) py.Error!void {
    const object = py.newRef(self.object());
    defer py.decref(object);
    const exception = self.lost_exception orelse py.newNone();
    self.lost_exception = null;
    defer py.decref(exception);
    const protocol = self.protocol;
    self.protocol = null;
    defer py.xdecref(protocol);
    var left: ?py.Saved = null;
    if (self.protocol_connected) if (protocol) |p| {
        transport.callReported(self, p, .connection_lost, .{exception}) catch {
            left = .save();
        };
    };
    self.protocol_connected = false;
    releaseDescriptor(self) catch c.PyErr_WriteUnraisable(object);
    detach(self) catch c.PyErr_WriteUnraisable(object);
    if (self.empty_waiter) |waiter| {
        self.empty_waiter = null;
        defer py.decref(waiter);
        failEmptyWaiter(self, waiter) catch c.PyErr_WriteUnraisable(object);
    }
    py.clear(&self.waiter);
    if (left) |saved| {
        saved.restore();
        return error.Python;
    }
}

fn failEmptyWaiter(self: *Fields, waiter: *Object) py.Error!void {
    const state = self.loop.state;
    const done = try py.callMethod(waiter, state.name(.done), .{});
    defer py.decref(done);
    if (try py.isTrue(done)) return;
    const text = try py.check(c.PyUnicode_FromString("Connection is closed by peer"));
    defer py.decref(text);
    const failure = try py.call(c.PyExc_ConnectionError, .{text});
    defer py.decref(failure);
    py.decref(try py.callMethod(waiter, state.name(.set_exception), .{failure}));
}

/// Closes the descriptor, once. It is in no table any more when its number becomes free.
fn releaseDescriptor(self: *Fields) py.Error!void {
    if (self.released) return;
    stream.keepExtra(self);
    self.source.disarm(self.loop, .none);
    self.queue.clear(&self.loop.write_pool, loop_type.gpa);
    self.released = true;
    // After the finalizer others' finalizers can still write: the number may be another's by then.
    self.closing = true;
    self.conn_lost = @max(self.conn_lost, 1);
    const sock = self.sock orelse {
        core.sys.close(self.fd());
        return;
    };
    py.decref(try py.callMethod(sock, self.loop.state.name(.close), .{}));
}

fn detach(self: *Fields) py.Error!void {
    const server = self.server orelse return;
    self.server = null;
    defer py.decref(server);
    const state = self.loop.state;
    const result = if (state.server_attach_takes_transport)
        try py.callMethod(server, state.name(._detach), .{self.object()})
    else
        try py.callMethod(server, state.name(._detach), .{});
    py.decref(result);
}

/// `__del__`: a transport that nobody closed and nobody can reach any more.
pub fn finalize(object: *Object) callconv(.c) void {
    const self = stream.of(object);
    if (self.released) return;
    const saved: py.Saved = .save();
    defer saved.restore();
    if (c.PyErr_ResourceWarning(object, 1, "unclosed transport %R", object) < 0) c.PyErr_WriteUnraisable(object);
    releaseDescriptor(self) catch c.PyErr_WriteUnraisable(object);
    detach(self) catch c.PyErr_WriteUnraisable(object);
}

fn close(object: *Object) py.Error!*Object {
    try closeTransport(stream.of(object));
    return py.newNone();
}

fn abort(object: *Object) py.Error!*Object {
    const self = stream.of(object);
    try stream_write.settle(self);
    try forceClose(self, null);
    return py.newNone();
}

fn forceCloseMethod(object: *Object, exception: *Object) py.Error!*Object {
    const self = stream.of(object);
    try stream_write.settle(self);
    try forceClose(self, if (exception == py.none()) null else exception);
    return py.newNone();
}

pub const methods = [_]c.PyMethodDef{
    py.Method.noArgs("close", close, "close($self)\n--\n\nasyncio.BaseTransport.close(): queued bytes still leave."),
    py.Method.noArgs("abort", abort, "abort($self)\n--\n\nasyncio.WriteTransport.abort(): queued bytes are dropped."),
    py.Method.oneArg("_force_close", forceCloseMethod, "_force_close($self, exc)\n--\n\nabort() with a reason for connection_lost()."),
};
