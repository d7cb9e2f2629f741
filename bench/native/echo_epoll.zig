//! The reference server: what an echo costs on this kernel without Python.
//!
//! One thread does what a readiness loop does: epoll_wait, one recv a connection into a shared buffer, one send.
//! Bytes that the kernel does not take wait in the connection, which then stops reading. Under TLS the same loop
//! drives OpenSSL directly. The first line on standard output is the listening port as JSON.
//!
//! With `--http-body BYTES` it is what HTTP clients are measured against: each request without a body, one at a
//! time as clients without pipelining send them, gets the same response.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");
const tls = @import("tls.zig");
const Stream = @import("stream.zig").Stream;
const Poller = @import("epoll.zig").Poller;

const Options = struct {
    port: u16 = 0,
    unix: ?[:0]const u8 = null,
    certificate: ?[:0]const u8 = null,
    key: ?[:0]const u8 = null,
    http_body: usize = 0,
};

const gpa = std.heap.c_allocator;
const read_buffer_bytes = 256 * 1024;
const accept_batch_max = 64;
const listener_index = 0;

const Connection = struct {
    stream: Stream,
    handshaking: bool,
    interest: u32 = linux.EPOLL.IN,
    pending: std.ArrayList(u8) = .empty,
    pending_sent: usize = 0,

    fn isDrained(connection: *const Connection) bool {
        return connection.pending_sent == connection.pending.items.len and !connection.stream.hasUnsent();
    }
};

const Server = struct {
    poller: Poller,
    listener: sys.fd_t,
    is_tcp: bool,
    endpoint: ?tls.Endpoint,
    /// What each request gets; null for an echo.
    response: ?[]const u8,
    read_buffer: [read_buffer_bytes]u8 = undefined,

    fn run(server: *Server) noreturn {
        server.poller.add(server.listener, linux.EPOLL.IN, listener_index);
        while (true) {
            for (server.poller.wait(-1)) |event| {
                if (event.data.ptr == listener_index) server.acceptBatch() else server.serve(@ptrFromInt(event.data.ptr));
            }
        }
    }

    fn acceptBatch(server: *Server) void {
        for (0..accept_batch_max) |_| {
            const rc = linux.accept4(server.listener, null, null, linux.SOCK.NONBLOCK | linux.SOCK.CLOEXEC);
            switch (linux.errno(rc)) {
                .SUCCESS => server.admit(@intCast(rc)),
                .AGAIN, .CONNABORTED, .INTR => return,
                else => |code| sys.fatal("accept4: {t}", .{code}),
            }
        }
    }

    fn admit(server: *Server, fd: sys.fd_t) void {
        if (server.is_tcp) sys.setNoDelay(fd);
        const connection = gpa.create(Connection) catch sys.fatal("out of memory", .{});
        const session = if (server.endpoint) |*endpoint| tls.Session.create(gpa, endpoint, fd) else null;
        connection.* = .{ .stream = .{ .fd = fd, .session = session }, .handshaking = session != null };
        server.poller.add(fd, connection.interest, @intFromPtr(connection));
    }

    fn serve(server: *Server, connection: *Connection) void {
        server.exchange(connection) catch return retire(connection);
        const interest: u32 = if (connection.isDrained()) linux.EPOLL.IN else linux.EPOLL.OUT;
        if (interest == connection.interest) return;
        connection.interest = interest;
        server.poller.modify(connection.stream.fd, interest, @intFromPtr(connection));
    }

    fn exchange(server: *Server, connection: *Connection) error{Closed}!void {
        if (connection.handshaking) {
            connection.handshaking = !try connection.stream.session.?.handshake();
            if (connection.handshaking) return;
        }
        try drain(connection);
        while (connection.isDrained()) {
            switch (connection.stream.read(&server.read_buffer)) {
                .bytes => |count| try server.respond(connection, server.read_buffer[0..count]),
                .blocked => return,
                .closed => return error.Closed,
            }
            if (!connection.stream.hasBuffered()) return;
        }
    }

    fn respond(server: *Server, connection: *Connection, bytes: []const u8) error{Closed}!void {
        const response = server.response orelse return answer(connection, bytes);
        if (std.mem.endsWith(u8, bytes, "\r\n\r\n")) try answer(connection, response);
    }

    fn answer(connection: *Connection, bytes: []const u8) error{Closed}!void {
        const sent = switch (connection.stream.write(bytes)) {
            .bytes => |count| count,
            .blocked => 0,
            .closed => return error.Closed,
        };
        if (sent < bytes.len) connection.pending.appendSlice(gpa, bytes[sent..]) catch sys.fatal("out of memory", .{});
    }

    fn drain(connection: *Connection) error{Closed}!void {
        if (connection.stream.flush() == .closed) return error.Closed;
        while (connection.pending_sent < connection.pending.items.len) {
            switch (connection.stream.write(connection.pending.items[connection.pending_sent..])) {
                .bytes => |count| connection.pending_sent += count,
                .blocked => return,
                .closed => return error.Closed,
            }
        }
        connection.pending.clearRetainingCapacity();
        connection.pending_sent = 0;
    }

    fn retire(connection: *Connection) void {
        connection.stream.close();
        connection.pending.deinit(gpa);
        gpa.destroy(connection);
    }
};

pub fn main(init: std.process.Init.Minimal) void {
    sys.dieWithParent();
    var arguments = std.process.Args.Iterator.init(init.args);
    _ = arguments.skip();
    const options = @import("options.zig").parse(Options, &arguments);
    const address: sys.Address = if (options.unix) |path| .unixPath(path) else .loopback(options.port, 1);
    const endpoint: ?tls.Endpoint = if (options.certificate) |certificate|
        .init(.{ .server = .{ .certificate = certificate, .key = options.key orelse sys.fatal("--key missing", .{}) } })
    else
        null;
    const server = gpa.create(Server) catch sys.fatal("out of memory", .{});
    server.* = .{
        .poller = .init(),
        .listener = sys.listenOn(&address),
        .is_tcp = address == .tcp,
        .endpoint = endpoint,
        .response = if (options.http_body > 0) httpResponse(options.http_body) else null,
    };
    sys.printLine("{{\"port\": {d}}}", .{if (server.is_tcp) sys.boundPort(server.listener) else 0});
    server.run();
}

fn httpResponse(body_size: usize) []const u8 {
    const head = std.fmt.allocPrint(
        gpa,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {d}\r\n\r\n",
        .{body_size},
    ) catch sys.fatal("out of memory", .{});
    const response = gpa.alloc(u8, head.len + body_size) catch sys.fatal("out of memory", .{});
    @memcpy(response[0..head.len], head);
    @memset(response[head.len..], 'x');
    return response;
}
