//! macOS and the BSDs: kqueue, level-triggered, with EVFILT_USER or a pipe for wake-ups.
//!
//! Facts that shaped this file:
//! - A registration (knote) belongs to a descriptor number and one filter; reading and writing are
//!   two. `close()` removes both without a word, so a number closed and reopened behind our back
//!   has lost what it was watched for, and no later change would say so. Hence `set` adds every
//!   wanted filter again, not only the new one: EV_ADD of what is there already modifies it.
//! - Each filter reports for itself: one descriptor can come twice in a batch, and EV_EOF of one
//!   direction does not speak for the other. A peer that only stopped sending leaves us writable
//!   or not as before; one that is gone makes both filters report. selectors.KqueueSelector
//!   maps the rows the same way.
//! - With EV_RECEIPT each change answers by a row of its own (EV_ERROR, the errno in `data`, 0 for
//!   success) and no event is taken from the queue in the same call. Without it the first failing
//!   change hides the fate of the rest.
//! - Adding EVFILT_WRITE to a pipe whose reader has gone fails: EPIPE, on NetBSD EBADF. epoll
//!   reports such a pipe as ready, and the write that follows meets the reason. A one-shot timer
//!   says so here instead.
//! - A full pipe that was watched for EVFILT_WRITE before its reader closed never reports on NetBSD
//!   (seen on the kernel of 7.99; one with room does). EVFILT_READ on the writing end reports the
//!   lost reader everywhere, full or not, and that is what pipe transports watch.
//! - A timeout above 100,000,000 s is EINVAL, and older macOS cuts it to whole microseconds: it is
//!   clamped to the one and rounded up to the other, so that it is never early.
//! - EVFILT_USER is missing from NetBSD before 10 and from OpenBSD before 7.8: EINVAL when added.
//!   A pipe wakes there.
//! - A kqueue is not inherited by fork: in the child its number is free, or somebody else's. So it
//!   needs no atomic close-on-exec, and a child's `close` must leave the number alone.

const std = @import("std");
const builtin = @import("builtin");
const assert = std.debug.assert;
const c = std.c;
const reactor = @import("../reactor.zig");
const clock = @import("../clock.zig");
const sys = @import("../sys.zig");

const Event = reactor.Event;
const Interest = reactor.Interest;
const SetError = reactor.SetError;
const Token = reactor.Token;
const fd_t = reactor.fd_t;
const Errno = c.E;

/// The running system's calls. The tests on Linux put a simulated kernel in their place.
pub const Kernel = struct {
    pub const Kevent = c.Kevent;
    pub const EV = c.EV;
    pub const EVFILT = c.EVFILT;
    pub const NOTE = c.NOTE;

    pub const close = sys.close;

    pub const misses_lost_reader = builtin.os.tag == .netbsd;

    pub fn getpid() c.pid_t {
        return c.getpid();
    }

    pub fn kqueue() c_int {
        return c.kqueue();
    }

    pub fn kevent(kq: fd_t, changes: []const Kevent, rows: []Kevent, timeout: ?*const c.timespec) c_int {
        if (builtin.os.tag == .netbsd) {
            return netbsd.__kevent50(kq, changes.ptr, changes.len, rows.ptr, rows.len, timeout);
        }
        return c.kevent(kq, changes.ptr, @intCast(changes.len), rows.ptr, @intCast(rows.len), timeout);
    }

    /// The plain name is NetBSD's first version, with a 32-bit time. This one, of NetBSD 6, takes
    /// `Kevent` as std declares it; NetBSD 10 keeps it beside a newer one with a longer row.
    const netbsd = struct {
        extern "c" fn __kevent50(
            kq: c_int,
            changes: [*]const Kevent,
            change_count: usize,
            rows: [*]Kevent,
            row_count: usize,
            timeout: ?*const c.timespec,
        ) c_int;
    };
};

pub fn Kqueue(comptime System_: type) type {
    return struct {
        const Self = @This();
        pub const System = System_;

        const Kevent = System.Kevent;
        const EV = System.EV;
        const EVFILT = System.EVFILT;
        const Filter = @FieldType(Kevent, "filter");
        const Flags = @FieldType(Kevent, "flags");

        kq: fd_t,
        /// Read end, write end. Null where EVFILT_USER does the waking.
        wake_pipe: ?[2]fd_t,
        /// The process in which `kq` means something.
        owner_pid: c.pid_t,

        /// One wait reports at most this many rows; more are reported by the next wait.
        const batch_count_max = 512;

        /// EVFILT_USER's identifiers are a name space of their own: not a descriptor number.
        const wake_ident = 0;

        /// How long the stand-in for a broken pipe takes: the shortest a timer can without a unit.
        const stand_in_ms = 1;

        const no_wait: c.timespec = .{ .sec = 0, .nsec = 0 };

        pub fn open() reactor.OpenError!Self {
            const kq = System.kqueue();
            if (kq < 0) return openError("kqueue", lastErrno());
            var self: Self = .{ .kq = kq, .wake_pipe = null, .owner_pid = System.getpid() };
            errdefer self.close();
            if (c.fcntl(kq, c.F.SETFD, @as(c_int, c.FD_CLOEXEC)) != 0) return sys.unexpectedError("fcntl", lastErrno());
            try self.openWake();
            return self;
        }

        fn openWake(self: *Self) reactor.OpenError!void {
            const user: [1]Kevent = .{.{
                .ident = wake_ident,
                .filter = EVFILT.USER,
                .flags = EV.ADD | EV.CLEAR | EV.RECEIPT,
                .fflags = 0,
                .data = 0,
                .udata = 0,
            }};
            var errno: [1]Errno = undefined;
            try self.apply(&user, &errno);
            switch (errno[0]) {
                .SUCCESS => return,
                .INVAL => {},
                else => return openError("kevent", errno[0]),
            }
            // macOS has always had the filter, and has no pipe2.
            if (comptime @TypeOf(c.pipe2) == void) return sys.unexpectedError("kevent", errno[0]);
            var ends: [2]fd_t = undefined;
            if (c.pipe2(&ends, .{ .NONBLOCK = true, .CLOEXEC = true }) != 0) return openError("pipe2", lastErrno());
            self.wake_pipe = ends;
            const wake_token: Token = .{ .fd = ends[0], .generation = 0 };
            try self.apply(&.{change(wake_token, EVFILT.READ, EV.ADD)}, &errno);
            if (errno[0] != .SUCCESS) return openError("kevent", errno[0]);
        }

        pub fn close(self: *Self) void {
            if (self.wake_pipe) |ends| for (ends) |fd| sys.close(fd);
            if (System.getpid() == self.owner_pid) System.close(self.kq);
            self.* = undefined;
        }

        /// Nothing to do: a kqueue watches numbers, and closing one takes its registrations along.
        pub fn renew(_: *Self) reactor.OpenError!void {}

        pub fn fileno(self: *const Self) fd_t {
            return self.kq;
        }

        /// After an error the descriptor is watched for nothing.
        pub fn set(self: *Self, token: Token, before: Interest, after: Interest) SetError!void {
            if (before == after) return;
            if (token.fd < 0) return error.BadDescriptor;
            var changes: [2]Kevent = undefined;
            var count: usize = 0;
            for ([_]struct { Filter, bool, bool }{
                .{ EVFILT.READ, before.read, after.read },
                .{ EVFILT.WRITE, before.write, after.write },
            }) |row| {
                const filter, const was, const is = row;
                if (!was and !is) continue;
                changes[count] = change(token, filter, if (is) EV.ADD else EV.DELETE);
                count += 1;
            }
            var errnos: [2]Errno = undefined;
            self.settle(token, changes[0..count], errnos[0..count], after) catch |err| {
                if (!after.isNone()) self.removeAll(token);
                return err;
            };
        }

        fn settle(self: *Self, token: Token, changes: []const Kevent, errnos: []Errno, after: Interest) SetError!void {
            try self.apply(changes, errnos);
            var removed = false;
            for (changes, errnos) |one, errno| {
                const is_write = one.filter == EVFILT.WRITE;
                if (one.flags & EV.ADD != 0) {
                    if (errno == .SUCCESS) continue;
                    if (!is_write or !isReaderGone(token.fd, errno)) return setError(errno);
                    try self.addStandIn(token);
                } else if (errno == .SUCCESS or is_write and self.removeStandIn(token)) {
                    removed = true;
                } else if (setError(errno) != error.BadDescriptor) {
                    return setError(errno);
                }
            }
            if (after.isNone() and !removed) return error.BadDescriptor;
        }

        fn isReaderGone(fd: fd_t, errno: Errno) bool {
            return switch (errno) {
                .PIPE => true,
                // NetBSD's word for it; everywhere else the descriptor is closed.
                .BADF => c.fcntl(fd, c.F.GETFD) != -1,
                else => false,
            };
        }

        /// Reports `token` as writable once, shortly. One-shot, so that nothing is left behind if
        /// the number is closed behind our back: a timer does not go with it.
        fn addStandIn(self: *Self, token: Token) SetError!void {
            var timer = change(token, EVFILT.TIMER, EV.ADD | EV.ONESHOT);
            timer.data = stand_in_ms;
            var errno: [1]Errno = undefined;
            try self.apply(&.{timer}, &errno);
            if (errno[0] != .SUCCESS) return setError(errno[0]);
        }

        fn removeStandIn(self: *Self, token: Token) bool {
            var errno: [1]Errno = undefined;
            self.apply(&.{change(token, EVFILT.TIMER, EV.DELETE)}, &errno) catch return false;
            return errno[0] == .SUCCESS;
        }

        /// Half a registration would report for ever to nobody.
        fn removeAll(self: *Self, token: Token) void {
            var errnos: [3]Errno = undefined;
            self.apply(&.{
                change(token, EVFILT.READ, EV.DELETE),
                change(token, EVFILT.WRITE, EV.DELETE),
                change(token, EVFILT.TIMER, EV.DELETE),
            }, &errnos) catch {};
        }

        fn change(token: Token, filter: Filter, flags: Flags) Kevent {
            return .{
                .ident = @intCast(token.fd),
                .filter = filter,
                .flags = flags | EV.RECEIPT,
                .fflags = 0,
                .data = 0,
                .udata = token.generation,
            };
        }

        /// Makes all changes, whether or not some fail, and gives the errno of each.
        fn apply(self: *Self, changes: []const Kevent, errnos: []Errno) error{ SystemResources, Unexpected }!void {
            assert(changes.len == errnos.len);
            var rows: [3]Kevent = undefined;
            var was_interrupted = false;
            const row_count = while (true) {
                const rc = System.kevent(self.kq, changes, rows[0..changes.len], &no_wait);
                if (rc >= 0) break @as(usize, @intCast(rc));
                switch (lastErrno()) {
                    // All changes have been made, and their receipts are lost: ask again.
                    .INTR => was_interrupted = true,
                    .NOMEM => return error.SystemResources,
                    else => |errno| return sys.unexpectedError("kevent", errno),
                }
            };
            if (row_count != changes.len) return sys.unexpectedError("kevent", .IO);
            for (changes, rows[0..row_count], errnos) |one, row, *errno| {
                if (row.ident != one.ident or row.filter != one.filter or row.flags & EV.ERROR == 0) return sys.unexpectedError("kevent", .IO);
                errno.* = errnoOf(row);
                if (was_interrupted and one.flags & EV.DELETE != 0 and errno.* == .NOENT) errno.* = .SUCCESS;
            }
        }

        pub fn wait(self: *Self, buffer: []Event, timeout_ns: ?u64) reactor.WaitError![]Event {
            assert(buffer.len > 0);
            var rows: [batch_count_max]Kevent = undefined;
            const count_max = @min(buffer.len, rows.len);
            const timeout: c.timespec = if (timeout_ns) |ns| timespecCeil(ns) else undefined;
            const rc = System.kevent(self.kq, &.{}, rows[0..count_max], if (timeout_ns == null) null else &timeout);
            if (rc < 0) return switch (lastErrno()) {
                .INTR => error.Interrupted,
                else => |errno| sys.unexpectedError("kevent", errno),
            };
            var count: usize = 0;
            for (rows[0..@intCast(rc)]) |row| {
                if (self.takeWake(row)) continue;
                // A broken registration: the read or write that follows meets the reason.
                const is_broken = row.flags & EV.ERROR != 0;
                buffer[count] = .{
                    .token = .{ .fd = @intCast(row.ident), .generation = @truncate(row.udata) },
                    .readiness = .{
                        .read = is_broken or row.filter == EVFILT.READ,
                        .write = is_broken or row.filter == EVFILT.WRITE or row.filter == EVFILT.TIMER,
                    },
                };
                count += 1;
            }
            return buffer[0..count];
        }

        /// True if `row` is a wake-up, which is over once seen: EV_CLEAR resets EVFILT_USER; the
        /// pipe is emptied.
        fn takeWake(self: *Self, row: Kevent) bool {
            const ends = self.wake_pipe orelse return row.filter == EVFILT.USER;
            if (row.filter != EVFILT.READ or row.ident != @as(usize, @intCast(ends[0]))) return false;
            var bytes: [64]u8 = undefined;
            while (true) switch (sys.read(ends[0], &bytes)) {
                .done => |len| if (len < bytes.len) return true,
                .would_block, .failed => return true,
            };
        }

        pub fn wake(self: *Self) void {
            if (self.wake_pipe) |ends| {
                // Fails only when the pipe is full, and then the loop is being woken anyway.
                _ = sys.write(ends[1], "w");
                return;
            }
            const trigger: [1]Kevent = .{.{
                .ident = wake_ident,
                .filter = EVFILT.USER,
                .flags = 0,
                .fflags = System.NOTE.TRIGGER,
                .data = 0,
                .udata = 0,
            }};
            _ = System.kevent(self.kq, &trigger, &.{}, &no_wait);
        }

        fn errnoOf(row: Kevent) Errno {
            return @fromBackingInt(@intCast(row.data));
        }
    };
}

fn lastErrno() Errno {
    return @fromBackingInt(@intCast(c._errno().*));
}

/// The longest timeout that every kernel takes: three years. The wait then ends with no event.
const timeout_s_max = 100_000_000;

fn timespecCeil(ns: u64) c.timespec {
    const us = std.math.divCeil(u64, ns, clock.ns_per_us) catch unreachable;
    const s = us / (clock.ns_per_s / clock.ns_per_us);
    if (s >= timeout_s_max) return .{ .sec = timeout_s_max, .nsec = 0 };
    return .{ .sec = @intCast(s), .nsec = @intCast(us * clock.ns_per_us - s * clock.ns_per_s) };
}

fn setError(errno: Errno) SetError {
    // FreeBSD's word for a number that was closed, where a sandbox could apply.
    if (@hasField(Errno, "NOTCAPABLE") and errno == .NOTCAPABLE) return error.BadDescriptor;
    return switch (errno) {
        .BADF, .NOENT => error.BadDescriptor,
        .INVAL, .NODEV, .NXIO, .OPNOTSUPP, .PERM => error.NotPollable,
        .NOMEM, .NOSPC => error.SystemResources,
        else => sys.unexpectedError("kevent", errno),
    };
}

fn openError(call: [:0]const u8, errno: Errno) reactor.OpenError {
    return switch (errno) {
        .MFILE => error.ProcessFdQuotaExceeded,
        .NFILE => error.SystemFdQuotaExceeded,
        .NOMEM => error.SystemResources,
        else => sys.unexpectedError(call, errno),
    };
}

// A cross build that only checks must see the bodies, not just the types.
comptime {
    if (builtin.os.tag != .linux) {
        const Real = Kqueue(Kernel);
        _ = &Real.open;
        _ = &Real.close;
        _ = &Real.set;
        _ = &Real.wait;
        _ = &Real.wake;
    }
}

test "timeouts round up to microseconds and stay within what kernels take" {
    try std.testing.expectEqual(c.timespec{ .sec = 0, .nsec = 0 }, timespecCeil(0));
    try std.testing.expectEqual(c.timespec{ .sec = 0, .nsec = 1_000 }, timespecCeil(1));
    try std.testing.expectEqual(c.timespec{ .sec = 1, .nsec = 0 }, timespecCeil(999_999_001));
    try std.testing.expectEqual(c.timespec{ .sec = 1, .nsec = 1_000 }, timespecCeil(1_000_000_001));
    try std.testing.expectEqual(c.timespec{ .sec = timeout_s_max, .nsec = 0 }, timespecCeil(std.math.maxInt(u64)));
}

test "errors of a change" {
    try std.testing.expectEqual(error.BadDescriptor, setError(.BADF));
    try std.testing.expectEqual(error.BadDescriptor, setError(.NOENT));
    try std.testing.expectEqual(error.NotPollable, setError(.INVAL));
    try std.testing.expectEqual(error.NotPollable, setError(.NODEV));
    try std.testing.expectEqual(error.SystemResources, setError(.NOMEM));
    try std.testing.expectEqual(error.Unexpected, setError(.ACCES));
}
