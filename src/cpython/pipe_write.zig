//! WritePipeTransport: the writing end of a pipe, FIFO, character device or socket.
//!
//! As in asyncio, a write is tried at once and what the kernel refuses is queued; the end of
//! writing is the end of the transport. That the reader has gone is seen by watching the writing
//! end for reading: a pipe then reports an error, a socket the end of the file. Character devices
//! are readable for reasons of their own and are not watched.

const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const debug = @import("debug.zig");
const loop_type = @import("loop_type.zig");
const pipe = @import("pipe.zig");
const raise = @import("raise.zig");
const sock_operation = @import("sock_operation.zig");
const transport = @import("transport.zig");
const Source = @import("source.zig").Source;

const Object = py.Object;
const Fields = pipe.Fields;
const gpa = loop_type.gpa;

const fatal_message = "Fatal write error on pipe transport";

const vtable: Source.VTable = .{ .ready = ready, .step = step, .contexts = pipe.contextsOf, .wanted = wanted, .is_transport = true };

/// `Loop._write_pipe`.
pub fn make(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const loop = loop_type.of(object);
    return pipe.create(loop, loop.state.write_pipe_type, &vtable, try .parse("_write_pipe", argv, names));
}

fn interest(self: *const Fields) core.reactor.Interest {
    return .{ .read = self.watches_peer };
}

fn wanted(source: *Source) core.reactor.Interest {
    const self: *Fields = .ofSource(source);
    if (self.lost) return .none;
    return .{ .read = self.started and self.watches_peer, .write = !self.queue.isEmpty() };
}

fn step(source: *Source) py.Error!void {
    const self: *Fields = .ofSource(source);
    if (!self.started) return pipe.start(self, interest, fatal_message);
    try pipe.connectionLost(self);
}

fn ready(source: *Source, readiness: core.reactor.Readiness) py.Error!void {
    const self: *Fields = .ofSource(source);
    if (readiness.read and source.watch.armed.read) try py.inContext(self.context.?, peerClosed, .{self});
    if (readiness.write and source.watch.armed.write) try roomAgain(self);
}

fn peerClosed(self: *Fields) py.Error!void {
    try debug.log(self.loop, "%r was closed by peer", self.object());
    if (self.queue.isEmpty()) return pipe.forceClose(self, null);
    const exception = try py.check(c.PyObject_CallNoArgs(c.PyExc_BrokenPipeError));
    defer py.decref(exception);
    try pipe.forceClose(self, exception);
}

fn write(object: *Object, data: *Object) py.Error!*Object {
    const self = pipe.of(object);
    if (!transport.isBytesLike(data)) return py.raiseFormat(c.PyExc_AssertionError, "%R", .{data});
    const bytes = try transport.immutable(data);
    defer py.decref(bytes);
    const content = py.bytesOf(bytes);
    if (content.len == 0) return py.newNone();
    if (self.conn_lost > 0 or self.closing) {
        try transport.countLostWrite(self, "pipe closed by peer or os.write(pipe, data) raised exception.");
        return py.newNone();
    }
    const held = self.loop.thread_id != 0 and !self.source.watch.armed.isNone();
    if (!held and (!try stillOwns(self) or self.closing)) {
        if (!self.closing) try writeFailed(self, .BADF);
        return py.newNone();
    }
    var sent: usize = 0;
    if (self.queue.isEmpty()) switch (core.sys.write(self.fd(), content)) {
        .done => |count| sent = count,
        .would_block => {},
        .failed => |code| {
            try writeFailed(self, code);
            return py.newNone();
        },
    };
    if (sent == content.len) return py.newNone();
    try transport.armWrite(self, null, pipe.arm);
    self.queue.push(&self.loop.write_pool, gpa, content[sent..], .{ .object = py.newRef(bytes) }) catch return py.noMemory();
    try transport.maybePause(self);
    return py.newNone();
}

/// A transport that no running loop holds can be found by the garbage collector together with its file
/// object, whose finalizer closes the descriptor, before somebody's `__del__` writes one last time.
fn stillOwns(self: *Fields) py.Error!bool {
    const held = py.newRef(self.pipe orelse return false);
    defer py.decref(held);
    const fd = sock_operation.fileno(self.loop, held) catch {
        if (py.isExit()) return error.Python;
        c.PyErr_Clear();
        return false;
    };
    return fd >= 0 and (self.is_duplicate or fd == self.fd());
}

/// The kernel has room again.
fn roomAgain(self: *Fields) py.Error!void {
    const context = py.newRef(transport.writerContext(self));
    defer py.decref(context);
    const written = py.inContext(context, writeQueued, .{self});
    if (!self.closing or self.lost or !self.queue.isEmpty()) return written;
    self.source.disarm(self.loop, .none);
    const left: ?py.Saved = if (written) |_| null else |_| .save();
    py.replace(&self.context, py.newRef(context));
    const lost = pipe.connectionLost(self);
    const saved = left orelse return lost;
    // Two exceptions that leave the loop: the first is the cause of more.
    lost catch c.PyErr_WriteUnraisable(self.object());
    saved.restore();
    return error.Python;
}

fn writeQueued(self: *Fields) py.Error!void {
    switch (self.queue.flush(&self.loop.write_pool, gpa, self.fd(), core.sys.write, core.sys.writev)) {
        .failed => |code| return writeFailed(self, code),
        .done, .would_block => {},
    }
    if (!self.queue.isEmpty()) return;
    self.source.disarm(self.loop, .{ .read = self.source.watch.armed.read });
    py.clear(&self.writer_context);
    // The protocol may write more.
    try transport.maybeResume(self);
}

/// An OSError is the peer's business and logged in debug mode only.
fn writeFailed(self: *Fields, code: core.sys.Errno) py.Error!void {
    raise.errno(code) catch {};
    const exception = py.takeException();
    defer py.decref(exception);
    self.conn_lost +|= 1;
    try debug.log(self.loop, "%r: " ++ fatal_message, self.object());
    try pipe.forceClose(self, exception);
}

fn writeEof(object: *Object) py.Error!*Object {
    const self = pipe.of(object);
    if (self.closing) return py.newNone();
    self.closing = true;
    if (self.loop.closed) {
        try pipe.forceClose(self, null);
    } else if (self.queue.isEmpty()) {
        self.source.disarm(self.loop, .none);
        try pipe.queueLost(self, null);
    }
    return py.newNone();
}

fn canWriteEof(_: *Object) py.Error!*Object {
    return py.newBool(true);
}

fn abort(object: *Object) py.Error!*Object {
    try pipe.forceClose(pipe.of(object), null);
    return py.newNone();
}

fn setProtocol(object: *Object, protocol: *Object) py.Error!*Object {
    py.replace(&pipe.of(object).protocol, py.newRef(protocol));
    return py.newNone();
}

fn getWriteBufferSize(object: *Object) py.Error!*Object {
    return py.newInt(pipe.of(object).queue.size);
}

fn getWriteBufferLimits(object: *Object) py.Error!*Object {
    return transport.limits(pipe.of(object));
}

fn setWriteBufferLimits(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const self = pipe.of(object);
    try transport.setLimits(self, argv, names);
    try transport.maybePause(self);
    return py.newNone();
}

fn getConnLost(object: *Object) py.Error!*Object {
    return py.newInt(pipe.of(object).conn_lost);
}

fn getProtocolPaused(object: *Object) py.Error!*Object {
    return py.newBool(pipe.of(object).protocol_paused);
}

fn repr(object: *Object) callconv(.c) ?*Object {
    const self = pipe.of(object);
    if (self.pipe == null) return c.PyUnicode_FromFormat("<WritePipeTransport closed fd=%d closed>", @as(c_int, self.fd()));
    const state = pipe.activity(self, self.source.watch.armed.write);
    return c.PyUnicode_FromFormat("<WritePipeTransport%s fd=%d %s bufsize=%zd>", pipe.label(self), @as(c_int, self.fd()), state, @as(c.Ssize, @intCast(self.queue.size)));
}

const methods = pipe.methods ++ [_]c.PyMethodDef{
    py.Method.oneArg("set_protocol", setProtocol, "set_protocol($self, protocol)\n--\n\nasyncio.BaseTransport.set_protocol()."),
    py.Method.oneArg("write", write, "write($self, data)\n--\n\nasyncio.WriteTransport.write()."),
    py.Method.noArgs("write_eof", writeEof, "write_eof($self)\n--\n\nasyncio.WriteTransport.write_eof(): closes the pipe when all is written."),
    py.Method.noArgs("can_write_eof", canWriteEof, "can_write_eof($self)\n--\n\nasyncio.WriteTransport.can_write_eof()."),
    py.Method.noArgs("close", writeEof, "close($self)\n--\n\nasyncio.BaseTransport.close(): queued bytes still leave."),
    py.Method.noArgs("abort", abort, "abort($self)\n--\n\nasyncio.WriteTransport.abort(): queued bytes are dropped."),
    py.Method.noArgs("get_write_buffer_size", getWriteBufferSize, "get_write_buffer_size($self)\n--\n\nasyncio.WriteTransport.get_write_buffer_size(), in bytes."),
    py.Method.noArgs("get_write_buffer_limits", getWriteBufferLimits, "get_write_buffer_limits($self)\n--\n\nasyncio.WriteTransport.get_write_buffer_limits(): (low, high) in bytes."),
    py.Method.keywords("set_write_buffer_limits", setWriteBufferLimits, "set_write_buffer_limits($self, high=None, low=None)\n--\n\nasyncio.WriteTransport.set_write_buffer_limits(), in bytes."),
    .{},
};

const properties = pipe.properties ++ [_]c.PyGetSetDef{
    py.getter("_conn_lost", getConnLost),
    py.getter("_protocol_paused", getProtocolPaused),
    .{},
};

pub const spec = pipe.spec("zloop._engine.WritePipeTransport", repr, &methods, &properties);
