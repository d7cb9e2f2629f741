//! The system calls behind `sock_*`, each tried without ever blocking.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const address_ = @import("address.zig");
const loop_type = @import("loop_type.zig");
const raise = @import("raise.zig");
const fd_watch = @import("fd_watch.zig");

const Object = py.Object;
const LoopFields = loop_type.Fields;
const Address = core.sys.Address;
const Outcome = core.sys.Outcome;
const sc = std.c;

/// Sizes up to this are received into the loop's buffer and leave as bytes of the exact size.
const shared_size_max = loop_type.read_buffer_size;

/// What one sendfile call is asked for at most, as in asyncio on 32 bit systems: the kernel sends
/// no more than a socket's buffer holds anyway.
const sendfile_size_max = 1 << 30;

pub const has_sendfile = core.sys.is_linux;

pub const Operation = union(enum) {
    recv: usize,
    recv_into: *Object,
    recvfrom: usize,
    recvfrom_into: struct { buffer: *Object, size: usize },
    accept,
    sendall: struct { data: *Object, view: c.Py_buffer, sent: usize },
    sendto: struct { data: *Object, to: Address },
    connect: *Object,
    /// Nothing is to be done any more.
    over,
    sendfile: struct { file: core.sys.fd_t, offset: i64, left: u64, sent: u64 },

    pub fn direction(self: *const Operation) fd_watch.Direction {
        return if (self.isReceiving()) .read else .write;
    }

    pub fn isReceiving(self: *const Operation) bool {
        return switch (self.*) {
            .recv, .recv_into, .recvfrom, .recvfrom_into, .accept, .over => true,
            .sendall, .sendto, .connect, .sendfile => false,
        };
    }

    pub fn sentCount(self: *const Operation) usize {
        return switch (self.*) {
            .sendall => |sendall| sendall.sent,
            .sendfile => |sendfile| @intCast(sendfile.sent),
            else => 0,
        };
    }

    fn objectBorrowed(self: *const Operation) ?*Object {
        return switch (self.*) {
            .recv_into, .connect => |object| object,
            .recvfrom_into => |into| into.buffer,
            .sendall => |sendall| sendall.data,
            .sendto => |sendto| sendto.data,
            .recv, .recvfrom, .accept, .sendfile, .over => null,
        };
    }

    pub fn release(self: *Operation) void {
        if (self.* == .sendall) c.PyBuffer_Release(&self.sendall.view);
        py.xdecref(self.objectBorrowed());
    }

    /// The operation has ended or is given up: the program's buffer is its own again. What a file has sent stays
    /// known.
    pub fn end(self: *Operation) void {
        if (self.* == .sendfile) return;
        var taken = self.*;
        self.* = .over;
        taken.release();
    }

    pub fn traverse(self: *const Operation, visitor: py.Visitor) error{Stop}!void {
        try visitor.object(self.objectBorrowed());
        if (self.* == .sendall) try visitor.object(self.sendall.view.obj);
    }
};

/// Goes on with an operation that had to wait; null means it has to wait on. The program can have
/// closed the socket meanwhile, and the number can be another's.
pub fn proceed(loop: *LoopFields, sock: *Object, fd: core.sys.fd_t, operation: *Operation) py.Error!?*Object {
    if (try fileno(loop, sock) != fd) return raise.errno(.BADF);
    switch (operation.*) {
        .recv => |size| return receive(loop, fd, size),
        .recv_into => |buffer| return receiveInto(loop, sock, fd, buffer),
        .recvfrom => |size| return receiveFrom(loop, fd, size),
        .recvfrom_into => |into| return receiveFromInto(loop, sock, fd, into.buffer, into.size),
        .accept => return accept(loop, sock, fd),
        .over => unreachable,
        .sendall => |*sendall| {
            const bytes = if (sendall.view.buf) |start| start[0..@intCast(sendall.view.len)] else &.{};
            const count = (try counted(core.sys.sendNow(fd, bytes[sendall.sent..]))) orelse return null;
            sendall.sent += count;
            return if (sendall.sent == bytes.len) py.newNone() else null;
        },
        .sendto => |*sendto| return sendTo(loop, sock, fd, sendto.data, &sendto.to),
        .connect => |address| return connected(fd, address),
        .sendfile => |*sendfile| {
            const wanted = @min(sendfile.left, sendfile_size_max);
            const count = (try counted(core.sys.sendfile(fd, sendfile.file, sendfile.offset, @intCast(wanted)))) orelse return null;
            sendfile.offset += @intCast(count);
            sendfile.sent += count;
            sendfile.left -= count;
            // Nothing came: the file has ended.
            return if (count == 0 or sendfile.left == 0) try py.newInt(sendfile.sent) else null;
        },
    }
}

pub fn fileno(loop: *LoopFields, sock: *Object) py.Error!core.sys.fd_t {
    const number = try py.callMethod(sock, loop.state.name(.fileno), .{});
    defer py.decref(number);
    const fd = c.PyLong_AsLong(number);
    if (fd == -1 and c.PyErr_Occurred() != null) return error.Python;
    return std.math.cast(core.sys.fd_t, fd) orelse -1;
}

/// Bytes moved, or null for an operation that has to wait.
fn counted(outcome: Outcome) py.Error!?usize {
    return switch (outcome) {
        .done => |count| count,
        .would_block => null,
        .failed => |code| raise.errno(code),
    };
}

pub fn receive(loop: *LoopFields, fd: core.sys.fd_t, size: usize) py.Error!?*Object {
    // As in CPython: nothing wanted, nothing asked.
    if (size == 0) return try py.newBytes("");
    if (size <= shared_size_max) {
        const buffer = try loop.readBuffer();
        const count = (try counted(core.sys.recvNow(fd, buffer[0..size]))) orelse return null;
        return try py.newBytes(buffer[0..count]);
    }
    var data: ?*Object = try py.check(c.PyBytes_FromStringAndSize(null, @intCast(size)));
    const outcome = counted(core.sys.recvNow(fd, py.bytesOf(data.?))) catch |err| {
        py.decref(data.?);
        return err;
    };
    const count = outcome orelse {
        py.decref(data.?);
        return null;
    };
    if (count < size and c._PyBytes_Resize(&data, @intCast(count)) < 0) return error.Python;
    return data;
}

/// With the error of the socket's own methods.
fn getWritable(comptime method: [:0]const u8, buffer: *Object, view: *c.Py_buffer) py.Error!void {
    if (c.PyObject_GetBuffer(buffer, view, c.PyBUF_WRITABLE) == 0) return;
    c.PyErr_Clear();
    const name = try py.check(c.PyObject_GetAttrString(@ptrCast(py.typeOf(buffer)), "__name__"));
    defer py.decref(name);
    return py.raiseFormat(c.PyExc_TypeError, method ++ "() argument 1 must be read-write bytes-like object, not %U", .{name});
}

/// A buffer can be the program's own code, which can have closed the socket: then the number may be another's.
pub fn ensureStillOpen(loop: *LoopFields, sock: *Object, fd: core.sys.fd_t, buffer: *Object) py.Error!void {
    if (py.isExact(buffer, &c.PyBytes_Type) or py.isExact(buffer, &c.PyByteArray_Type) or py.isExact(buffer, &c.PyMemoryView_Type)) return;
    if (try fileno(loop, sock) != fd) return raise.errno(.BADF);
}

pub fn receiveInto(loop: *LoopFields, sock: *Object, fd: core.sys.fd_t, buffer: *Object) py.Error!?*Object {
    var view: c.Py_buffer = undefined;
    try getWritable("recv_into", buffer, &view);
    defer c.PyBuffer_Release(&view);
    try ensureStillOpen(loop, sock, fd, buffer);
    if (view.len == 0) return try py.newInt(0);
    const count = (try counted(core.sys.recvNow(fd, view.buf.?[0..@intCast(view.len)]))) orelse return null;
    return try py.newInt(count);
}

pub fn receiveFrom(loop: *LoopFields, fd: core.sys.fd_t, size: usize) py.Error!?*Object {
    var from: Address = undefined;
    const data = if (size <= shared_size_max) data: {
        const buffer = try loop.readBuffer();
        const count = (try counted(core.datagram.receiveFrom(fd, buffer[0..size], &from))) orelse return null;
        break :data try py.newBytes(buffer[0..count]);
    } else data: {
        var data: ?*Object = try py.check(c.PyBytes_FromStringAndSize(null, @intCast(size)));
        const outcome = counted(core.datagram.receiveFrom(fd, py.bytesOf(data.?), &from)) catch |err| {
            py.decref(data.?);
            return err;
        };
        const count = outcome orelse {
            py.decref(data.?);
            return null;
        };
        if (count < size and c._PyBytes_Resize(&data, @intCast(count)) < 0) return error.Python;
        break :data data.?;
    };
    defer py.decref(data);
    return try withPeer(data, &from);
}

pub fn receiveFromInto(loop: *LoopFields, sock: *Object, fd: core.sys.fd_t, buffer: *Object, size: usize) py.Error!?*Object {
    var view: c.Py_buffer = undefined;
    try getWritable("recvfrom_into", buffer, &view);
    defer c.PyBuffer_Release(&view);
    try ensureStillOpen(loop, sock, fd, buffer);
    if (size > view.len) return py.raise(c.PyExc_ValueError, "nbytes is greater than the length of the buffer");
    const target: []u8 = if (view.buf) |start| start[0..size] else &.{};
    var from: Address = undefined;
    const count = (try counted(core.datagram.receiveFrom(fd, target, &from))) orelse return null;
    const number = try py.newInt(count);
    defer py.decref(number);
    return try withPeer(number, &from);
}

/// `(what, address)` as `recvfrom` gives it: no address for a peer without a name.
fn withPeer(what: *Object, from: *const Address) py.Error!*Object {
    const peer = if (from.len == 0) py.newNone() else (try address_.toObject(from)) orelse py.newNone();
    defer py.decref(peer);
    return py.newTuple(.{ what, peer });
}

/// A new socket object of the listener's kind, which does not block.
pub fn accept(loop: *LoopFields, sock: *Object, fd: core.sys.fd_t) py.Error!?*Object {
    const state = loop.state;
    var peer: Address = undefined;
    const accepted: core.sys.fd_t = @intCast((try counted(core.sys.accept(fd, &peer))) orelse return null);
    const conn = conn: {
        errdefer core.sys.close(accepted);
        const proto = try py.getAttr(sock, state.name(.proto));
        defer py.decref(proto);
        const number = try py.newInt(accepted);
        defer py.decref(number);
        // An unnamed Unix peer comes without a family.
        const family = try py.newInt(@as(usize, if (peer.len == 0) localFamily(fd) else peer.family()));
        defer py.decref(family);
        // With this flag Python knows without asking that the descriptor does not block.
        const kind = try py.newInt(@as(usize, sc.SOCK.STREAM | if (core.sys.is_linux) sc.SOCK.NONBLOCK else 0));
        defer py.decref(kind);
        break :conn try py.call(state.socket_type, .{ family, kind, proto, number });
    };
    defer py.decref(conn);
    if (comptime !core.sys.is_linux) {
        py.decref(try py.callMethod(conn, state.name(.setblocking), .{@as(*Object, &c._Py_FalseStruct)}));
    }
    const address = if (peer.len == 0) try emptyName() else (try address_.toObject(&peer)) orelse
        try py.callMethod(conn, state.name(.getpeername), .{});
    defer py.decref(address);
    return try py.newTuple(.{ conn, address });
}

fn emptyName() py.Error!*Object {
    return py.check(c.PyUnicode_FromString(""));
}

fn localFamily(fd: core.sys.fd_t) sc.sa_family_t {
    var own: Address = undefined;
    return if (core.sys.localAddress(fd, &own) == null) own.family() else sc.AF.UNSPEC;
}

/// None once all of `bytes` has left; otherwise `sent` counts what has.
pub fn sendAll(fd: core.sys.fd_t, bytes: []const u8, sent: *usize) py.Error!?*Object {
    sent.* = (try counted(core.sys.sendNow(fd, bytes))) orelse return null;
    return if (sent.* == bytes.len) py.newNone() else null;
}

pub fn sendTo(loop: *LoopFields, sock: *Object, fd: core.sys.fd_t, data: *Object, to: *const Address) py.Error!?*Object {
    var view: c.Py_buffer = undefined;
    try py.checkInt(c.PyObject_GetBuffer(data, &view, c.PyBUF_SIMPLE));
    defer c.PyBuffer_Release(&view);
    try ensureStillOpen(loop, sock, fd, data);
    const bytes = if (view.buf) |start| start[0..@intCast(view.len)] else &.{};
    const count = (try counted(core.datagram.sendTo(fd, bytes, to))) orelse return null;
    return try py.newInt(count);
}

/// How a connection attempt has ended, with asyncio's message.
fn connected(fd: core.sys.fd_t, address: *Object) py.Error!*Object {
    const code = core.sys.socketError(fd);
    if (code == .SUCCESS) return py.newNone();
    const text = try py.check(c.PyUnicode_FromFormat("Connect call failed %S", address));
    defer py.decref(text);
    const number = try py.newInt(@backingInt(code));
    defer py.decref(number);
    const exception = try py.call(c.PyExc_OSError, .{ number, text });
    defer py.decref(exception);
    py.restoreException(exception);
    return error.Python;
}
