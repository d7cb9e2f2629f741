//! A connected socket, plain or under TLS, with one non-blocking read and write.

const std = @import("std");
const sys = @import("sys.zig");
const tls = @import("tls.zig");

pub const Stream = struct {
    fd: sys.fd_t,
    session: ?*tls.Session = null,

    pub fn read(stream: *Stream, buffer: []u8) sys.Transfer {
        return if (stream.session) |session| session.read(buffer) else sys.read(stream.fd, buffer);
    }

    pub fn write(stream: *Stream, bytes: []const u8) sys.Transfer {
        return if (stream.session) |session| session.write(bytes) else sys.write(stream.fd, bytes);
    }

    /// Ciphertext waits for the kernel although `write` has accepted the plain bytes.
    pub fn hasUnsent(stream: *const Stream) bool {
        return if (stream.session) |session| session.hasUnsent() else false;
    }

    /// Received bytes wait in user space, where the poller cannot see them.
    pub fn hasBuffered(stream: *const Stream) bool {
        return if (stream.session) |session| session.hasBuffered() else false;
    }

    pub fn flush(stream: *Stream) sys.Transfer {
        return if (stream.session) |session| session.flush() else .{ .bytes = 0 };
    }

    pub fn close(stream: *Stream) void {
        if (stream.session) |session| session.destroy();
        sys.close(stream.fd);
        stream.* = undefined;
    }
};
