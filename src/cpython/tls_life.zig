//! The life of a TLS connection: handshake, end of the data, shutdown, loss. asyncio's SSLProtocol
//! step by step, with these differences, each to the program's good:
//!
//! - an alert that OpenSSL has written reaches the peer before the connection ends;
//! - after `close()` nothing is delivered any more: what still comes is thrown away until the
//!   peer's close_notify, the shutdown timeout, or `discarded_max` bytes;
//! - a peer that makes OpenSSL answer (with new keys, say) more than `answered_max` bytes that it does
//!   not read is cut off;
//! - `connection_lost` follows a failed `start_tls` exactly once.

const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const debug = @import("debug.zig");
const openssl = @import("openssl.zig");
const stream = @import("stream.zig");
const stream_close = @import("stream_close.zig");
const tls = @import("tls.zig");
const tls_read = @import("tls_read.zig");
const stream_write = @import("stream_write.zig");
const tls_write = @import("tls_write.zig");
const loop_type = @import("loop_type.zig");

const Object = py.Object;
const Fields = tls.Fields;
const State = @import("state.zig").State;

/// A peer that goes on sending this much after our close_notify is cut off.
pub const discarded_max = 256 * 1024;

/// So much nobody is owed: an answer has some 30 bytes, and a peer that reads gets it at once.
pub const answered_max = 64 * 1024;

const fatal_protocol_error = "Fatal error on SSL protocol";

/// The StreamTransport is ready: the handshake begins.
fn connectionMade(object: *Object, below: *Object) py.Error!*Object {
    const self = tls.of(object);
    const state = self.loop.state;
    if (!py.isExact(below, state.stream_transport_type)) {
        return py.raise(c.PyExc_TypeError, "a SSLTransport needs a StreamTransport below it");
    }
    if (self.stream != null) return py.raise(c.PyExc_RuntimeError, "the SSLTransport has a transport already");
    // Closed before it was upgraded: nobody is there to shake hands with.
    if (self.lost) return py.newNone();
    self.stream = py.newRef(below);
    stream.of(below).protocol_paused = false;
    self.phase = .handshake;
    self.shaking_hands = true;
    self.loop.tls_burst.begin();
    if (self.loop.debug) {
        try debug.log(self.loop, "%r starts SSL handshake", object);
        self.handshake_start_ns = core.clock.nowNs();
    }
    try setTimer(self, self.handshake_timeout.?, ._check_handshake_timeout);
    // A server has nothing to say before the client has spoken.
    if (self.server_side and self.stash.items.len == 0) return py.newNone();
    try tls_read.received(self, &.{});
    return py.newNone();
}

fn setTimer(self: *Fields, delay: *Object, comptime method: @import("state.zig").Name) py.Error!void {
    const state = self.loop.state;
    const callback = try py.getAttr(self.object(), state.name(method));
    defer py.decref(callback);
    const timer = try py.callMethod(self.loop.object(), state.name(.call_later), .{ delay, callback });
    py.replace(&self.timer, timer);
}

fn cancelTimer(self: *Fields) py.Error!void {
    const timer = self.timer orelse return;
    self.timer = null;
    defer py.decref(timer);
    py.decref(try py.callMethod(timer, self.loop.state.name(.cancel), .{}));
}

/// One step of the handshake, with what `channel.in` holds.
pub fn handshake(self: *Fields) py.Error!void {
    const state = self.loop.state;
    const ssl_object = py.newRef(self.ssl_object.?);
    defer py.decref(ssl_object);
    const result = py.callMethod(ssl_object, state.name(.do_handshake), .{});
    if (result) |value| {
        py.decref(value);
        // A callback of the handshake can have ended the connection.
        if (self.phase != .handshake) return;
        return handshakeDone(self);
    } else |err| {
        if (py.isExit()) return err;
        if (py.matches(state.ssl_want_read_error) or py.matches(state.ssl_syscall_error)) {
            c.PyErr_Clear();
            if (self.phase != .handshake) return;
            return tls_write.scheduleSend(self);
        }
        if (self.phase != .handshake or !py.matches(state.ssl_error)) return err;
        const exception = py.takeException();
        defer py.decref(exception);
        try handshakeFailed(self, exception);
    }
}

/// Done, failed or given up.
pub fn handshakeOver(self: *Fields) void {
    if (!self.shaking_hands) return;
    self.shaking_hands = false;
    self.loop.tls_burst.end();
}

fn handshakeDone(self: *Fields) py.Error!void {
    const state = self.loop.state;
    handshakeOver(self);
    try cancelTimer(self);
    if (self.phase != .handshake) return;
    self.phase = .wrapped;
    self.handshaken = true;
    if (self.loop.debug) try logHandshake(self);
    if (self.app_phase == .init) {
        const protocol = py.newRef(self.protocol orelse return);
        self.app_phase = .connected;
        defer py.decref(protocol);
        py.decref(try py.callMethod(protocol, state.name(.connection_made), .{self.object()}));
    }
    try wakeWaiter(self, null);
    try tls_read.read(self);
}

fn logHandshake(self: *Fields) py.Error!void {
    const text = try py.check(c.PyUnicode_FromString("%r: SSL handshake took %.1f ms"));
    defer py.decref(text);
    const elapsed_ns = core.clock.nowNs() -| self.handshake_start_ns;
    const milliseconds = try py.newFloat(core.clock.toSeconds(elapsed_ns) * 1e3);
    defer py.decref(milliseconds);
    const state = self.loop.state;
    py.decref(try py.callMethod(state.logger, state.name(.debug), .{ text, self.object(), milliseconds }));
}

fn handshakeFailed(self: *Fields, exception: *Object) py.Error!void {
    try cancelTimer(self);
    // The alert that tells the peer why.
    try tls_write.sendNow(self);
    self.phase = .unwrapped;
    const is_certificate = py.isInstance(exception, @ptrCast(self.loop.state.ssl_certificate_error));
    try fatalError(self, exception, if (is_certificate)
        "SSL handshake failed on verifying the certificate"
    else
        "SSL handshake failed");
    try wakeWaiter(self, exception);
}

fn checkHandshakeTimeout(object: *Object) py.Error!*Object {
    const self = tls.of(object);
    if (self.phase != .handshake) return py.newNone();
    const text = try py.check(c.PyUnicode_FromFormat("SSL handshake is taking longer than %S seconds: aborting the connection", self.handshake_timeout.?));
    defer py.decref(text);
    const exception = try py.call(c.PyExc_ConnectionAbortedError, .{text});
    defer py.decref(exception);
    try fatalError(self, exception, "Fatal error on transport");
    return py.newNone();
}

fn wakeWaiter(self: *Fields, exception: ?*Object) py.Error!void {
    const state = self.loop.state;
    const waiter = self.waiter orelse {
        // asyncio's task for an accepted connection shows what it died of in debug mode.
        if (exception) |e| if (self.accepted and self.loop.debug) {
            py.decref(try py.callMethod(self.loop.object(), state.name(._connection_failed), .{e}));
        };
        self.accepted = false;
        return;
    };
    self.waiter = null;
    defer py.decref(waiter);
    const done = try py.callMethod(waiter, state.name(.done), .{});
    defer py.decref(done);
    if (try py.isTrue(done)) return;
    if (exception) |e| {
        py.decref(try py.callMethod(waiter, state.name(.set_exception), .{e}));
    } else {
        py.decref(try py.callMethod(waiter, state.name(.set_result), .{py.none()}));
    }
}

/// The stream has ended. Returns what the stream does next: true keeps it open.
fn eofReceived(object: *Object) py.Error!*Object {
    const self = tls.of(object);
    self.eof_seen = true;
    streamEnded(self) catch |err| {
        const pending: py.Saved = .save();
        if (self.below()) |below| try stream_close.closeTransport(below);
        pending.restore();
        return err;
    };
    const waits = self.phase == .wrapped or self.phase == .flushing;
    return py.newBool(waits);
}

fn streamEnded(self: *Fields) py.Error!void {
    try debug.log(self.loop, "%r received EOF", self.object());
    switch (self.phase) {
        .unwrapped => {},
        .handshake => {
            const exception = try py.check(c.PyObject_CallNoArgs(c.PyExc_ConnectionResetError));
            defer py.decref(exception);
            try handshakeFailed(self, exception);
        },
        // A program that has paused reading gets the rest when it resumes, see `resumed`.
        .wrapped => if (!self.app_reading_paused) try deliverRest(self),
        .flushing => try continueFlushing(self),
        .shutdown => try shutdownDone(self),
    }
}

/// Delivers what has come before the end of the stream, if the program still takes it, and closes.
pub fn deliverRest(self: *Fields) py.Error!void {
    try tls_read.received(self, &.{});
    if (self.phase != .wrapped or self.app_reading_paused) return;
    self.phase = .flushing;
    // What is left to be sent can wait for a peer that does not read: the protocol hears of the end now, and the
    // shutdown timeout bounds the rest.
    try callEofReceived(self);
    if (self.phase != .flushing) return;
    try setTimer(self, self.shutdown_timeout.?, ._check_shutdown_timeout);
    try continueFlushing(self);
}

/// `eof_received` of the protocol, once. Its answer means nothing with TLS.
fn callEofReceived(self: *Fields) py.Error!void {
    if (self.app_phase != .connected) return;
    const protocol = py.newRef(self.protocol orelse return);
    self.app_phase = .eof;
    const state = self.loop.state;
    defer py.decref(protocol);
    const answer = py.callMethod(protocol, state.name(.eof_received), .{}) catch |err| {
        if (py.isExit()) return err;
        const exception = py.takeException();
        defer py.decref(exception);
        return fatalError(self, exception, "Error calling eof_received()");
    };
    defer py.decref(answer);
    if (!try py.isTrue(answer)) return;
    const text = try py.check(c.PyUnicode_FromString("returning true from eof_received() has no effect when using ssl"));
    defer py.decref(text);
    py.decref(try py.callMethod(state.logger, state.name(.warning), .{text}));
}

/// The peer's close_notify has come.
pub fn peerClosed(self: *Fields) py.Error!void {
    try callEofReceived(self);
    try startShutdown(self);
}

/// `close()`.
pub fn startShutdown(self: *Fields) py.Error!void {
    switch (self.phase) {
        .flushing, .shutdown, .unwrapped => return,
        .handshake => {
            self.closed = true;
            return abort(self, null);
        },
        .wrapped => {},
    }
    self.closed = true;
    self.phase = .flushing;
    try setTimer(self, self.shutdown_timeout.?, ._check_shutdown_timeout);
    try tls_read.readAgainBelow(self);
    try continueFlushing(self);
}

/// Sends what is left of the plaintext, then close_notify. Called again when the stream has room.
pub fn continueFlushing(self: *Fields) py.Error!void {
    if (self.in_ssl) return;
    try tls_write.encryptBacklog(self);
    if (self.phase != .flushing or !self.backlog.isEmpty()) return;
    // close_notify cannot be said in the middle of a handshake (renegotiation, or a certificate that
    // was asked for afterwards): it has to end first, or the shutdown timeout ends it.
    if (!self.eof_seen and self.table.SSL_in_init(self.ssl) != 0) {
        try tls_read.discard(self);
        if (self.phase != .flushing or self.table.SSL_in_init(self.ssl) != 0) return;
    }
    self.phase = .shutdown;
    if (self.eof_seen) {
        try callEofReceived(self);
        return shutdownDone(self);
    }
    self.table.clearErrors();
    self.in_ssl = true;
    const result = self.table.SSL_shutdown(self.ssl);
    self.in_ssl = false;
    if (result > 0) {
        try callEofReceived(self);
        return shutdownDone(self);
    }
    if (result < 0) switch (self.table.SSL_get_error(self.ssl, result)) {
        openssl.error_want_read, openssl.error_want_write => {},
        else => return failed(self, .unwrap),
    };
    try tls_write.sendNow(self);
    // What has come already may hold the peer's answer.
    if (!self.receiving and self.phase == .shutdown) try tls_read.received(self, &.{});
}

/// Both sides have said close_notify, or the stream has ended. What the stream has queued still leaves, for as long
/// as the shutdown timeout allows.
pub fn shutdownDone(self: *Fields) py.Error!void {
    try tls_write.sendNow(self);
    const below = self.below() orelse return cancelTimer(self);
    const object = py.newRef(below.object());
    defer py.decref(object);
    try stream_close.closeTransport(below);
    if (below.conn_lost > 0) return cancelTimer(self);
    if (self.timer == null) try setTimer(self, self.shutdown_timeout.?, ._check_shutdown_timeout);
}

fn checkShutdownTimeout(object: *Object) py.Error!*Object {
    const self = tls.of(object);
    if (self.phase != .flushing and self.phase != .shutdown) return py.newNone();
    const below = self.below() orelse return py.newNone();
    const text = try py.check(c.PyUnicode_FromString("SSL shutdown timed out"));
    defer py.decref(text);
    const exception = try py.call(self.loop.state.timeout_error, .{text});
    defer py.decref(exception);
    try stream_close.forceClose(below, exception);
    return py.newNone();
}

pub fn abort(self: *Fields, exception: ?*Object) py.Error!void {
    self.phase = .unwrapped;
    const below = self.below() orelse return;
    try stream_close.forceClose(below, exception);
}

/// Ends the connection because of `exception`. An OSError, which every SSLError is, is the network's
/// business and logged in debug mode only.
pub fn fatalError(self: *Fields, exception: *Object, message: [*:0]const u8) py.Error!void {
    const state = self.loop.state;
    const below = self.below();
    self.phase = .unwrapped;
    if (below) |b| try stream_close.forceClose(b, exception);
    if (py.isInstance(exception, @ptrCast(c.PyExc_OSError))) {
        if (self.loop.debug) try logFatal(self, exception, message);
    } else if (!py.isInstance(exception, @ptrCast(state.cancelled_error))) {
        if (below) |b| try stream_close.report(b, exception, message);
    }
}

fn logFatal(self: *Fields, exception: *Object, message: [*:0]const u8) py.Error!void {
    const state = self.loop.state;
    const text = try py.check(c.PyUnicode_FromFormat("%R: %s: %R", self.object(), message, exception));
    defer py.decref(text);
    const format = try py.check(c.PyUnicode_FromString("%s"));
    defer py.decref(format);
    py.decref(try py.callMethod(state.logger, state.name(.debug), .{ format, text }));
}

/// As `fatalError` for the exception that is set; what is not an Exception goes on up.
pub fn fatalPending(self: *Fields) py.Error!void {
    if (!py.matches(c.PyExc_Exception)) return error.Python;
    const exception = py.takeException();
    defer py.decref(exception);
    try fatalError(self, exception, fatal_protocol_error);
}

const Operation = enum { read, write, unwrap };

/// OpenSSL has refused an operation for good and its reason is in the error queue. The same call
/// through the SSLObject fails at once and finds it there: that is the exception asyncio's users
/// know, down to `reason` and `verify_code`.
pub fn takeFailure(self: *Fields, comptime operation: Operation) py.Error!*Object {
    const state = self.loop.state;
    if (self.answered > answered_max) {
        const text = try py.check(c.PyUnicode_FromString("the peer asks for new keys or handshakes and does not read the answers"));
        defer py.decref(text);
        return py.call(state.ssl_error, .{text});
    }
    const ssl_object = py.newRef(self.ssl_object.?);
    defer py.decref(ssl_object);
    const result = switch (operation) {
        .read => result: {
            const one = try py.newInt(1);
            defer py.decref(one);
            break :result py.callMethod(ssl_object, state.name(.read), .{one});
        },
        .write => result: {
            const nothing = try py.newBytes("");
            defer py.decref(nothing);
            break :result py.callMethod(ssl_object, state.name(.write), .{nothing});
        },
        .unwrap => py.callMethod(ssl_object, state.name(.unwrap), .{}),
    };
    if (result) |value| {
        py.decref(value);
        const text = try py.check(c.PyUnicode_FromString("the TLS connection failed"));
        defer py.decref(text);
        return py.call(state.ssl_error, .{text});
    } else |err| {
        if (!py.matches(c.PyExc_Exception)) return err;
        return py.takeException();
    }
}

/// Ends the connection because of a failure of OpenSSL, with the alert that tells the peer why.
pub fn fail(self: *Fields, exception: *Object) py.Error!void {
    try tls_write.sendNow(self);
    if (self.phase == .shutdown) try cancelTimer(self);
    try fatalError(self, exception, fatal_protocol_error);
}

pub fn failed(self: *Fields, comptime operation: Operation) py.Error!void {
    const exception = try takeFailure(self, operation);
    defer py.decref(exception);
    try fail(self, exception);
}

/// The stream is gone.
fn connectionLost(object: *Object, reason: *Object) py.Error!*Object {
    const self = tls.of(object);
    const state = self.loop.state;
    const exception: ?*Object = if (reason == py.none()) null else reason;
    handshakeOver(self);
    self.closed = true;
    self.lost = true;
    self.conn_lost += 1;
    self.phase = .unwrapped;
    const dropped_size = self.backlog.size;
    self.backlog.clear(&self.loop.write_pool, loop_type.gpa);
    core.sys.trimAfterFreeing(dropped_size);
    tls_write.dropOutput(self);
    if (!self.receiving) self.stash.clearAndFree(loop_type.gpa);
    const protocol = self.protocol;
    self.protocol = null;
    defer py.xdecref(protocol);
    if (self.app_phase == .connected or self.app_phase == .eof) if (protocol) |p| {
        self.app_phase = .lost;
        const method = try py.getAttr(p, state.name(.connection_lost));
        defer py.decref(method);
        py.decref(try py.callMethod(self.loop.object(), state.name(.call_soon), .{ method, reason }));
    };
    if (exception == null and self.stream != null and self.waiter != null) {
        // abort() during the handshake: whoever waits for the connection does not get one.
        const aborted = try py.call(c.PyExc_ConnectionAbortedError, .{});
        defer py.decref(aborted);
        try wakeWaiter(self, aborted);
    } else try wakeWaiter(self, exception);
    try cancelTimer(self);
    return py.newNone();
}

fn close(object: *Object) py.Error!*Object {
    const self = tls.of(object);
    if (self.closed) return py.newNone();
    self.closed = true;
    try startShutdown(self);
    return py.newNone();
}

fn abortMethod(object: *Object) py.Error!*Object {
    const self = tls.of(object);
    self.closed = true;
    if (self.below()) |below| try stream_write.settle(below);
    try abort(self, null);
    return py.newNone();
}

fn forceCloseMethod(object: *Object, exception: *Object) py.Error!*Object {
    const self = tls.of(object);
    self.closed = true;
    if (self.below()) |below| try stream_write.settle(below);
    try abort(self, if (exception == py.none()) null else exception);
    return py.newNone();
}

pub const methods = [_]c.PyMethodDef{
    py.Method.noArgs("close", close, "close($self)\n--\n\nasyncio.BaseTransport.close(): what was written still leaves, then close_notify."),
    py.Method.noArgs("abort", abortMethod, "abort($self)\n--\n\nasyncio.WriteTransport.abort(): what was written is dropped."),
    py.Method.oneArg("_force_close", forceCloseMethod, "_force_close($self, exc)\n--\n\nabort() with a reason for connection_lost()."),
    py.Method.oneArg("connection_made", connectionMade, "connection_made($self, transport)\n--\n\nThe stream below is ready: begins the handshake."),
    py.Method.oneArg("connection_lost", connectionLost, "connection_lost($self, exc)\n--\n\nThe stream below is gone."),
    py.Method.noArgs("eof_received", eofReceived, "eof_received($self)\n--\n\nThe stream below has ended."),
    py.Method.noArgs("_check_handshake_timeout", checkHandshakeTimeout, null),
    py.Method.noArgs("_check_shutdown_timeout", checkShutdownTimeout, null),
};
