//! Datagrams in and out of a socket: several per system call where the kernel has one for it.
//!
//! A `Batch` belongs to one loop and is used by all its datagram sockets in turn. What `receive`
//! put into it stays until the next `receive`.

const std = @import("std");
const c = std.c;
const sys = @import("sys.zig");

const Address = sys.Address;
const Allocator = std.mem.Allocator;

/// No internet datagram is longer: its length is a 16 bit number.
pub const size_max = 64 * 1024;

/// Datagrams that one call can take: enough to drain a burst, few enough to let others run.
pub const batch_count_max = if (sys.is_linux) 16 else 1;

/// Slots that all began at a page boundary would share a few sets of the processor's cache.
const slot_stride = size_max + 5 * std.atomic.cache_line;

/// `struct mmsghdr` of Linux.
const Message = extern struct {
    header: c.msghdr,
    len: c_uint,
};

extern "c" fn recvmmsg(fd: sys.fd_t, messages: [*]Message, count: c_uint, flags: c_int, timeout: ?*c.timespec) c_int;

pub const Batch = struct {
    /// The kernel backs only the pages that datagrams have touched.
    memory: []u8,
    addresses: [batch_count_max]Address,
    iovecs: [batch_count_max]sys.MutableIovec,
    messages: if (batch_count_max > 1) [batch_count_max]Message else void,
    /// Length of the one datagram, where calls take one.
    single_len: usize,
    /// False where the system or a sandbox has no call for several: they come one at a time.
    takes_several: bool,

    pub fn create(gpa: Allocator) Allocator.Error!*Batch {
        const self = try gpa.create(Batch);
        errdefer gpa.destroy(self);
        self.memory = try gpa.alloc(u8, batch_count_max * slot_stride);
        self.single_len = 0;
        self.takes_several = batch_count_max > 1;
        for (&self.iovecs, &self.addresses, 0..) |*iovec, *address, i| {
            address.* = .{};
            iovec.* = .{ .base = self.memory.ptr + i * slot_stride, .len = size_max };
        }
        if (comptime batch_count_max > 1) for (&self.messages, &self.addresses, &self.iovecs) |*message, *address, *iovec| {
            message.* = .{ .header = .{
                .name = @ptrCast(&address.storage),
                .namelen = @sizeOf(@TypeOf(address.storage)),
                .iov = @ptrCast(iovec),
                .iovlen = 1,
                .control = null,
                .controllen = 0,
                .flags = 0,
            }, .len = 0 };
        };
        return self;
    }

    pub fn destroy(self: *Batch, gpa: Allocator) void {
        gpa.free(self.memory);
        gpa.destroy(self);
    }

    /// `done` counts datagrams, at least one. An error behind the first datagram is kept by the
    /// kernel for the next call.
    pub fn receive(self: *Batch, fd: sys.fd_t) sys.Outcome {
        if (comptime batch_count_max == 1) return self.receiveOne(fd);
        while (true) {
            if (!self.takes_several) return self.receiveOne(fd);
            const rc = recvmmsg(fd, &self.messages, batch_count_max, c.MSG.DONTWAIT, null);
            if (rc < 0 and sys.isRefusal()) {
                self.takes_several = false;
                continue;
            }
            const result = sys.outcome(rc) orelse continue;
            if (result == .done) for (self.messages[0..result.done], self.addresses[0..result.done]) |*message, *address| {
                address.len = message.header.namelen;
                message.header.namelen = @sizeOf(@TypeOf(address.storage));
            };
            return result;
        }
    }

    fn receiveOne(self: *Batch, fd: sys.fd_t) sys.Outcome {
        const result = receiveFrom(fd, self.memory[0..size_max], &self.addresses[0]);
        if (result != .done) return result;
        self.single_len = result.done;
        return .{ .done = 1 };
    }

    pub fn bytes(self: *const Batch, index: usize) []const u8 {
        const len = if (comptime batch_count_max == 1)
            self.single_len
        else if (self.takes_several) self.messages[index].len else self.single_len;
        return self.iovecs[index].base[0..len];
    }
};

/// One datagram; what does not fit into `buffer` is lost.
pub fn receiveFrom(fd: sys.fd_t, buffer: []u8, address: *Address) sys.Outcome {
    while (true) {
        address.len = @sizeOf(@TypeOf(address.storage));
        const rc = c.recvfrom(fd, buffer.ptr, buffer.len, c.MSG.DONTWAIT, @ptrCast(&address.storage), &address.len);
        if (sys.outcome(rc)) |result| return result;
    }
}

pub fn sendTo(fd: sys.fd_t, bytes: []const u8, address: *const Address) sys.Outcome {
    const flags = c.MSG.NOSIGNAL | c.MSG.DONTWAIT;
    while (true) {
        const rc = c.sendto(fd, bytes.ptr, bytes.len, flags, @ptrCast(&address.storage), address.len);
        if (sys.outcome(rc)) |result| return result;
    }
}

test "a batch takes what has come, in order, with empty and largest datagrams and their senders" {
    const gpa = std.testing.allocator;
    const receiver = try boundSocket();
    defer sys.close(receiver);
    const sender = try boundSocket();
    defer sys.close(sender);
    var to: Address = .{};
    try std.testing.expectEqual(@as(?sys.Errno, null), sys.localAddress(receiver, &to));
    var from: Address = .{};
    try std.testing.expectEqual(@as(?sys.Errno, null), sys.localAddress(sender, &from));

    const batch: *Batch = try .create(gpa);
    defer batch.destroy(gpa);
    try std.testing.expectEqual(sys.Outcome.would_block, batch.receive(receiver));

    var largest: [65507]u8 = undefined;
    for (&largest, 0..) |*byte, i| byte.* = @truncate(i *% 7);
    // Twice: the second call must not see lengths that the first left behind. And as in a sandbox, one at a time.
    for ([_]bool{ true, true, false }) |takes_several| {
        batch.takes_several = takes_several and batch_count_max > 1;
        const sent = [_][]const u8{ "first", "", &largest, "last" };
        for (sent) |bytes| try std.testing.expectEqual(sys.Outcome{ .done = bytes.len }, sendTo(sender, bytes, &to));
        var next: usize = 0;
        while (next < sent.len) {
            const count = batch.receive(receiver).done;
            for (0..count) |i| {
                try std.testing.expectEqualSlices(u8, sent[next], batch.bytes(i));
                try std.testing.expectEqualSlices(u8, from.bytes(), batch.addresses[i].bytes());
                next += 1;
            }
        }
        try std.testing.expectEqual(sys.Outcome.would_block, batch.receive(receiver));
    }
}

test "a batch leaves what is more than it can hold" {
    const gpa = std.testing.allocator;
    const receiver = try boundSocket();
    defer sys.close(receiver);
    var to: Address = .{};
    try std.testing.expectEqual(@as(?sys.Errno, null), sys.localAddress(receiver, &to));
    const batch: *Batch = try .create(gpa);
    defer batch.destroy(gpa);
    const total = batch_count_max + 3;
    for (0..total) |i| _ = sendTo(receiver, &.{@intCast(i)}, &to);
    var next: usize = 0;
    while (next < total) {
        const count = batch.receive(receiver).done;
        try std.testing.expect(count <= batch_count_max);
        for (0..count) |i| {
            try std.testing.expectEqualSlices(u8, &.{@intCast(next)}, batch.bytes(i));
            next += 1;
        }
    }
    try std.testing.expectEqual(sys.Outcome.would_block, batch.receive(receiver));
}

fn boundSocket() !sys.fd_t {
    const fd = c.socket(c.AF.INET, c.SOCK.DGRAM, 0);
    if (fd < 0) return error.SkipZigTest;
    const local: c.sockaddr.in = .{ .port = 0, .addr = @bitCast([4]u8{ 127, 0, 0, 1 }) };
    try std.testing.expectEqual(@as(c_int, 0), c.bind(fd, @ptrCast(&local), @sizeOf(c.sockaddr.in)));
    return fd;
}
