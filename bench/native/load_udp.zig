//! Datagram echo with a fixed number in flight. Each datagram carries its send time; a silent quarter of a second
//! means that datagrams were lost, and the flight is filled up again.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");
const Window = @import("window.zig").Window;

const in_flight_max = 256;
const datagram_bytes_max = 65536;
const silence_max_ms = 250;

const Datagrams = struct {
    headers: [in_flight_max]linux.mmsghdr = undefined,
    vectors: [in_flight_max]std.posix.iovec = undefined,

    /// All entries point into `memory`, `size` bytes each.
    fn init(datagrams: *Datagrams, memory: []u8, size: usize) void {
        for (&datagrams.headers, &datagrams.vectors, 0..) |*header, *vector, index| {
            vector.* = .{ .base = memory[index * size ..].ptr, .len = size };
            header.* = std.mem.zeroes(linux.mmsghdr);
            header.hdr.iov = @ptrCast(vector);
            header.hdr.iovlen = 1;
        }
    }
};

pub fn run(gpa: std.mem.Allocator, port: u16, size: usize, in_flight: usize, window: *Window) u64 {
    if (size < @sizeOf(u64) or size > datagram_bytes_max) sys.fatal("datagram size out of range: {d}", .{size});
    if (in_flight == 0 or in_flight > in_flight_max) sys.fatal("in flight out of range: {d}", .{in_flight});
    const fd = sys.newSocket(linux.AF.INET, linux.SOCK.DGRAM);
    const address: sys.Address = .loopback(port, 1);
    _ = sys.must(linux.connect(fd, address.pointer(), address.length()), "connect");
    const memory = gpa.alloc(u8, in_flight_max * size) catch sys.fatal("out of memory", .{});
    @memset(memory, 'u');
    const datagrams = gpa.create(Datagrams) catch sys.fatal("out of memory", .{});
    datagrams.init(memory, size);

    var lost: u64 = 0;
    var outstanding: usize = 0;
    send(fd, datagrams, in_flight, &outstanding);
    window.rampedUp(sys.nowNs());
    while (window.phase != .done) {
        const arrived = receive(fd, datagrams);
        if (arrived == 0) {
            if (isReadable(fd)) continue;
            lost += outstanding;
            outstanding = 0;
            send(fd, datagrams, in_flight, &outstanding);
            continue;
        }
        const now_ns = sys.nowNs();
        for (datagrams.vectors[0..arrived]) |vector| {
            const sent_ns = std.mem.readInt(u64, vector.base[0..8], .little);
            window.record(now_ns, now_ns - sent_ns);
        }
        outstanding -|= arrived;
        window.advance(now_ns);
        send(fd, datagrams, in_flight -| outstanding, &outstanding);
    }
    return lost;
}

fn send(fd: sys.fd_t, datagrams: *Datagrams, count: usize, outstanding: *usize) void {
    const now_ns = sys.nowNs();
    for (datagrams.vectors[0..count]) |vector| std.mem.writeInt(u64, vector.base[0..8], now_ns, .little);
    var sent: usize = 0;
    while (sent < count) {
        const rc = linux.sendmmsg(fd, datagrams.headers[sent..].ptr, @intCast(count - sent), 0);
        switch (linux.errno(rc)) {
            .SUCCESS => sent += rc,
            .AGAIN, .INTR, .NOBUFS => {},
            else => |code| sys.fatal("sendmmsg: {t}", .{code}),
        }
    }
    outstanding.* += count;
}

fn receive(fd: sys.fd_t, datagrams: *Datagrams) usize {
    const rc = linux.recvmmsg(fd, &datagrams.headers, in_flight_max, 0, null);
    return switch (linux.errno(rc)) {
        .SUCCESS => rc,
        .AGAIN, .INTR => 0,
        else => |code| sys.fatal("recvmmsg: {t}", .{code}),
    };
}

fn isReadable(fd: sys.fd_t) bool {
    var entry = [1]linux.pollfd{.{ .fd = fd, .events = linux.POLL.IN, .revents = 0 }};
    return sys.must(linux.poll(&entry, 1, silence_max_ms), "poll") == 1;
}
