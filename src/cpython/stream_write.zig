//! Writing to a stream: queue, flow control, and when bytes leave.
//!
//! Bytes written during a turn leave at its end, or after the callback that runs past `flush_delay_max_ns`,
//! all in one system call: a response's head and body cost one, and the peer is woken once by the responses of
//! many connections. asyncio sends at once, and wherever a program can tell the difference the bytes are in the
//! kernel as with asyncio:
//!
//! - Only answers wait: what is written before the peer has said anything leaves at once. So does everything while
//!   the program holds the socket object itself, or once it has got at the descriptor, and what another thread
//!   writes (`mayWait`).
//! - What has waited leaves before `drain()` of a stream goes on, before a method of the socket object, a fork, the
//!   end of the run, `write_eof()`, `close()` or `abort()` does anything (`settle`, `flushDirty`).
//! - Asking for the buffer size, or queueing more than the high-water mark, sends first, so `pause_writing` is called
//!   only for bytes the kernel refused.

const std = @import("std");
const config = @import("config");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const handle_context = @import("handle_context.zig");
const raise = @import("raise.zig");
const loop_type = @import("loop_type.zig");
const stream = @import("stream.zig");
const stream_close = @import("stream_close.zig");
const tls = @import("tls.zig");
const tls_write = @import("tls_write.zig");
const transport = @import("transport.zig");
const State = @import("state.zig").State;

const Object = py.Object;
const Fields = stream.Fields;
const LoopFields = loop_type.Fields;
const gpa = loop_type.gpa;

/// A bytes object in a queue.
pub const Owner = struct {
    object: *Object,

    pub fn release(self: Owner) void {
        py.decref(self.object);
    }
};

pub const Queue = core.WriteQueue(Owner);

const wanted = if (config.py_minor >= 14) "a bytes, bytearray, or memoryview object" else "a bytes-like object";

fn write(object: *Object, data: *Object) py.Error!*Object {
    const self = stream.of(object);
    if (!transport.isBytesLike(data)) {
        const name = try py.check(c.PyObject_GetAttrString(@ptrCast(py.typeOf(data)), "__name__"));
        defer py.decref(name);
        return py.raiseFormat(c.PyExc_TypeError, "data argument must be " ++ wanted ++ ", not %R", .{name});
    }
    if (self.eof_written) return py.raise(c.PyExc_RuntimeError, "Cannot call write() after write_eof()");
    if (self.empty_waiter != null) return py.raise(c.PyExc_RuntimeError, "unable to write; sendfile is in progress");
    const bytes = if (py.isExact(data, &c.PyBytes_Type)) py.newRef(data) else try sendOrCopy(self, data) orelse return py.newNone();
    defer py.decref(bytes);
    if (py.bytesOf(bytes).len == 0 or try isLost(self)) return py.newNone();
    if (self.loop.core.isForked()) dropParents(self);
    try push(self, py.newRef(bytes));
    try written(self);
    return py.newNone();
}

/// What the program can change has to be copied to be sent later. From this size on it is sent at once, as
/// asyncio sends everything.
const mutable_direct_from = 16 * 1024;

/// Null if the data could go at once: the kernel has it, or a copy of its rest is queued.
fn sendOrCopy(self: *Fields, data: *Object) py.Error!?*Object {
    var view: c.Py_buffer = undefined;
    try py.checkInt(c.PyObject_GetBuffer(data, &view, c.PyBUF_FULL_RO));
    defer c.PyBuffer_Release(&view);
    // A buffer can be the program's own code, which can have written to the transport or ended it.
    const sends = view.len >= mutable_direct_from and self.conn_lost == 0 and self.queue.isEmpty();
    if (!sends or c.PyBuffer_IsContiguous(&view, 'C') == 0) return try transport.copyOfView(&view);
    const start: [*]const u8 = @ptrCast(view.buf.?);
    try sendBorrowed(self, start[0..@intCast(view.len)]);
    try maybePause(self);
    return null;
}

fn writelines(object: *Object, list: *Object) py.Error!*Object {
    const self = stream.of(object);
    if (self.eof_written) return py.raise(c.PyExc_RuntimeError, "Cannot call writelines() after write_eof()");
    if (self.empty_waiter != null) return py.raise(c.PyExc_RuntimeError, "unable to writelines; sendfile is in progress");
    var pieces: transport.Pieces = try .take(list);
    defer pieces.deinit();
    if (pieces.list.items.len == 0 or try isLost(self)) return py.newNone();
    if (self.loop.core.isForked()) dropParents(self);
    for (pieces.list.items) |piece| try push(self, py.newRef(piece));
    try written(self);
    return py.newNone();
}

/// Whether the peer has gone: then what is written is dropped, as asyncio drops it.
fn isLost(self: *Fields) py.Error!bool {
    if (self.conn_lost == 0) return false;
    try transport.countLostWrite(self, "socket.send() raised exception.");
    return true;
}

/// Queues a bytes object, whose reference it takes.
pub fn push(self: *Fields, bytes: *Object) py.Error!void {
    self.queue.push(&self.loop.write_pool, gpa, py.bytesOf(bytes), .{ .object = bytes }) catch return py.noMemory();
}

/// After bytes were queued: sends now, by the end of the turn, or when the kernel has room.
pub fn written(self: *Fields) py.Error!void {
    if (self.source.watch.armed.write) return maybePause(self);
    if (self.loop.core.isForked()) return send(self);
    if (self.queue.size > self.high_water or !mayWait(self)) {
        try flush(self);
        return maybePause(self);
    }
    try markDirty(self);
}

/// When what is written to a transport is given to the kernel.
pub const Leaving = enum {
    /// At once, as in asyncio: the program has asked for it, or uses the descriptor itself.
    at_once,
    /// At once until something has come from the peer; from then on with the turn.
    until_heard,
    /// By the end of the turn.
    with_turn,
};

/// Something has come from the peer.
pub inline fn heard(self: *Fields) void {
    if (self.leaving == .until_heard) self.leaving = .with_turn;
}

/// Whether what has just been written may wait for the end of the turn.
fn mayWait(self: *const Fields) bool {
    return self.leaving == .with_turn and mayWaitOnceHeard(self);
}

/// As `mayWait` for TLS, which hears from its peer by itself.
pub fn mayWaitOnceHeard(self: *const Fields) bool {
    const loop = self.loop;
    return loop.in_callback and !loop.send_at_once and self.leaving != .at_once and
        !isSocketHeld(self) and !loop.isForeignThread();
}

/// Whether somebody else than the transport can use its socket object: whoever made it, most of all.
fn isSocketHeld(self: *const Fields) bool {
    const sock = self.sock orelse return false;
    return py.refcount(sock) > @as(usize, 1) + @intFromBool(self.socket_shown);
}

/// The program gets at the descriptor, and can use it at any time from now on.
pub fn letOut(self: *Fields) py.Error!void {
    self.leaving = .at_once;
    try settleFromAnyThread(self);
}

/// As `settle` for what a program calls in threads of its own. Without the GIL they must not touch the queue:
/// there the bytes leave at the end of the turn.
fn settleFromAnyThread(self: *Fields) py.Error!void {
    if (config.gil_disabled and self.loop.isForeignThread()) return;
    try settle(self);
}

/// Before the transport, of a stream or of TLS over one, says whether it is closing. That is all that
/// `StreamWriter.drain()` asks of it, if the protocol is one of those that drain() stands on.
pub fn settleForDrain(asked: anytype, self: *Fields) py.Error!void {
    if (self.dirty and (asked.delivery == .reader or try isDrained(self.loop.state, asked.protocol))) try settle(self);
}

fn isDrained(state: *const State, protocol: ?*Object) py.Error!bool {
    const answer = c.PyObject_IsInstance(protocol orelse return false, state.flow_control_mixin);
    if (answer < 0) return error.Python;
    return answer == 1;
}

/// For so long bytes wait for others of the same turn. Longer gains little, and callbacks that compute would
/// keep the answers of those before them.
const flush_delay_max_ns = 100 * std.time.ns_per_us;

pub inline fn isFlushDue(loop: *const LoopFields) bool {
    return core.clock.nowNs() -| loop.dirty_since_ns >= flush_delay_max_ns;
}

/// Has the transport flushed by the end of the turn.
pub fn markDirty(self: *Fields) py.Error!void {
    if (self.dirty) return;
    if (self.loop.dirty.len == 0) self.loop.dirty_since_ns = core.clock.nowNs();
    self.loop.dirty.push(gpa, &self.source) catch return py.noMemory();
    py.incref(self.object());
    self.dirty = true;
    if (!self.handling) py.replace(&self.dirty_context, try handle_context.current(self.loop.state));
}

/// Sends what callbacks wrote, on every transport they wrote to, also when a protocol that is told to pause
/// ends the run.
pub fn flushDirty(loop: *LoopFields) py.Error!void {
    while (loop.dirty.pop()) |source| {
        flushOne(.ofSource(source)) catch |err| {
            if (loop.dirty.len == 0) return err;
            const left: py.Saved = .save();
            flushDirty(loop) catch c.PyErr_WriteUnraisable(null);
            left.restore();
            return err;
        };
    }
}

/// Takes the queue's reference over.
fn flushOne(self: *Fields) py.Error!void {
    defer py.decref(self.object());
    self.dirty = false;
    defer py.clear(&self.dirty_context);
    if (self.source.watch.armed.write) return;
    try flushLate(self);
    if (self.delivery != .tls) try transport.maybePauseEntered(self);
}

/// Sends what was written before, for whoever wrote it.
fn flushLate(self: *Fields) py.Error!void {
    if (self.dirty_context == null) self.dirty_context = py.newRef(self.context.?);
    return flush(self);
}

/// Sends at once what can be sent, for callers that are about to look at the queue.
pub fn settle(self: *Fields) py.Error!void {
    if (self.dirty and !self.source.watch.armed.write) try flushLate(self);
}

/// Sends as much as the kernel takes and arms the watch for the rest. A failed send ends the
/// connection; the exception is reported, not raised.
fn flush(self: *Fields) py.Error!void {
    if (self.loop.core.isForked()) return dropParents(self);
    return send(self);
}

/// In a forked child: what was queued before is the parent's to send, once.
fn dropParents(self: *Fields) void {
    self.queue.clear(&self.loop.write_pool, gpa);
    const above = tlsOf(self) orelse return;
    defer py.decref(above.object());
    tls_write.dropOutput(above);
}

fn send(self: *Fields) py.Error!void {
    if (tlsOf(self)) |above| {
        defer py.decref(above.object());
        try tls_write.sendNow(above);
    }
    if (self.queue.isEmpty()) return;
    if (!self.ownsNumber()) return sendFailed(self, .BADF);
    switch (self.queue.flush(&self.loop.write_pool, gpa, self.fd(), core.sys.send, core.sys.sendv)) {
        .done => {},
        .would_block => if (!self.loop.closed) try armWrite(self),
        .failed => |code| try sendFailed(self, code),
    }
}

/// Sends bytes that stay the caller's; what the kernel refuses is copied and queued.
pub fn sendBorrowed(self: *Fields, bytes: []const u8) py.Error!void {
    if (!self.ownsNumber()) return sendFailed(self, .BADF);
    var rest = bytes;
    if (self.queue.isEmpty()) switch (core.sys.send(self.fd(), bytes)) {
        .done => |count| rest = bytes[count..],
        .would_block => {},
        .failed => |code| return sendFailed(self, code),
    };
    if (rest.len == 0) return;
    try push(self, try py.newBytes(rest));
    if (!self.loop.closed) try armWrite(self);
}

fn armWrite(self: *Fields) py.Error!void {
    try transport.armWrite(self, self.dirty_context, arm);
}

fn arm(self: *Fields, interest: core.reactor.Interest) py.Error!void {
    try self.source.arm(self.loop, interest);
}

fn sendFailed(self: *Fields, code: core.sys.Errno) py.Error!void {
    const was_handling = self.handling;
    defer self.handling = was_handling;
    if (!Fields.has_one_context and self.conn_lost == 0) if (self.dirty_context) |written_in| {
        // asyncio would have found out in write().
        py.replace(&self.context, try py.check(c.PyContext_Copy(written_in)));
        self.handling = true;
    };
    raise.errno(code) catch {};
    const exception = py.takeException();
    defer py.decref(exception);
    const waiter = if (self.empty_waiter) |future| py.newRef(future) else null;
    defer py.xdecref(waiter);
    try stream_close.fatalError(self, exception, "Fatal write error on socket transport");
    if (waiter) |future| {
        // The future may be done by now through connection_lost.
        py.decref(try py.callMethod(future, self.loop.state.name(.set_exception), .{exception}));
    }
}

/// The SSLTransport above, if there is one. A new reference, by its fields: what it calls can give the stream
/// another protocol.
fn tlsOf(self: *Fields) ?*tls.Fields {
    if (self.delivery != .tls) return null;
    return tls.of(py.newRef(self.protocol orelse return null));
}

/// The kernel has room again.
pub fn ready(self: *Fields) py.Error!void {
    const context = py.newRef(transport.writerContext(self));
    defer py.decref(context);
    try py.inContext(context, sendQueued, .{self});
    if (!self.closing or self.conn_lost > 0 or !self.queue.isEmpty()) return;
    self.conn_lost = 1;
    py.replace(&self.context, py.newRef(context));
    try stream_close.connectionLost(self);
}

fn sendQueued(self: *Fields) py.Error!void {
    if (self.conn_lost > 0) return;
    if (!self.ownsNumber()) return sendFailed(self, .BADF);
    switch (self.queue.flush(&self.loop.write_pool, gpa, self.fd(), core.sys.send, core.sys.sendv)) {
        .failed => |code| return sendFailed(self, code),
        .done, .would_block => {},
    }
    // resume_writing may write more.
    try maybeResume(self);
    if (self.conn_lost > 0) return;
    if (!self.queue.isEmpty()) return;
    self.source.disarm(self.loop, .{ .read = self.source.watch.armed.read });
    py.clear(&self.writer_context);
    if (self.empty_waiter) |borrowed| {
        const waiter = py.newRef(borrowed);
        defer py.decref(waiter);
        py.decref(try py.callMethod(waiter, self.loop.state.name(.set_result), .{py.none()}));
    }
    if (!self.closing and self.eof_written) shutdownWrite(self);
}

/// asyncio lets the error of this call go to the exception handler; a peer that has gone makes the
/// next read say so anyway.
fn shutdownWrite(self: *Fields) void {
    if (self.ownsNumber()) _ = core.sys.shutdownWrite(self.fd());
}

fn maybePause(self: *Fields) py.Error!void {
    // TLS counts the whole stack by itself.
    if (self.delivery != .tls) try transport.maybePause(self);
}

fn maybeResume(self: *Fields) py.Error!void {
    if (tlsOf(self)) |above| {
        defer py.decref(above.object());
        return tls_write.drained(above);
    }
    try transport.maybeResume(self);
}

fn writeEof(object: *Object) py.Error!*Object {
    const self = stream.of(object);
    if (self.closing or self.eof_written) return py.newNone();
    self.eof_written = true;
    try settle(self);
    if (self.queue.isEmpty() and !self.closing) {
        if (!self.ownsNumber()) return raise.errno(.BADF);
        if (core.sys.shutdownWrite(self.fd())) |code| return raise.errno(code);
    }
    return py.newNone();
}

fn canWriteEof(_: *Object) py.Error!*Object {
    return py.newBool(true);
}

fn getWriteBufferSize(object: *Object) py.Error!*Object {
    const self = stream.of(object);
    try settle(self);
    return py.newInt(self.queue.size);
}

fn getWriteBufferLimits(object: *Object) py.Error!*Object {
    return transport.limits(stream.of(object));
}

fn setWriteBufferLimits(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const self = stream.of(object);
    try transport.setLimits(self, argv, names);
    try settle(self);
    try maybePause(self);
    return py.newNone();
}

fn makeEmptyWaiter(object: *Object) py.Error!*Object {
    const self = stream.of(object);
    if (self.empty_waiter != null) return py.raise(c.PyExc_RuntimeError, "Empty waiter is already set");
    try settle(self);
    const future = try @import("loop_tasks.zig").newFuture(self.loop);
    py.replace(&self.empty_waiter, py.newRef(future));
    errdefer py.decref(future);
    if (self.queue.isEmpty()) {
        py.decref(try py.callMethod(future, self.loop.state.name(.set_result), .{py.none()}));
    }
    return future;
}

fn setSendAtOnce(object: *Object, enabled: *Object) py.Error!*Object {
    const self = stream.of(object);
    self.leaving = if (try py.isTrue(enabled)) .at_once else .with_turn;
    if (self.leaving == .at_once) try settle(self);
    return py.newNone();
}

fn settleMethod(object: *Object) py.Error!*Object {
    try settleFromAnyThread(stream.of(object));
    return py.newNone();
}

fn letOutMethod(object: *Object) py.Error!*Object {
    try letOut(stream.of(object));
    return py.newNone();
}

fn resetEmptyWaiter(object: *Object) py.Error!*Object {
    py.clear(&stream.of(object).empty_waiter);
    return py.newNone();
}

pub const set_send_at_once_doc = "set_send_at_once($self, enabled, /)\n--\n\nWhether write() gives its bytes to the kernel before it returns, as in asyncio, or by the end of the loop's turn.";

pub const methods = [_]c.PyMethodDef{
    py.Method.oneArg("write", write, "write($self, data)\n--\n\nasyncio.WriteTransport.write()."),
    py.Method.oneArg("writelines", writelines, "writelines($self, list_of_data)\n--\n\nasyncio.WriteTransport.writelines()."),
    py.Method.noArgs("write_eof", writeEof, "write_eof($self)\n--\n\nasyncio.WriteTransport.write_eof()."),
    py.Method.noArgs("can_write_eof", canWriteEof, "can_write_eof($self)\n--\n\nasyncio.WriteTransport.can_write_eof()."),
    py.Method.noArgs("get_write_buffer_size", getWriteBufferSize, "get_write_buffer_size($self)\n--\n\nasyncio.WriteTransport.get_write_buffer_size(), in bytes."),
    py.Method.noArgs("get_write_buffer_limits", getWriteBufferLimits, "get_write_buffer_limits($self)\n--\n\nasyncio.WriteTransport.get_write_buffer_limits(): (low, high) in bytes."),
    py.Method.keywords("set_write_buffer_limits", setWriteBufferLimits, "set_write_buffer_limits($self, high=None, low=None)\n--\n\nasyncio.WriteTransport.set_write_buffer_limits(), in bytes."),
    py.Method.oneArg("set_send_at_once", setSendAtOnce, set_send_at_once_doc),
    py.Method.noArgs("_settle", settleMethod, "_settle($self)\n--\n\nGives what waits for the end of the turn to the kernel."),
    py.Method.noArgs("_let_out", letOutMethod, "_let_out($self)\n--\n\n_settle(), and from now on what is written leaves at once."),
    py.Method.noArgs("_make_empty_waiter", makeEmptyWaiter, "_make_empty_waiter($self)\n--\n\nA future for \"all is sent\"; asyncio's sendfile uses it."),
    py.Method.noArgs("_reset_empty_waiter", resetEmptyWaiter, "_reset_empty_waiter($self)\n--\n\nEnds what _make_empty_waiter() began."),
};
