//! Reading: ciphertext comes from the stream's read buffer, plaintext goes to the protocol the way
//! it takes it. One delivery holds all that has come.
//!
//! A failure's exception is taken before the plaintext that came ahead of it is delivered: the
//! program's code may use OpenSSL itself and so empty the thread's error queue.

const std = @import("std");
const c = @import("c.zig");
const py = @import("py.zig");
const loop_type = @import("loop_type.zig");
const openssl = @import("openssl.zig");
const stream = @import("stream.zig");
const stream_reader = @import("stream_reader.zig");
const tls = @import("tls.zig");
const tls_life = @import("tls_life.zig");
const tls_write = @import("tls_write.zig");

const Object = py.Object;
const Fields = tls.Fields;
const gpa = loop_type.gpa;

/// Up to this much ciphertext is decrypted into the loop's scratch buffer and copied out at its
/// exact size; more goes straight into a bytes object.
const scratch_from_max = 16 * 1024;
/// What OpenSSL can hold of a record that has come in part, and of one that was read in part.
const held_max = 2 * (16 * 1024 + 512);
/// Room for `scratch_from_max` and all that can be held.
pub const scratch_size = scratch_from_max + held_max;

const End = enum {
    /// The target is full; there is more.
    full,
    /// All that has come is decrypted.
    drained,
    /// close_notify.
    closed,
    /// The connection is unusable.
    failed,
};

/// Decrypts into `target` behind `count`, as much as there is.
fn decrypt(self: *Fields, target: []u8, count: *usize) End {
    while (count.* < target.len) {
        var got: usize = 0;
        const waiting = self.channel.out.items.len;
        self.table.clearErrors();
        self.in_ssl = true;
        const result = self.table.SSL_read_ex(self.ssl, target.ptr + count.*, target.len - count.*, &got);
        self.in_ssl = false;
        if (self.channel.out.items.len > waiting and floods(self, waiting)) return .failed;
        if (result <= 0) return switch (self.table.SSL_get_error(self.ssl, result)) {
            openssl.error_want_read, openssl.error_want_write => .drained,
            openssl.error_zero_return => .closed,
            else => .failed,
        };
        count.* += got;
        self.heard = true;
        if (!hasMore(self)) return .drained;
    }
    return .full;
}

/// Counts what OpenSSL has just answered, `waiting` bytes being there before. True if the peer has
/// made it answer far more than it reads.
fn floods(self: *Fields, waiting: usize) bool {
    @branchHint(.cold);
    const all_had_left = waiting == 0 and if (self.below()) |below| below.queue.isEmpty() else true;
    if (all_had_left) self.answered = 0;
    self.answered += self.channel.out.items.len - waiting;
    return self.answered > tls_life.answered_max;
}

inline fn hasMore(self: *Fields) bool {
    return self.channel.in.len > 0 or self.table.SSL_has_pending(self.ssl) != 0;
}

/// Ciphertext has come. What cannot be used yet is kept.
pub fn received(self: *Fields, bytes: []const u8) py.Error!void {
    try take(self, bytes);
    // What is left to be sent may have waited for a handshake in between to go on, or `close()` was
    // called from inside OpenSSL.
    if (self.phase == .flushing and !self.receiving) try tls_life.continueFlushing(self);
}

fn take(self: *Fields, bytes: []const u8) py.Error!void {
    const not_begun = self.phase == .unwrapped and self.stream == null;
    if (self.receiving or not_begun) return keep(self, bytes);
    if (self.phase == .unwrapped) return;
    // The stash comes first; the new bytes join it only then.
    var kept: std.ArrayList(u8) = .empty;
    if (self.stash.items.len > 0) {
        try keep(self, bytes);
        self.receiving = true;
        kept = self.stash;
        self.stash = .empty;
        self.channel.in = kept.items;
    } else {
        self.receiving = true;
        self.channel.in = bytes;
    }
    const result = work(self);
    const rest = self.channel.in;
    self.channel.in = &.{};
    self.receiving = false;
    defer kept.deinit(gpa);
    const left: ?py.Saved = if (result) |_| null else |_| .save();
    if (rest.len > 0 and self.phase != .unwrapped) try putBack(self, rest);
    if (left) |saved| {
        saved.restore();
        return error.Python;
    }
    if (self.stash.items.len > 0 or self.stream_reading_paused) try controlReading(self);
}

fn keep(self: *Fields, bytes: []const u8) py.Error!void {
    self.stash.appendSlice(gpa, bytes) catch return py.noMemory();
}

/// Keeps `rest`, in front of what came while it was worked on.
fn putBack(self: *Fields, rest: []const u8) py.Error!void {
    self.stash.insertSlice(gpa, 0, rest) catch return py.noMemory();
}

fn work(self: *Fields) py.Error!void {
    switch (self.phase) {
        .unwrapped => {},
        .handshake => try tls_life.handshake(self),
        .wrapped => try read(self),
        .flushing, .shutdown => try discard(self),
    }
}

/// Delivers what has come, then sends what that called forth.
pub fn read(self: *Fields) py.Error!void {
    readAll(self) catch return tls_life.fatalPending(self);
}

fn readAll(self: *Fields) py.Error!void {
    while (self.phase == .wrapped and !self.app_reading_paused and hasMore(self)) {
        const protocol = py.newRef(self.protocol orelse return);
        defer py.decref(protocol);
        const end = switch (self.delivery) {
            .data, .tls => try readData(self, protocol),
            .buffered => try readBuffered(self, protocol),
            .reader => try readIntoReader(self, protocol),
        };
        switch (end) {
            .full => {},
            .drained => break,
            .closed => return if (self.phase == .wrapped) tls_life.peerClosed(self),
            .failed => return,
        }
    }
    if (self.phase != .wrapped) return;
    if (!self.backlog.isEmpty()) try tls_write.encryptBacklog(self);
    try tls_write.scheduleSend(self);
    if (self.app_writing_paused) try tls_write.controlWriting(self);
}

/// The exception of a failed decryption. From here on OpenSSL is left alone: what the program
/// writes during the last delivery is dropped.
fn failureOf(self: *Fields, end: End) py.Error!?*Object {
    if (end != .failed) return null;
    const exception = try tls_life.takeFailure(self, .read);
    self.phase = .unwrapped;
    return exception;
}

/// After a delivery: the connection ends if the decryption before it failed.
fn conclude(self: *Fields, end: End, failure: ?*Object) py.Error!End {
    if (failure) |exception| try tls_life.fail(self, exception);
    return end;
}

fn readData(self: *Fields, protocol: *Object) py.Error!End {
    var count: usize = 0;
    var end: End = undefined;
    var data: ?*Object = null;
    const expected = self.channel.in.len;
    if (expected <= scratch_from_max) {
        const scratch = try self.loop.takeScratch();
        defer self.loop.putScratch(scratch);
        end = decrypt(self, scratch, &count);
        if (count > 0) data = try py.newBytes(scratch[0..count]);
    } else {
        data = try py.check(c.PyBytes_FromStringAndSize(null, @intCast(expected + held_max)));
        end = decrypt(self, py.bytesOf(data.?), &count);
        if (count == 0) {
            py.clear(&data);
        } else if (c._PyBytes_Resize(&data, @intCast(count)) < 0) return error.Python;
    }
    defer py.xdecref(data);
    const failure = try failureOf(self, end);
    defer py.xdecref(failure);
    if (data) |bytes| try deliver(self, protocol, bytes);
    return conclude(self, end, failure);
}

fn deliver(self: *Fields, protocol: *Object, data: *Object) py.Error!void {
    py.decref(try py.callMethod(protocol, self.loop.state.name(.data_received), .{data}));
}

fn readBuffered(self: *Fields, protocol: *Object) py.Error!End {
    const state = self.loop.state;
    const hint = try py.newInt(self.channel.in.len);
    defer py.decref(hint);
    const target = try py.callMethod(protocol, state.name(.get_buffer), .{hint});
    defer py.decref(target);
    var view: c.Py_buffer = undefined;
    try py.checkInt(c.PyObject_GetBuffer(target, &view, c.PyBUF_WRITABLE));
    if (view.len == 0) {
        c.PyBuffer_Release(&view);
        return py.raise(c.PyExc_RuntimeError, "get_buffer() returned an empty buffer");
    }
    // The call can have closed the connection.
    if (self.phase != .wrapped) {
        c.PyBuffer_Release(&view);
        return .drained;
    }
    var count: usize = 0;
    const end = decrypt(self, view.buf.?[0..@intCast(view.len)], &count);
    c.PyBuffer_Release(&view);
    const failure = try failureOf(self, end);
    defer py.xdecref(failure);
    if (count > 0) {
        const filled = try py.newInt(count);
        defer py.decref(filled);
        py.decref(try py.callMethod(protocol, state.name(.buffer_updated), .{filled}));
    }
    return conclude(self, end, failure);
}

fn readIntoReader(self: *Fields, protocol: *Object) py.Error!End {
    const scratch = try self.loop.takeScratch();
    defer self.loop.putScratch(scratch);
    var count: usize = 0;
    const end = decrypt(self, scratch, &count);
    const failure = try failureOf(self, end);
    defer py.xdecref(failure);
    if (count > 0 and !try stream_reader.feed(self.loop.state, protocol, scratch[0..count])) {
        const data = try py.newBytes(scratch[0..count]);
        defer py.decref(data);
        try deliver(self, protocol, data);
    }
    return conclude(self, end, failure);
}

/// The program has closed: what comes is thrown away, until the peer's close_notify.
pub fn discard(self: *Fields) py.Error!void {
    const below = self.below() orelse return;
    // While the peer takes what is left for it, it may send what it likes.
    if (self.phase == .shutdown and below.queue.isEmpty()) self.discarded += self.channel.in.len;
    const scratch = try self.loop.takeScratch();
    defer self.loop.putScratch(scratch);
    while (self.phase == .flushing or self.phase == .shutdown) {
        var count: usize = 0;
        switch (decrypt(self, scratch, &count)) {
            .full => {},
            .drained => break,
            .closed => return if (self.phase == .shutdown) tls_life.shutdownDone(self),
            .failed => {
                const failure = try tls_life.takeFailure(self, .read);
                defer py.decref(failure);
                return tls_life.fail(self, failure);
            },
        }
    }
    try tls_write.scheduleSend(self);
    if (self.discarded > tls_life.discarded_max) try tls_life.abort(self, null);
}

/// Pauses and resumes the stream below by how much ciphertext waits.
pub fn controlReading(self: *Fields) py.Error!void {
    const below = self.below() orelse return;
    const waiting = self.stash.items.len;
    if (!self.stream_reading_paused and waiting > 0 and waiting >= self.read_high_water) {
        self.stream_reading_paused = true;
        py.decref(try py.callMethod(below.object(), self.loop.state.name(.pause_reading), .{}));
    } else if (self.stream_reading_paused and waiting <= self.read_low_water) {
        try readAgainBelow(self);
    }
}

pub fn readAgainBelow(self: *Fields) py.Error!void {
    if (!self.stream_reading_paused) return;
    self.stream_reading_paused = false;
    const below = self.below() orelse return;
    py.decref(try py.callMethod(below.object(), self.loop.state.name(.resume_reading), .{}));
}

fn dataReceived(object: *Object, data: *Object) py.Error!*Object {
    var view: c.Py_buffer = undefined;
    try py.checkInt(c.PyObject_GetBuffer(data, &view, c.PyBUF_SIMPLE));
    defer c.PyBuffer_Release(&view);
    if (view.len > 0) try received(tls.of(object), view.buf.?[0..@intCast(view.len)]);
    return py.newNone();
}

fn isReading(object: *Object) py.Error!*Object {
    const self = tls.of(object);
    return py.newBool(!self.app_reading_paused and !self.closed);
}

fn pauseReading(object: *Object) py.Error!*Object {
    tls.of(object).app_reading_paused = true;
    return py.newNone();
}

fn resumeReading(object: *Object) py.Error!*Object {
    const self = tls.of(object);
    if (!self.app_reading_paused) return py.newNone();
    self.app_reading_paused = false;
    const waits = self.stash.items.len > 0 or self.channel.in.len > 0 or self.eof_seen or
        (self.isOpen() and self.table.SSL_has_pending(self.ssl) != 0);
    if (!waits) return py.newNone();
    const state = self.loop.state;
    const callback = try py.getAttr(object, state.name(._resumed));
    defer py.decref(callback);
    py.decref(try py.callMethod(self.loop.object(), state.name(.call_soon), .{callback}));
    return py.newNone();
}

/// The program reads again, a turn after it said so.
fn resumed(object: *Object) py.Error!*Object {
    const self = tls.of(object);
    if (self.phase != .wrapped or self.app_reading_paused) return py.newNone();
    if (self.eof_seen) try tls_life.deliverRest(self) else try received(self, &.{});
    return py.newNone();
}

pub const methods = [_]c.PyMethodDef{
    py.Method.noArgs("is_reading", isReading, "is_reading($self)\n--\n\nasyncio.ReadTransport.is_reading()."),
    py.Method.noArgs("pause_reading", pauseReading, "pause_reading($self)\n--\n\nasyncio.ReadTransport.pause_reading()."),
    py.Method.noArgs("resume_reading", resumeReading, "resume_reading($self)\n--\n\nasyncio.ReadTransport.resume_reading()."),
    py.Method.oneArg("data_received", dataReceived, "data_received($self, data)\n--\n\nCiphertext from somewhere else than the stream below, ahead of what it brings."),
    py.Method.noArgs("_resumed", resumed, null),
};
