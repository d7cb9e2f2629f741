//! System calls on descriptors, with one outcome type and the errno rows that every caller shares:
//! an interrupted call is repeated, "would block" is not an error, the rest is the caller's to map.

const std = @import("std");
const builtin = @import("builtin");
const c = std.c;
const root = @import("root");

/// What a build waits for events by. The emulated ones are for tests on Linux: the kqueue backend over a kqueue
/// made of epoll (reactor/kqueue_emulated.zig), and every branch for systems that are not Linux.
pub const Backend = enum { native, kqueue_emulated, kqueue_emulated_pipe };
pub const backend: Backend = if (@hasDecl(root, "zloop_backend")) root.zloop_backend else .native;

/// Ask this, not the target, where Linux can do what other systems cannot.
pub const is_linux = builtin.os.tag == .linux and backend == .native;

pub const fd_t = c.fd_t;
pub const Errno = c.E;

pub const Outcome = union(enum) {
    /// Bytes moved, or the new descriptor.
    done: usize,
    would_block,
    failed: Errno,
};

/// The call behind this thread's latest `error.Unexpected`, which has no room for it.
pub threadlocal var unexpected: struct { call: [:0]const u8 = "", errno: Errno = .SUCCESS } = .{};

/// The error for an errno that nobody has reckoned with.
pub fn unexpectedError(call: [:0]const u8, errno: Errno) error{Unexpected} {
    unexpected = .{ .call = call, .errno = errno };
    return error.Unexpected;
}

/// A write to a peer that has gone must be an error, not a signal. Older macOS ignores the flag;
/// CPython ignores the signal by default anyway.
const send_flags: u32 = c.MSG.NOSIGNAL;

/// The kernel's limit for one `sendmsg` or `writev` (IOV_MAX) is 1024 on every system here.
pub const iovec_count_max = 1024;

pub const Iovec = extern struct { base: [*]const u8, len: usize };
pub const MutableIovec = extern struct { base: [*]u8, len: usize };

/// Null for a call to repeat.
pub inline fn outcome(rc: isize) ?Outcome {
    if (rc >= 0) return .{ .done = @intCast(rc) };
    const errno: Errno = @fromBackingInt(@intCast(c._errno().*));
    return switch (errno) {
        .INTR => null,
        .AGAIN => .would_block,
        else => .{ .failed = errno },
    };
}

pub fn recv(fd: fd_t, buffer: []u8) Outcome {
    while (true) if (outcome(c.recv(fd, buffer.ptr, buffer.len, 0))) |result| return result;
}

pub fn send(fd: fd_t, bytes: []const u8) Outcome {
    while (true) if (outcome(c.send(fd, bytes.ptr, bytes.len, send_flags))) |result| return result;
}

/// As `recv` and `send` for a descriptor whose blocking mode is the program's own.
pub fn recvNow(fd: fd_t, buffer: []u8) Outcome {
    while (true) if (outcome(c.recv(fd, buffer.ptr, buffer.len, c.MSG.DONTWAIT))) |result| return result;
}

pub fn sendNow(fd: fd_t, bytes: []const u8) Outcome {
    while (true) if (outcome(c.send(fd, bytes.ptr, bytes.len, send_flags | c.MSG.DONTWAIT))) |result| return result;
}

/// Begins to connect; `would_block` means that the end of it shows as room to write. An interrupted
/// call goes on in the background. A Unix listener whose queue is full fails with AGAIN.
pub fn connect(fd: fd_t, address: *const Address) Outcome {
    if (c.connect(fd, @ptrCast(&address.storage), address.len) == 0) return .{ .done = 0 };
    const errno: Errno = @fromBackingInt(@intCast(c._errno().*));
    return switch (errno) {
        .INPROGRESS, .ALREADY, .INTR => .would_block,
        else => .{ .failed = errno },
    };
}

/// Whether an attempt to connect has succeeded already: on loopback the kernel does all of it within the call,
/// and asking costs less than waiting in the reactor. A failure stays with the socket, for whoever asks next.
pub fn hasConnected(fd: fd_t) bool {
    var query = [_]c.pollfd{.{ .fd = fd, .events = c.POLL.OUT, .revents = 0 }};
    return c.poll(&query, 1, 0) == 1 and query[0].revents == c.POLL.OUT;
}

/// The error that waits on a socket, which this takes away.
pub fn socketError(fd: fd_t) Errno {
    var code: c_int = 0;
    var len: c.socklen_t = @sizeOf(c_int);
    if (c.getsockopt(fd, c.SOL.SOCKET, c.SO.ERROR, &code, &len) != 0) code = c._errno().*;
    return @fromBackingInt(@intCast(code));
}

/// Linux's form of the call. Leaves the file's own position alone.
pub fn sendfile(fd: fd_t, file: fd_t, offset: i64, size: usize) Outcome {
    if (comptime !is_linux) return .{ .failed = .NOSYS };
    while (true) {
        var position = offset;
        if (outcome(c.sendfile64(fd, file, &position, size))) |result| return result;
    }
}

pub fn sendv(fd: fd_t, pieces: []const Iovec) Outcome {
    const message: c.msghdr_const = .{
        .name = null,
        .namelen = 0,
        .iov = @ptrCast(pieces.ptr),
        .iovlen = @intCast(pieces.len),
        .control = null,
        .controllen = 0,
        .flags = 0,
    };
    while (true) if (outcome(c.sendmsg(fd, &message, send_flags))) |result| return result;
}

pub fn read(fd: fd_t, buffer: []u8) Outcome {
    while (true) if (outcome(c.read(fd, buffer.ptr, buffer.len))) |result| return result;
}

pub fn write(fd: fd_t, bytes: []const u8) Outcome {
    while (true) if (outcome(c.write(fd, bytes.ptr, bytes.len))) |result| return result;
}

pub fn writev(fd: fd_t, pieces: []const Iovec) Outcome {
    while (true) if (outcome(c.writev(fd, @ptrCast(pieces.ptr), @intCast(pieces.len)))) |result| return result;
}

/// Never repeated: after EINTR the descriptor is gone on Linux and the BSDs alike, and a second
/// close could hit somebody else's.
pub fn close(fd: fd_t) void {
    _ = c.close(fd);
}

/// OpenBSD has the command since 5.0; Zig's standard library does not know its number there.
const dupfd_cloexec: c_int = if (@hasDecl(c.F, "DUPFD_CLOEXEC")) c.F.DUPFD_CLOEXEC else switch (builtin.os.tag) {
    .openbsd => 10,
    else => @compileError("F_DUPFD_CLOEXEC is not known for this system"),
};

/// A second number for the same open file, close-on-exec.
pub fn duplicate(fd: fd_t) Outcome {
    while (true) if (outcome(c.fcntl(fd, dupfd_cloexec, @as(c_int, 0)))) |result| return result;
}

pub fn shutdownWrite(fd: fd_t) ?Errno {
    if (c.shutdown(fd, c.SHUT.WR) == 0) return null;
    return @fromBackingInt(@intCast(c._errno().*));
}

/// A socket address of any family, with the length the kernel gave.
pub const Address = extern struct {
    storage: c.sockaddr.storage = undefined,
    len: c.socklen_t = 0,

    pub fn family(self: *const Address) c.sa_family_t {
        if (self.len < @offsetOf(c.sockaddr, "family") + @sizeOf(c.sa_family_t)) return c.AF.UNSPEC;
        return self.storage.family;
    }

    pub fn bytes(self: *const Address) []const u8 {
        return std.mem.asBytes(&self.storage)[0..self.len];
    }
};

/// A non-blocking, close-on-exec connection from a listening socket.
pub fn accept(fd: fd_t, address: *Address) Outcome {
    while (true) {
        address.len = @sizeOf(@TypeOf(address.storage));
        // std declares accept4 for every system, also for macOS, which has none.
        const has_accept4 = comptime !builtin.os.tag.isDarwin() and backend == .native;
        var rc = if (comptime has_accept4)
            c.accept4(fd, @ptrCast(&address.storage), &address.len, c.SOCK.NONBLOCK | c.SOCK.CLOEXEC)
        else
            acceptThenSet(fd, address);
        // Refused by a sandbox that knows the older call only. (PERM is also a firewall's word: then both fail.)
        if (comptime has_accept4) if (rc < 0 and isRefusal()) {
            rc = acceptThenSet(fd, address);
        };
        if (outcome(rc)) |result| return result;
    }
}

/// Whether the call that has just failed is one that the kernel does not have, or that a filter of calls refuses.
pub fn isRefusal() bool {
    const errno: Errno = @fromBackingInt(@intCast(c._errno().*));
    return errno == .NOSYS or errno == .PERM;
}

fn acceptThenSet(fd: fd_t, address: *Address) c_int {
    const accepted = c.accept(fd, @ptrCast(&address.storage), &address.len);
    if (accepted < 0) return accepted;
    _ = c.fcntl(accepted, c.F.SETFD, @as(c_int, c.FD_CLOEXEC));
    setNonblocking(accepted);
    return accepted;
}

/// For a descriptor of ours; fails only for one that is not open.
pub fn setNonblocking(fd: fd_t) void {
    const flag: c_int = @bitCast(c.O{ .NONBLOCK = true });
    _ = c.fcntl(fd, c.F.SETFL, c.fcntl(fd, c.F.GETFL) | flag);
}

pub fn localAddress(fd: fd_t, address: *Address) ?Errno {
    address.len = @sizeOf(@TypeOf(address.storage));
    if (c.getsockname(fd, @ptrCast(&address.storage), &address.len) == 0) return null;
    address.len = 0;
    return @fromBackingInt(@intCast(c._errno().*));
}

pub fn peerAddress(fd: fd_t, address: *Address) ?Errno {
    address.len = @sizeOf(@TypeOf(address.storage));
    if (c.getpeername(fd, @ptrCast(&address.storage), &address.len) == 0) return null;
    address.len = 0;
    return @fromBackingInt(@intCast(c._errno().*));
}

/// Small writes must not wait for the peer's delayed acknowledgement. Fails harmlessly on sockets
/// that are not TCP.
pub fn setNoDelay(fd: fd_t) void {
    const on: c_int = 1;
    _ = c.setsockopt(fd, c.IPPROTO.TCP, c.TCP.NODELAY, @ptrCast(&on), @sizeOf(c_int));
}

/// Freeing this much at once is worth telling the C library to give it back to the system.
const trim_size_min = 16 * 1024 * 1024;

/// After so many bytes of queued data were freed.
pub fn trimAfterFreeing(size: usize) void {
    if (size >= trim_size_min) trimHeap();
}

/// glibc keeps freed pieces that lie below one still in use; other libraries give back by themselves.
pub fn trimHeap() void {
    if (comptime builtin.os.tag == .linux and builtin.abi.isGnu()) _ = malloc_trim(0);
}

extern fn malloc_trim(pad: usize) c_int;

/// glibc serves large blocks by mapping memory, at the price of a fault for each page of each block, until one
/// of their size has been freed: from then on they come from its heap. Blocks that are shrunk before they are
/// freed never teach it. A program that has set the limit itself is left alone, other libraries need no lesson.
pub fn expectBlocksOf(size: usize) void {
    if (comptime builtin.os.tag != .linux or !builtin.abi.isGnu()) return;
    const block = c.malloc(size);
    // A block that nobody looks at is none to a compiler.
    std.mem.doNotOptimizeAway(block);
    c.free(block);
}

test "a socket pair carries bytes and says when it would block" {
    var pair: [2]fd_t = undefined;
    try std.testing.expectEqual(@as(c_int, 0), c.socketpair(c.AF.UNIX, c.SOCK.STREAM, 0, &pair));
    defer close(pair[0]);
    setNonblocking(pair[0]);
    var buffer: [16]u8 = undefined;
    try std.testing.expectEqual(Outcome.would_block, recv(pair[0], &buffer));
    const pieces = [_]Iovec{ .{ .base = "ab", .len = 2 }, .{ .base = "cde", .len = 3 } };
    try std.testing.expectEqual(Outcome{ .done = 5 }, sendv(pair[1], &pieces));
    try std.testing.expectEqual(Outcome{ .done = 5 }, recv(pair[0], &buffer));
    try std.testing.expectEqualStrings("abcde", buffer[0..5]);
    close(pair[1]);
    try std.testing.expectEqual(Outcome{ .done = 0 }, recv(pair[0], &buffer));
    try std.testing.expectEqual(Outcome{ .failed = .PIPE }, send(pair[0], "x"));
}

test "accept gives a non-blocking descriptor and the peer's address" {
    const listener = c.socket(c.AF.INET, c.SOCK.STREAM, 0);
    defer close(listener);
    setNonblocking(listener);
    var address: Address = .{ .len = @sizeOf(c.sockaddr.in) };
    const local: *c.sockaddr.in = @ptrCast(@alignCast(&address.storage));
    local.* = .{ .port = 0, .addr = @bitCast([4]u8{ 127, 0, 0, 1 }) };
    try std.testing.expectEqual(@as(c_int, 0), c.bind(listener, @ptrCast(&address.storage), address.len));
    try std.testing.expectEqual(@as(c_int, 0), c.listen(listener, 1));
    try std.testing.expectEqual(@as(?Errno, null), localAddress(listener, &address));
    var peer: Address = .{};
    try std.testing.expectEqual(Outcome.would_block, accept(listener, &peer));
    const client = c.socket(c.AF.INET, c.SOCK.STREAM, 0);
    defer close(client);
    try std.testing.expectEqual(@as(c_int, 0), c.connect(client, @ptrCast(&address.storage), address.len));
    const accepted: fd_t = @intCast(accept(listener, &peer).done);
    defer close(accepted);
    try std.testing.expectEqual(@as(c.sa_family_t, c.AF.INET), peer.family());
    var buffer: [1]u8 = undefined;
    try std.testing.expectEqual(Outcome.would_block, recv(accepted, &buffer));
}
