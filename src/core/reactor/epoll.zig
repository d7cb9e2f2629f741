//! Linux: epoll, level-triggered, with an eventfd for wake-ups.
//!
//! Facts that shaped this file:
//! - epoll watches open file descriptions, not numbers. If another process holds a duplicate,
//!   `close()` here leaves the registration alive and reporting for ever, and it can no longer be
//!   removed. So the owner always calls `set(…, none)` before it closes a descriptor, and where a
//!   program has closed one first, only a new epoll ends the reports (`renew`).
//! - Level-triggered costs nothing extra here: a transport reads once per turn and is told again.
//! - The eventfd is edge-triggered: each write to it wakes, and nobody ever needs to read it back
//!   (its counter would overflow after 2^64 wake-ups). A sandbox may refuse it: a pipe then wakes, which
//!   has to be emptied.
//! - `epoll_wait` counts milliseconds; `epoll_pwait2` (Linux 5.11) nanoseconds. Where it is missing,
//!   timeouts round up: late by at most a millisecond, never early, never a busy wait.

const std = @import("std");
const linux = std.os.linux;
const reactor = @import("../reactor.zig");
const clock = @import("../clock.zig");
const sys = @import("../sys.zig");

const Event = reactor.Event;
const Interest = reactor.Interest;
const Token = reactor.Token;

/// The eventfd's token: no descriptor is -1.
const wake_token: Token = .{ .fd = -1, .generation = 0 };

pub const Epoll = struct {
    epoll_fd: reactor.fd_t,
    /// Written to for a wake-up.
    wake_fd: reactor.fd_t,
    /// What epoll watches for it: the eventfd itself, or the other end of a pipe.
    wake_reader: reactor.fd_t,
    has_pwait2: bool,

    /// One wait reports at most this many events; more are reported by the next wait.
    const batch_count_max = 512;

    pub fn open() reactor.OpenError!Epoll {
        const epoll_fd = try openResult("epoll_create1", linux.epoll_create1(linux.EPOLL.CLOEXEC));
        errdefer _ = linux.close(epoll_fd);
        const wake_reader, const wake_fd = try openWake();
        var self: Epoll = .{ .epoll_fd = epoll_fd, .wake_fd = wake_fd, .wake_reader = wake_reader, .has_pwait2 = true };
        errdefer self.closeWake();
        try self.watchWake(epoll_fd);
        return self;
    }

    /// The descriptors to read and to write for a wake-up.
    fn openWake() reactor.OpenError![2]reactor.fd_t {
        const rc = linux.eventfd(0, linux.EFD.CLOEXEC | linux.EFD.NONBLOCK);
        switch (linux.errno(rc)) {
            .NOSYS, .PERM => {},
            else => return @splat(try openResult("eventfd2", rc)),
        }
        var ends: [2]reactor.fd_t = undefined;
        _ = try openResult("pipe2", linux.pipe2(&ends, .{ .NONBLOCK = true, .CLOEXEC = true }));
        return ends;
    }

    fn watchWake(self: *const Epoll, epoll_fd: reactor.fd_t) reactor.OpenError!void {
        // A pipe is read, so it needs no edges, and an edge could be missed while one is being read.
        const edge: u32 = if (self.wake_reader == self.wake_fd) linux.EPOLL.ET else 0;
        control(epoll_fd, linux.EPOLL.CTL_ADD, wake_token, self.wake_reader, linux.EPOLL.IN | edge) catch |err| return switch (err) {
            error.SystemResources => error.SystemResources,
            else => error.Unexpected,
        };
    }

    fn closeWake(self: *Epoll) void {
        _ = linux.close(self.wake_fd);
        if (self.wake_reader != self.wake_fd) _ = linux.close(self.wake_reader);
    }

    pub fn close(self: *Epoll) void {
        self.closeWake();
        _ = linux.close(self.epoll_fd);
        self.* = undefined;
    }

    /// A new epoll takes the place, and the number, of the old one.
    pub fn renew(self: *Epoll) reactor.OpenError!void {
        const fresh = try openResult("epoll_create1", linux.epoll_create1(linux.EPOLL.CLOEXEC));
        defer _ = linux.close(fresh);
        try self.watchWake(fresh);
        const close_on_exec: u32 = @bitCast(linux.O{ .CLOEXEC = true });
        _ = try openResult("dup3", linux.dup3(fresh, self.epoll_fd, close_on_exec));
    }

    pub fn fileno(self: *const Epoll) reactor.fd_t {
        return self.epoll_fd;
    }

    pub fn set(self: *Epoll, token: Token, before: Interest, after: Interest) reactor.SetError!void {
        if (before == after) return;
        if (after.isNone()) {
            return control(self.epoll_fd, linux.EPOLL.CTL_DEL, token, token.fd, 0);
        }
        const op: u32 = if (before.isNone()) linux.EPOLL.CTL_ADD else linux.EPOLL.CTL_MOD;
        return control(self.epoll_fd, op, token, token.fd, eventMask(after));
    }

    pub fn wait(self: *Epoll, buffer: []Event, timeout_ns: ?u64) reactor.WaitError![]Event {
        var raw: [batch_count_max]linux.epoll_event = undefined;
        const count_max = @min(buffer.len, raw.len);
        const rc = self.waitRaw(raw[0..count_max], timeout_ns);
        switch (linux.errno(rc)) {
            .SUCCESS => {},
            .INTR => return error.Interrupted,
            else => |errno| return sys.unexpectedError("epoll_wait", errno),
        }
        var count: usize = 0;
        for (raw[0..rc]) |event| {
            const token: Token = @bitCast(event.data.u64);
            if (token == wake_token) {
                self.takeWake();
                continue;
            }
            buffer[count] = .{ .token = token, .readiness = .{
                .read = event.events & ~@as(u32, linux.EPOLL.OUT) != 0,
                .write = event.events & ~@as(u32, linux.EPOLL.IN) != 0,
            } };
            count += 1;
        }
        return buffer[0..count];
    }

    fn waitRaw(self: *Epoll, raw: []linux.epoll_event, timeout_ns: ?u64) usize {
        const count_max: u32 = @intCast(raw.len);
        const ns = timeout_ns orelse return linux.epoll_wait(self.epoll_fd, raw.ptr, count_max, -1);
        if (ns == 0) return linux.epoll_wait(self.epoll_fd, raw.ptr, count_max, 0);
        if (self.has_pwait2) {
            const timeout: linux.kernel_timespec = .{
                .sec = @intCast(ns / clock.ns_per_s),
                .nsec = @intCast(ns % clock.ns_per_s),
            };
            const rc = linux.syscall6(
                .epoll_pwait2,
                @as(u32, @bitCast(self.epoll_fd)),
                @intFromPtr(raw.ptr),
                count_max,
                @intFromPtr(&timeout),
                0,
                0,
            );
            switch (linux.errno(rc)) {
                // Old kernels do not know the call; container filters may refuse it.
                .NOSYS, .PERM => self.has_pwait2 = false,
                else => return rc,
            }
        }
        return linux.epoll_wait(self.epoll_fd, raw.ptr, count_max, ceilMs(ns));
    }

    fn takeWake(self: *Epoll) void {
        if (self.wake_reader == self.wake_fd) return;
        var bytes: [64]u8 = undefined;
        while (true) switch (sys.read(self.wake_reader, &bytes)) {
            .done => |len| if (len < bytes.len) return,
            .would_block, .failed => return,
        };
    }

    pub fn wake(self: *Epoll) void {
        const one: u64 = 1;
        // Fails only when the counter or the pipe is full, and then the loop is being woken anyway.
        _ = linux.write(self.wake_fd, std.mem.asBytes(&one), @sizeOf(u64));
    }
};

fn ceilMs(ns: u64) i32 {
    const ms = std.math.divCeil(u64, ns, clock.ns_per_ms) catch unreachable;
    return @intCast(@min(ms, std.math.maxInt(i32)));
}

fn eventMask(interest: Interest) u32 {
    var mask: u32 = 0;
    if (interest.read) mask |= linux.EPOLL.IN;
    if (interest.write) mask |= linux.EPOLL.OUT;
    return mask;
}

fn control(epoll_fd: reactor.fd_t, op: u32, token: Token, fd: reactor.fd_t, mask: u32) reactor.SetError!void {
    var event: linux.epoll_event = .{ .events = mask, .data = .{ .u64 = @bitCast(token) } };
    return switch (linux.errno(linux.epoll_ctl(epoll_fd, op, fd, &event))) {
        .SUCCESS => {},
        // NOENT: the number was closed behind our back and now names something else.
        .BADF, .NOENT => error.BadDescriptor,
        // EXIST: the number was closed and reopened behind our back while a duplicate of the same
        // description is registered under it.
        .EXIST => error.BadDescriptor,
        .PERM => error.NotPollable,
        .NOMEM, .NOSPC => error.SystemResources,
        else => |errno| sys.unexpectedError("epoll_ctl", errno),
    };
}

fn openResult(call: [:0]const u8, rc: usize) reactor.OpenError!reactor.fd_t {
    return switch (linux.errno(rc)) {
        .SUCCESS => @intCast(rc),
        .MFILE => error.ProcessFdQuotaExceeded,
        .NFILE => error.SystemFdQuotaExceeded,
        .NOMEM => error.SystemResources,
        else => |errno| sys.unexpectedError(call, errno),
    };
}

test "timeouts round up" {
    try std.testing.expectEqual(@as(i32, 1), ceilMs(1));
    try std.testing.expectEqual(@as(i32, 1), ceilMs(1_000_000));
    try std.testing.expectEqual(@as(i32, 2), ceilMs(1_000_001));
    try std.testing.expectEqual(std.math.maxInt(i32), ceilMs(std.math.maxInt(u64)));
}

test "without epoll_pwait2 a timeout is still never early" {
    var epoll = try Epoll.open();
    defer epoll.close();
    epoll.has_pwait2 = false;
    var events: [1]Event = undefined;
    const start_ns = clock.nowNs();
    const got = try epoll.wait(&events, 1_500_000);
    try std.testing.expectEqual(@as(usize, 0), got.len);
    try std.testing.expect(clock.nowNs() - start_ns >= 1_500_000);
}
