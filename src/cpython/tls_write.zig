//! Writing: plaintext is encrypted as it is written, into `channel.out`, which leaves in one send
//! by the end of the turn. What there is no room for waits as plaintext, uncopied.
//!
//! The limits count the whole stack: plaintext, ciphertext and what the stream below has queued.

const c = @import("c.zig");
const py = @import("py.zig");
const args = @import("args.zig");
const loop_type = @import("loop_type.zig");
const openssl = @import("openssl.zig");
const stream = @import("stream.zig");
const stream_write = @import("stream_write.zig");
const tls = @import("tls.zig");
const tls_life = @import("tls_life.zig");
const transport = @import("transport.zig");

const Object = py.Object;
const Fields = tls.Fields;
const gpa = loop_type.gpa;

/// OpenSSL encrypts all that one call gives it; in between there is a look at what has piled up.
const write_size_max = 4 * 16 * 1024;

/// With this much ciphertext waiting, nothing more is encrypted.
const ciphertext_max = 256 * 1024;

fn write(object: *Object, data: *Object) py.Error!*Object {
    const self = tls.of(object);
    if (!transport.isBytesLike(data)) {
        const name = try py.check(c.PyObject_GetAttrString(@ptrCast(py.typeOf(data)), "__name__"));
        defer py.decref(name);
        return py.raiseFormat(c.PyExc_TypeError, "data: expecting a bytes-like instance, got %U", .{name});
    }
    const bytes = try transport.immutable(data);
    defer py.decref(bytes);
    if (py.bytesOf(bytes).len == 0 or try isOver(self)) return py.newNone();
    try writeBytes(self, bytes);
    try written(self);
    return py.newNone();
}

fn writelines(object: *Object, list: *Object) py.Error!*Object {
    const self = tls.of(object);
    var pieces: transport.Pieces = try .take(list);
    defer pieces.deinit();
    if (pieces.list.items.len == 0 or try isOver(self)) return py.newNone();
    for (pieces.list.items) |piece| try writeBytes(self, piece);
    try written(self);
    return py.newNone();
}

/// Whether the connection is closing or gone: then what is written is dropped, as asyncio drops it.
fn isOver(self: *Fields) py.Error!bool {
    switch (self.phase) {
        .handshake, .wrapped => return false,
        // Written before the connection is made: it waits.
        .unwrapped => if (self.stream == null and !self.closed) return false,
        .flushing, .shutdown => {},
    }
    try transport.countLostWrite(self, "SSL connection is closed");
    return true;
}

/// Encrypts what there is room for and queues the rest.
fn writeBytes(self: *Fields, bytes: *Object) py.Error!void {
    var plain: []const u8 = py.bytesOf(bytes);
    if (self.phase == .wrapped and self.backlog.isEmpty() and !self.in_ssl) {
        plain = plain[try encrypt(self, plain)..];
        // A failure has ended the connection.
        if (plain.len == 0 or self.phase != .wrapped or self.isLost()) return;
    }
    self.backlog.push(&self.loop.write_pool, gpa, plain, .{ .object = py.newRef(bytes) }) catch return py.noMemory();
}

/// After the program wrote: its bytes leave now or with the turn.
fn written(self: *Fields) py.Error!void {
    const may_wait = if (self.below()) |below| self.heard and stream_write.mayWaitOnceHeard(below) else true;
    if (may_wait) try scheduleSend(self) else try sendNow(self);
    try controlWriting(self);
}

/// How much of `plain` has been encrypted: all, or as much as there was room for, or what went
/// before a failure, which has been dealt with.
fn encrypt(self: *Fields, plain: []const u8) py.Error!usize {
    var done: usize = 0;
    while (done < plain.len) {
        if (self.channel.out.items.len >= ciphertext_max) {
            try sendNow(self);
            const below = self.below() orelse return done;
            if (below.conn_lost > 0 or self.channel.out.items.len + below.queue.size >= ciphertext_max) return done;
        }
        var count: usize = 0;
        self.table.clearErrors();
        self.in_ssl = true;
        const size_now = @min(plain.len - done, write_size_max);
        const result = self.table.SSL_write_ex(self.ssl, plain.ptr + done, size_now, &count);
        self.in_ssl = false;
        if (result <= 0) {
            switch (self.table.SSL_get_error(self.ssl, result)) {
                // A handshake in between (renegotiation) has to hear from the peer first.
                openssl.error_want_read, openssl.error_want_write => {},
                else => try tls_life.failed(self, .write),
            }
            return done;
        }
        done += count;
    }
    return done;
}

/// Encrypts waiting plaintext while there is room.
pub fn encryptBacklog(self: *Fields) py.Error!void {
    if (self.in_ssl) return;
    while (self.backlog.first) |node| {
        if (self.phase != .wrapped and self.phase != .flushing) return;
        // A callback of OpenSSL's can empty the queue.
        const held = py.newRef(node.owner.object);
        defer py.decref(held);
        const count = try encrypt(self, node.bytes);
        // A failed write has ended the connection and emptied nothing yet.
        if (self.isLost()) return;
        if (count == 0) return;
        self.backlog.consume(&self.loop.write_pool, gpa, count);
    }
}

/// Has `channel.out` sent: by the end of the turn, or now.
pub fn scheduleSend(self: *Fields) py.Error!void {
    if (self.channel.out.items.len == 0) return;
    const below = self.below() orelse return dropOutput(self);
    // It goes when the kernel has room.
    if (below.source.watch.armed.write) return;
    if (!self.loop.in_callback or self.channel.out.items.len >= ciphertext_max) return sendNow(self);
    try stream_write.markDirty(below);
}

/// Gives `channel.out` to the stream, as far as it can be sent. Calls nothing of the program's.
pub fn sendNow(self: *Fields) py.Error!void {
    if (self.channel.out.items.len == 0) return;
    const below = self.below() orelse return dropOutput(self);
    // A child's copy of the connection: OpenSSL's part of it has gone on in the parent.
    if (self.loop.core.isForked()) return dropOutput(self);
    if (self.held) return;
    if (below.source.watch.armed.write and !below.queue.isEmpty() and below.conn_lost == 0 and !below.closing) return;
    const taken = self.channel.out;
    self.channel.out = .empty;
    defer self.loop.tls_pool.give(taken);
    if (below.conn_lost > 0) return;
    try stream_write.sendBorrowed(below, taken.items);
}

pub fn dropOutput(self: *Fields) void {
    const taken = self.channel.out;
    self.channel.out = .empty;
    if (taken.capacity > 0) self.loop.tls_pool.give(taken);
}

/// The stream below has sent something, perhaps all it had.
pub fn drained(self: *Fields) py.Error!void {
    if (self.lost) return;
    if (self.isOpen()) {
        const below = self.below() orelse return;
        if (below.queue.isEmpty()) try sendNow(self);
        if (self.phase == .flushing) {
            try tls_life.continueFlushing(self);
        } else {
            try encryptBacklog(self);
            try sendNow(self);
        }
    } else try sendNow(self);
    try controlWriting(self);
    // resume_writing may have written: the stream is about to stop asking the kernel for room.
    try sendNow(self);
}

fn size(self: *Fields) usize {
    const queued = if (self.below()) |below| below.queue.size else 0;
    return self.backlog.size + self.channel.out.items.len + queued;
}

/// Tells the protocol to pause or to go on. Before the verdict what can be sent is sent, so only
/// bytes that the kernel refused count.
pub fn controlWriting(self: *Fields) py.Error!void {
    if (!self.app_writing_paused) {
        if (size(self) < self.high_water or size(self) == 0) return;
        try sendNow(self);
        if (size(self) < self.high_water or size(self) == 0) return;
        self.app_writing_paused = true;
        try callFlowControl(self, .pause_writing, "protocol.pause_writing() failed");
    } else if (size(self) <= self.low_water) {
        self.app_writing_paused = false;
        try callFlowControl(self, .resume_writing, "protocol.resume_writing() failed");
    }
}

fn callFlowControl(self: *Fields, comptime method: @import("state.zig").Name, comptime message: [:0]const u8) py.Error!void {
    const protocol = py.newRef(self.protocol orelse return);
    defer py.decref(protocol);
    if (py.callMethod(protocol, self.loop.state.name(method), .{})) |result| {
        py.decref(result);
    } else |err| {
        if (py.isExit()) return err;
        const exception = py.takeException();
        defer py.decref(exception);
        if (self.below()) |below| try @import("stream_close.zig").report(below, exception, message);
    }
}

/// Whoever stands where asyncio's stream below would be: what is written waits.
fn pauseWriting(object: *Object) py.Error!*Object {
    tls.of(object).held = true;
    return py.newNone();
}

fn resumeWriting(object: *Object) py.Error!*Object {
    const self = tls.of(object);
    self.held = false;
    try drained(self);
    return py.newNone();
}

/// asyncio's own tests fill the backlog this way.
fn appendBacklog(object: *Object, data: *Object) py.Error!*Object {
    const self = tls.of(object);
    const bytes = try transport.immutable(data);
    self.backlog.push(&self.loop.write_pool, gpa, py.bytesOf(bytes), .{ .object = bytes }) catch return py.noMemory();
    return py.newNone();
}

fn setSendAtOnce(object: *Object, enabled: *Object) py.Error!*Object {
    const self = tls.of(object);
    const at_once = try py.isTrue(enabled);
    const below = self.below() orelse return py.newNone();
    self.heard = true;
    below.leaving = if (at_once) .at_once else .with_turn;
    if (at_once) try stream_write.settle(below);
    return py.newNone();
}

fn writeEof(_: *Object) py.Error!*Object {
    c.PyErr_SetNone(c.PyExc_NotImplementedError);
    return error.Python;
}

fn canWriteEof(_: *Object) py.Error!*Object {
    return py.newBool(false);
}

fn getWriteBufferSize(object: *Object) py.Error!*Object {
    const self = tls.of(object);
    try sendNow(self);
    return py.newInt(size(self));
}

fn getWriteBufferLimits(object: *Object) py.Error!*Object {
    const self = tls.of(object);
    return limitsTuple(self.low_water, self.high_water);
}

fn limitsTuple(low_water: usize, high_water: usize) py.Error!*Object {
    const low = try py.newInt(low_water);
    defer py.decref(low);
    const high = try py.newInt(high_water);
    defer py.decref(high);
    return py.newTuple(.{ low, high });
}

fn setWriteBufferLimits(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const self = tls.of(object);
    const slots = try args.parse("set_write_buffer_limits", &.{ "high", "low" }, .{}, argv, names);
    const limits = try transport.parseLimits(slots[0], slots[1], 512 * 1024);
    self.high_water = limits.high;
    self.low_water = limits.low;
    try controlWriting(self);
    return py.newNone();
}

fn setReadBufferLimits(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const self = tls.of(object);
    const slots = try args.parse("set_read_buffer_limits", &.{ "high", "low" }, .{}, argv, names);
    const limits = try transport.parseLimits(slots[0], slots[1], 256 * 1024);
    self.read_high_water = limits.high;
    self.read_low_water = limits.low;
    try @import("tls_read.zig").controlReading(self);
    return py.newNone();
}

fn getReadBufferLimits(object: *Object) py.Error!*Object {
    const self = tls.of(object);
    return limitsTuple(self.read_low_water, self.read_high_water);
}

fn getReadBufferSize(object: *Object) py.Error!*Object {
    const self = tls.of(object);
    return py.newInt(self.stash.items.len + self.channel.in.len);
}

pub const methods = [_]c.PyMethodDef{
    py.Method.oneArg("write", write, "write($self, data)\n--\n\nasyncio.WriteTransport.write()."),
    py.Method.oneArg("writelines", writelines, "writelines($self, list_of_data)\n--\n\nasyncio.WriteTransport.writelines()."),
    py.Method.oneArg("set_send_at_once", setSendAtOnce, stream_write.set_send_at_once_doc),
    py.Method.noArgs("pause_writing", pauseWriting, "pause_writing($self)\n--\n\nHolds ciphertext back."),
    py.Method.noArgs("resume_writing", resumeWriting, "resume_writing($self)\n--\n\nEnds what pause_writing() began."),
    py.Method.oneArg("_test__append_write_backlog", appendBacklog, "_test__append_write_backlog($self, data)\n--\n\nFor CPython's own tests."),
    py.Method.noArgs("write_eof", writeEof, "write_eof($self)\n--\n\nNot possible with TLS: raises NotImplementedError."),
    py.Method.noArgs("can_write_eof", canWriteEof, "can_write_eof($self)\n--\n\nasyncio.WriteTransport.can_write_eof(): False."),
    py.Method.noArgs("get_write_buffer_size", getWriteBufferSize, "get_write_buffer_size($self)\n--\n\nasyncio.WriteTransport.get_write_buffer_size(): plaintext and ciphertext that wait, in bytes."),
    py.Method.noArgs("get_write_buffer_limits", getWriteBufferLimits, "get_write_buffer_limits($self)\n--\n\nasyncio.WriteTransport.get_write_buffer_limits(): (low, high) in bytes."),
    py.Method.keywords("set_write_buffer_limits", setWriteBufferLimits, "set_write_buffer_limits($self, high=None, low=None)\n--\n\nasyncio.WriteTransport.set_write_buffer_limits(), in bytes."),
    py.Method.keywords("set_read_buffer_limits", setReadBufferLimits, "set_read_buffer_limits($self, high=None, low=None)\n--\n\nHow much ciphertext may wait while the program does not read, in bytes."),
    py.Method.noArgs("get_read_buffer_limits", getReadBufferLimits, "get_read_buffer_limits($self)\n--\n\n(low, high) in bytes."),
    py.Method.noArgs("get_read_buffer_size", getReadBufferSize, "get_read_buffer_size($self)\n--\n\nCiphertext that waits to be read, in bytes."),
};
