//! Level-triggered epoll with an index as the event's data.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");

pub const Poller = struct {
    fd: sys.fd_t,
    events: [events_max]linux.epoll_event = undefined,

    const events_max = 256;

    pub fn init() Poller {
        return .{ .fd = @intCast(sys.must(linux.epoll_create1(linux.EPOLL.CLOEXEC), "epoll_create1")) };
    }

    pub fn add(poller: *Poller, fd: sys.fd_t, interest: u32, index: usize) void {
        poller.control(linux.EPOLL.CTL_ADD, fd, interest, index);
    }

    pub fn modify(poller: *Poller, fd: sys.fd_t, interest: u32, index: usize) void {
        poller.control(linux.EPOLL.CTL_MOD, fd, interest, index);
    }

    fn control(poller: *Poller, operation: u32, fd: sys.fd_t, interest: u32, index: usize) void {
        var event: linux.epoll_event = .{ .events = interest, .data = .{ .ptr = index } };
        _ = sys.must(linux.epoll_ctl(poller.fd, operation, fd, &event), "epoll_ctl");
    }

    /// Without a timeout it waits for ever. The slice is good until the next wait.
    pub fn wait(poller: *Poller, timeout_ns: ?u64) []linux.epoll_event {
        var timeout: linux.timespec = undefined;
        if (timeout_ns) |ns| timeout = .{
            .sec = @intCast(ns / std.time.ns_per_s),
            .nsec = @intCast(ns % std.time.ns_per_s),
        };
        const rc = linux.syscall6(
            .epoll_pwait2,
            @intCast(poller.fd),
            @intFromPtr(&poller.events),
            events_max,
            if (timeout_ns == null) 0 else @intFromPtr(&timeout),
            0,
            0,
        );
        return switch (linux.errno(rc)) {
            .SUCCESS => poller.events[0..rc],
            .INTR => poller.events[0..0],
            else => |code| sys.fatal("epoll_wait: {t}", .{code}),
        };
    }
};
