//! OpenSSL 3 opened at run time: no headers and no link-time dependency.
//!
//! Reads go through OpenSSL's own socket BIO with read-ahead, so one recv brings many records. Writes go through
//! a BIO of ours that gathers ciphertext, so one message of many records leaves in one send.

const std = @import("std");
const sys = @import("sys.zig");

const Context = opaque {};
const Connection = opaque {};
const Method = opaque {};
const Bio = opaque {};
const BioMethod = opaque {};

const want_read = 2;
const want_write = 3;
const control_read_ahead = 41;
const bio_control_flush = 11;
const file_type_pem = 1;
const bio_type_source_sink = 0x0400;
/// Measured: at half of this, messages of 100 KiB and more cost 8 % more; releasing it between messages makes the
/// allocator map and unmap it each time.
const read_buffer_bytes = 128 * 1024;

const Api = struct {
    TLS_client_method: *const fn () callconv(.c) ?*const Method,
    TLS_server_method: *const fn () callconv(.c) ?*const Method,
    SSL_CTX_new: *const fn (?*const Method) callconv(.c) ?*Context,
    SSL_CTX_ctrl: *const fn (*Context, c_int, c_long, ?*anyopaque) callconv(.c) c_long,
    SSL_CTX_set_default_read_buffer_len: *const fn (*Context, usize) callconv(.c) void,
    SSL_CTX_use_certificate_chain_file: *const fn (*Context, [*:0]const u8) callconv(.c) c_int,
    SSL_CTX_use_PrivateKey_file: *const fn (*Context, [*:0]const u8, c_int) callconv(.c) c_int,
    SSL_new: *const fn (*Context) callconv(.c) ?*Connection,
    SSL_free: *const fn (*Connection) callconv(.c) void,
    SSL_set_bio: *const fn (*Connection, *Bio, *Bio) callconv(.c) void,
    SSL_set_connect_state: *const fn (*Connection) callconv(.c) void,
    SSL_set_accept_state: *const fn (*Connection) callconv(.c) void,
    SSL_do_handshake: *const fn (*Connection) callconv(.c) c_int,
    SSL_read: *const fn (*Connection, [*]u8, c_int) callconv(.c) c_int,
    SSL_write: *const fn (*Connection, [*]const u8, c_int) callconv(.c) c_int,
    SSL_has_pending: *const fn (*const Connection) callconv(.c) c_int,
    SSL_shutdown: *const fn (*Connection) callconv(.c) c_int,
    SSL_get_error: *const fn (*const Connection, c_int) callconv(.c) c_int,
    ERR_clear_error: *const fn () callconv(.c) void,
    BIO_new_socket: *const fn (c_int, c_int) callconv(.c) ?*Bio,
    BIO_new: *const fn (*const BioMethod) callconv(.c) ?*Bio,
    BIO_meth_new: *const fn (c_int, [*:0]const u8) callconv(.c) ?*BioMethod,
    BIO_meth_set_write: *const fn (*BioMethod, *const fn (*Bio, [*]const u8, c_int) callconv(.c) c_int) callconv(.c) c_int,
    BIO_meth_set_ctrl: *const fn (*BioMethod, *const fn (*Bio, c_int, c_long, ?*anyopaque) callconv(.c) c_long) callconv(.c) c_int,
    BIO_set_data: *const fn (*Bio, ?*anyopaque) callconv(.c) void,
    BIO_get_data: *const fn (*Bio) callconv(.c) ?*anyopaque,
    BIO_set_init: *const fn (*Bio, c_int) callconv(.c) void,
};

var api: Api = undefined;
var sink_method: *BioMethod = undefined;

pub const Role = union(enum) {
    client,
    server: struct { certificate: [*:0]const u8, key: [*:0]const u8 },
};

/// One configured SSL_CTX. Certificates are not verified: the peer is on loopback and made its own.
pub const Endpoint = struct {
    context: *Context,
    is_server: bool,

    pub fn init(role: Role) Endpoint {
        loadLibrary();
        const method = if (role == .client) api.TLS_client_method() else api.TLS_server_method();
        const context = api.SSL_CTX_new(method) orelse sys.fatal("SSL_CTX_new failed", .{});
        _ = api.SSL_CTX_ctrl(context, control_read_ahead, 1, null);
        api.SSL_CTX_set_default_read_buffer_len(context, read_buffer_bytes);
        switch (role) {
            .client => {},
            .server => |files| {
                if (api.SSL_CTX_use_certificate_chain_file(context, files.certificate) != 1)
                    sys.fatal("cannot use certificate {s}", .{files.certificate});
                if (api.SSL_CTX_use_PrivateKey_file(context, files.key, file_type_pem) != 1)
                    sys.fatal("cannot use key {s}", .{files.key});
            },
        }
        return .{ .context = context, .is_server = role == .server };
    }
};

pub const Session = struct {
    connection: *Connection,
    fd: sys.fd_t,
    gpa: std.mem.Allocator,
    /// Ciphertext that OpenSSL produced; `sent` bytes of it are with the kernel already.
    outgoing: std.ArrayList(u8) = .empty,
    sent: usize = 0,

    pub fn create(gpa: std.mem.Allocator, endpoint: *const Endpoint, fd: sys.fd_t) *Session {
        const session = gpa.create(Session) catch sys.fatal("out of memory", .{});
        const connection = api.SSL_new(endpoint.context) orelse sys.fatal("SSL_new failed", .{});
        session.* = .{ .connection = connection, .fd = fd, .gpa = gpa };
        const source = api.BIO_new_socket(fd, 0) orelse sys.fatal("BIO_new_socket failed", .{});
        const sink = api.BIO_new(sink_method) orelse sys.fatal("BIO_new failed", .{});
        api.BIO_set_data(sink, session);
        api.BIO_set_init(sink, 1);
        api.SSL_set_bio(connection, source, sink);
        if (endpoint.is_server) api.SSL_set_accept_state(connection) else api.SSL_set_connect_state(connection);
        return session;
    }

    pub fn destroy(session: *Session) void {
        _ = api.SSL_shutdown(session.connection);
        _ = session.flush();
        api.SSL_free(session.connection);
        session.outgoing.deinit(session.gpa);
        session.gpa.destroy(session);
    }

    /// True once the handshake is complete and its last flight is with the kernel.
    pub fn handshake(session: *Session) error{Closed}!bool {
        const rc = api.SSL_do_handshake(session.connection);
        const failed = rc != 1 and !session.mayRetry(rc);
        if (session.flush() == .closed or failed) return error.Closed;
        return rc == 1 and !session.hasUnsent();
    }

    /// Fills as much of `buffer` as arrived: a record is at most 16 KiB, a message may be many records.
    pub fn read(session: *Session, buffer: []u8) sys.Transfer {
        var filled: usize = 0;
        while (filled < buffer.len) {
            const rest = buffer[filled..];
            const rc = api.SSL_read(session.connection, rest.ptr, @intCast(rest.len));
            if (rc <= 0) {
                if (filled > 0) break;
                return if (session.mayRetry(rc)) .blocked else .closed;
            }
            filled += @intCast(rc);
            if (!session.hasBuffered()) break;
        }
        return .{ .bytes = filled };
    }

    /// Takes all of `bytes`, or none while earlier ciphertext waits for the kernel.
    pub fn write(session: *Session, bytes: []const u8) sys.Transfer {
        if (session.flush() == .closed) return .closed;
        if (session.hasUnsent()) return .blocked;
        const rc = api.SSL_write(session.connection, bytes.ptr, @intCast(bytes.len));
        if (rc <= 0) return .closed;
        if (session.flush() == .closed) return .closed;
        return .{ .bytes = bytes.len };
    }

    pub fn hasUnsent(session: *const Session) bool {
        return session.sent < session.outgoing.items.len;
    }

    /// Bytes are inside OpenSSL, so the poller will not report them: perhaps only part of a record.
    pub fn hasBuffered(session: *const Session) bool {
        return api.SSL_has_pending(session.connection) == 1;
    }

    pub fn flush(session: *Session) sys.Transfer {
        const before = session.sent;
        while (session.hasUnsent()) {
            switch (sys.write(session.fd, session.outgoing.items[session.sent..])) {
                .bytes => |count| session.sent += count,
                .blocked => return .blocked,
                .closed => return .closed,
            }
        }
        const flushed = session.sent - before;
        session.outgoing.clearRetainingCapacity();
        session.sent = 0;
        return .{ .bytes = flushed };
    }

    fn mayRetry(session: *Session, rc: c_int) bool {
        const reason = api.SSL_get_error(session.connection, rc);
        api.ERR_clear_error();
        return reason == want_read or reason == want_write;
    }
};

fn loadLibrary() void {
    const library = std.c.dlopen("libssl.so.3", .{ .NOW = true, .GLOBAL = true }) orelse
        sys.fatal("libssl.so.3 is not installed", .{});
    inline for (@typeInfo(Api).@"struct".field_names) |name| {
        const symbol = std.c.dlsym(library, name) orelse sys.fatal("libssl lacks {s}", .{name});
        @field(api, name) = @ptrCast(@alignCast(symbol));
    }
    sink_method = api.BIO_meth_new(bio_type_source_sink, "gather") orelse sys.fatal("BIO_meth_new failed", .{});
    _ = api.BIO_meth_set_write(sink_method, sinkWrite);
    _ = api.BIO_meth_set_ctrl(sink_method, sinkControl);
}

fn sinkWrite(bio: *Bio, bytes: [*]const u8, count: c_int) callconv(.c) c_int {
    const session: *Session = @ptrCast(@alignCast(api.BIO_get_data(bio).?));
    session.outgoing.appendSlice(session.gpa, bytes[0..@intCast(count)]) catch return -1;
    return count;
}

fn sinkControl(_: *Bio, command: c_int, _: c_long, _: ?*anyopaque) callconv(.c) c_long {
    return if (command == bio_control_flush) 1 else 0;
}
