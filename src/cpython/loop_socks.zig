//! The native part of the loop's `sock_*` methods. Each tries the operation at once and gives its
//! result, or a SocketWaiter to await. NotImplemented means that asyncio's own method must do it:
//! for sockets that only look like one, that block, or addresses that need resolving.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const address_parse = @import("address_parse.zig");
const loop_fds = @import("loop_fds.zig");
const loop_type = @import("loop_type.zig");
const operation = @import("sock_operation.zig");
const raise = @import("raise.zig");
const sock_wait = @import("sock_wait.zig");
const Operation = operation.Operation;

const Object = py.Object;
const LoopFields = loop_type.Fields;

fn notImplemented() *Object {
    return py.newRef(&c._Py_NotImplementedStruct);
}

/// Its descriptor, or null if the socket is not one of Python's own plain ones.
fn plain(loop: *LoopFields, sock: *Object) py.Error!?core.sys.fd_t {
    if (!py.isExact(sock, @ptrCast(loop.state.socket_type))) return null;
    if (loop.debug and !try isNonblocking(loop, sock)) {
        return py.raise(c.PyExc_ValueError, "the socket must be non-blocking");
    }
    return try operation.fileno(loop, sock);
}

fn isNonblocking(loop: *LoopFields, sock: *Object) py.Error!bool {
    const timeout = try py.callMethod(sock, loop.state.name(.gettimeout), .{});
    defer py.decref(timeout);
    return timeout != py.none() and !try py.isTrue(timeout);
}

fn wait(loop: *LoopFields, sock: *Object, fd: core.sys.fd_t, op: Operation) py.Error!*Object {
    var held = op;
    {
        errdefer held.release();
        try loop.checkUsable();
        try ensureFree(loop, fd);
    }
    return sock_wait.create(loop, sock, fd, held);
}

fn ensureFree(loop: *LoopFields, fd: core.sys.fd_t) py.Error!void {
    if (loop.core.watches.find(fd) == null) return;
    const number = try py.newInt(fd);
    defer py.decref(number);
    _ = try loop_fds.ensureNoTransport(loop, number);
}

fn sizeOf(object: *Object, comptime what: [:0]const u8) py.Error!usize {
    const index = try py.check(c.PyNumber_Index(object));
    defer py.decref(index);
    const size = c.PyLong_AsSsize_t(index);
    if (size == -1 and c.PyErr_Occurred() != null) return error.Python;
    if (size < 0) return py.raise(c.PyExc_ValueError, "negative buffersize in " ++ what);
    return @intCast(size);
}

fn recv(object: *Object, argv: []const *Object) py.Error!*Object {
    const loop = loop_type.of(object);
    const sock, const given = try two("_try_recv", argv);
    const fd = (try plain(loop, sock)) orelse return notImplemented();
    const size = try sizeOf(given, "recv");
    return (try operation.receive(loop, fd, size)) orelse wait(loop, sock, fd, .{ .recv = size });
}

fn recvInto(object: *Object, argv: []const *Object) py.Error!*Object {
    const loop = loop_type.of(object);
    const sock, const buffer = try two("_try_recv_into", argv);
    const fd = (try plain(loop, sock)) orelse return notImplemented();
    return (try operation.receiveInto(loop, sock, fd, buffer)) orelse
        wait(loop, sock, fd, .{ .recv_into = py.newRef(buffer) });
}

/// Whether addresses of the socket are known here; they are those of its family.
fn hasKnownFamily(fd: core.sys.fd_t) bool {
    var own: core.sys.Address = undefined;
    // A failure is the operation's to report.
    if (core.sys.localAddress(fd, &own) != null) return true;
    return switch (own.family()) {
        std.c.AF.INET, std.c.AF.INET6, std.c.AF.UNIX => true,
        else => false,
    };
}

fn recvfrom(object: *Object, argv: []const *Object) py.Error!*Object {
    const loop = loop_type.of(object);
    const sock, const given = try two("_try_recvfrom", argv);
    const fd = (try plain(loop, sock)) orelse return notImplemented();
    if (!hasKnownFamily(fd)) return notImplemented();
    const size = try sizeOf(given, "recvfrom");
    return (try operation.receiveFrom(loop, fd, size)) orelse wait(loop, sock, fd, .{ .recvfrom = size });
}

fn recvfromInto(object: *Object, argv: []const *Object) py.Error!*Object {
    const loop = loop_type.of(object);
    if (argv.len != 3) return py.raise(c.PyExc_TypeError, "_try_recvfrom_into() takes exactly 3 arguments");
    const sock = argv[0];
    const buffer = argv[1];
    const fd = (try plain(loop, sock)) orelse return notImplemented();
    if (!hasKnownFamily(fd)) return notImplemented();
    const given = try sizeOf(argv[2], "recvfrom_into");
    const size: usize = if (given > 0) given else length: {
        const length = c.PyObject_Size(buffer);
        if (length < 0) return error.Python;
        break :length @intCast(length);
    };
    return (try operation.receiveFromInto(loop, sock, fd, buffer, size)) orelse
        wait(loop, sock, fd, .{ .recvfrom_into = .{ .buffer = py.newRef(buffer), .size = size } });
}

fn sendall(object: *Object, argv: []const *Object) py.Error!*Object {
    const loop = loop_type.of(object);
    const sock, const data = try two("_try_sendall", argv);
    const fd = (try plain(loop, sock)) orelse return notImplemented();
    var op: Operation = .{ .sendall = .{ .data = data, .view = undefined, .sent = 0 } };
    const sending = &op.sendall;
    try py.checkInt(c.PyObject_GetBuffer(data, &sending.view, c.PyBUF_SIMPLE));
    operation.ensureStillOpen(loop, sock, fd, data) catch |err| {
        c.PyBuffer_Release(&sending.view);
        return err;
    };
    const bytes = if (sending.view.buf) |start| start[0..@intCast(sending.view.len)] else &.{};
    const result = operation.sendAll(fd, bytes, &sending.sent) catch |err| {
        c.PyBuffer_Release(&sending.view);
        return err;
    };
    if (result) |none| {
        c.PyBuffer_Release(&sending.view);
        return none;
    }
    py.incref(data);
    return wait(loop, sock, fd, op);
}

fn sendto(object: *Object, argv: []const *Object) py.Error!*Object {
    const loop = loop_type.of(object);
    if (argv.len != 3) return py.raise(c.PyExc_TypeError, "_try_sendto() takes exactly 3 arguments");
    const sock = argv[0];
    const fd = (try plain(loop, sock)) orelse return notImplemented();
    const to = parseFor(fd, argv[2]) orelse return notImplemented();
    return (try operation.sendTo(loop, sock, fd, argv[1], &to)) orelse
        wait(loop, sock, fd, .{ .sendto = .{ .data = py.newRef(argv[1]), .to = to } });
}

fn parseFor(fd: core.sys.fd_t, given: *Object) ?core.sys.Address {
    var own: core.sys.Address = undefined;
    if (core.sys.localAddress(fd, &own) != null) return null;
    return address_parse.fromObject(own.family(), given);
}

fn accept(object: *Object, sock: *Object) py.Error!*Object {
    const loop = loop_type.of(object);
    const fd = (try plain(loop, sock)) orelse return notImplemented();
    if (!try isNonblocking(loop, sock)) return notImplemented();
    return (try operation.accept(loop, sock, fd)) orelse wait(loop, sock, fd, .accept);
}

fn connect(object: *Object, argv: []const *Object) py.Error!*Object {
    const loop = loop_type.of(object);
    const sock, const given = try two("_try_connect", argv);
    const fd = (try plain(loop, sock)) orelse return notImplemented();
    if (!try isNonblocking(loop, sock)) return notImplemented();
    const to = parseFor(fd, given) orelse return notImplemented();
    switch (core.sys.connect(fd, &to)) {
        .done => return py.newNone(),
        .would_block => if (core.sys.hasConnected(fd)) return py.newNone(),
        .failed => |code| return raise.errno(code),
    }
    // asyncio's message shows the address with all its parts.
    const shown = if (to.family() == std.c.AF.INET6) (try @import("address.zig").toObject(&to)).? else py.newRef(given);
    return wait(loop, sock, fd, .{ .connect = shown });
}

/// `_sock_sendfile(sock, file, offset, count)`: the count is a limit.
fn sendfile(object: *Object, argv: []const *Object) py.Error!*Object {
    const loop = loop_type.of(object);
    if (argv.len != 4) return py.raise(c.PyExc_TypeError, "_try_sendfile() takes exactly 4 arguments");
    const sock = argv[0];
    if (comptime !operation.has_sendfile) return notImplemented();
    const fd = (try plain(loop, sock)) orelse return notImplemented();
    if (!try isNonblocking(loop, sock)) return notImplemented();
    var op: Operation = .{ .sendfile = .{
        .file = try loop_fds.descriptor(argv[1]),
        .offset = std.math.cast(i64, try sizeOf(argv[2], "sendfile")) orelse std.math.maxInt(i64),
        .left = try sizeOf(argv[3], "sendfile"),
        .sent = 0,
    } };
    return (try operation.proceed(loop, sock, fd, &op)) orelse wait(loop, sock, fd, op);
}

fn two(comptime name: [:0]const u8, argv: []const *Object) py.Error!struct { *Object, *Object } {
    if (argv.len != 2) return py.raise(c.PyExc_TypeError, name ++ "() takes exactly 2 arguments");
    return .{ argv[0], argv[1] };
}

pub const methods = [_]c.PyMethodDef{
    py.Method.args("_try_recv", recv, "_try_recv($self, sock, n, /)\n--\n\nBytes, or an awaitable for them."),
    py.Method.args("_try_recv_into", recvInto, "_try_recv_into($self, sock, buf, /)\n--\n\nA count, or an awaitable for it."),
    py.Method.args("_try_recvfrom", recvfrom, "_try_recvfrom($self, sock, bufsize, /)\n--\n\nBytes and address, or an awaitable for them."),
    py.Method.args("_try_recvfrom_into", recvfromInto, "_try_recvfrom_into($self, sock, buf, nbytes, /)\n--\n\nA count and address, or an awaitable for them."),
    py.Method.args("_try_sendall", sendall, "_try_sendall($self, sock, data, /)\n--\n\nNone, or an awaitable for it."),
    py.Method.args("_try_sendto", sendto, "_try_sendto($self, sock, data, address, /)\n--\n\nA count, or an awaitable for it."),
    py.Method.oneArg("_try_accept", accept, "_try_accept($self, sock, /)\n--\n\nA socket and address, or an awaitable for them."),
    py.Method.args("_try_connect", connect, "_try_connect($self, sock, address, /)\n--\n\nNone, or an awaitable for it."),
    py.Method.args("_try_sendfile", sendfile, "_try_sendfile($self, sock, file, offset, count, /)\n--\n\nA count, or an awaitable for it."),
};
