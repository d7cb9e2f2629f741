//! A simulated kqueue, so that the backend's tests run on Linux over real descriptors.
//!
//! It keeps a table of knotes (identifier and filter) and asks `poll` for readiness, level-triggered.
//! It behaves as the BSD kernels do where they agree, takes as options where they differ, counts
//! what a careful program never does (`misuse`) and fails on demand (`faults`). State is global,
//! as a kernel's is: each test ends with `verify`. Any thread may call it; one lock guards all.

const std = @import("std");
const linux = std.os.linux;
const c = std.c;
const sys = @import("../sys.zig");
const clock = @import("../clock.zig");

const Errno = c.E;
const fd_t = c.fd_t;
const gpa = std.heap.smp_allocator;

/// POLLRDHUP, which std does not name: the peer has stopped sending.
const poll_rdhup = 0x2000;

pub const Options = struct {
    /// EVFILT_USER exists.
    has_user: bool = true,
    /// Adding EVFILT_WRITE to a pipe without a reader fails so.
    reader_gone: Errno = .PIPE,
    /// A full pipe that is watched when its reader closes reports nothing, as on NetBSD.
    misses_lost_reader: bool = false,
    /// Filters count up from 0 in 32-bit fields, as on NetBSD.
    is_wide: bool = false,
};

/// What went wrong in the program, by kind.
pub const Misuse = struct {
    /// A descriptor was closed while registered. Legal, but the registration vanished with it.
    closed_while_registered: usize = 0,
    /// A change could have taken events from the queue or lost its receipt.
    receipt_without_room: usize = 0,
    /// Flags that this simulation does not give the meaning of.
    unknown_flags: usize = 0,
    /// Calls on a queue by a process that has not inherited it.
    used_after_fork: usize = 0,
    closed_after_fork: usize = 0,
};

/// Each happens once, then clears itself.
pub fn Faults(comptime Filter: type) type {
    return struct {
        const OfFilter = struct { filter: Filter, errno: Errno };

        open: ?Errno = null,
        /// The next call with changes fails as a whole, before any change.
        changes: ?Errno = null,
        /// The next call with changes makes them all and ends with EINTR.
        interrupt_changes: bool = false,
        /// The next addition, or removal, by that filter fails.
        add: ?OfFilter = null,
        delete: ?OfFilter = null,
        /// The next receipt is not given.
        lose_receipt: bool = false,
        /// The next wait fails.
        wait: ?Errno = null,
        /// The next row for a descriptor has EV_EOF, or EV_ERROR and this errno.
        eof: bool = false,
        broken: ?Errno = null,
    };
}

pub fn Sim(comptime options: Options) type {
    return struct {
        pub const misses_lost_reader = options.misses_lost_reader;

        const Filter = if (options.is_wide) i32 else i16;
        const Flags = if (options.is_wide) u32 else u16;

        pub const Kevent = extern struct {
            ident: usize,
            filter: Filter,
            flags: Flags,
            fflags: u32,
            data: i64,
            udata: usize,
        };

        pub const EV = struct {
            pub const ADD = 0x0001;
            pub const DELETE = 0x0002;
            pub const ONESHOT = 0x0010;
            pub const CLEAR = 0x0020;
            pub const RECEIPT = 0x0040;
            pub const ERROR = 0x4000;
            pub const EOF = 0x8000;
        };

        pub const EVFILT = if (options.is_wide) struct {
            pub const READ = 0;
            pub const WRITE = 1;
            pub const TIMER = 6;
            pub const USER = 8;
        } else struct {
            pub const READ = -1;
            pub const WRITE = -2;
            pub const TIMER = -7;
            pub const USER = -11;
        };

        pub const NOTE = struct {
            pub const TRIGGER = 0x01000000;
        };

        pub var misuse: Misuse = .{};
        pub var faults: Faults(Filter) = .{};
        /// Makes the caller a child process that has inherited no queue.
        pub var is_forked = false;
        /// Calls of `kevent` that made changes, for tests that count them.
        pub var change_call_count: usize = 0;

        var lock: c.pthread_mutex_t = c.PTHREAD_MUTEX_INITIALIZER;
        var queues: [4]?Queue = @splat(null);

        const Knote = struct {
            ident: usize,
            filter: Filter,
            flags: Flags,
            udata: usize,
            /// What the number named when it was added; null for timers and users.
            identity: ?Identity,
            is_triggered: bool = false,
            deadline_ns: u64 = 0,
            period_ns: u64 = 0,
        };

        const Queue = struct {
            /// An eventfd: ends a poll when the table changes.
            kq: fd_t,
            owner_pid: c.pid_t,
            knotes: std.ArrayList(Knote) = .empty,
        };

        pub fn getpid() c.pid_t {
            return c.getpid() + @intFromBool(is_forked);
        }

        pub fn kqueue() c_int {
            enter();
            defer leave();
            if (take(&faults.open)) |errno| return fail(errno);
            const kq = c.eventfd(0, linux.EFD.NONBLOCK);
            if (kq < 0) return kq;
            for (&queues) |*slot| {
                if (slot.* != null) continue;
                slot.* = .{ .kq = kq, .owner_pid = getpid() };
                return kq;
            }
            sys.close(kq);
            return fail(.MFILE);
        }

        pub fn close(fd: fd_t) void {
            enter();
            defer leave();
            if (is_forked) misuse.closed_after_fork += 1;
            for (&queues) |*slot| if (slot.*) |*queue| if (queue.kq == fd) {
                queue.knotes.deinit(gpa);
                slot.* = null;
            };
            sys.close(fd);
        }

        /// No misuse, no queue left open, no fault left over. Starts the next test afresh.
        pub fn verify(expected: Misuse) !void {
            enter();
            defer leave();
            defer {
                misuse = .{};
                faults = .{};
                is_forked = false;
                change_call_count = 0;
            }
            try std.testing.expectEqual(expected, misuse);
            try std.testing.expectEqual(Faults(Filter){}, faults);
            for (queues) |slot| try std.testing.expect(slot == null);
        }

        pub fn kevent(kq: fd_t, changes: []const Kevent, rows: []Kevent, timeout: ?*const c.timespec) c_int {
            enter();
            defer leave();
            const queue = for (&queues) |*slot| {
                if (slot.*) |*queue| if (queue.kq == kq) break queue;
            } else return fail(.BADF);
            if (queue.owner_pid != getpid()) {
                misuse.used_after_fork += 1;
                return fail(.BADF);
            }
            const limit_ns = timeoutNs(timeout) catch return fail(.INVAL);
            dropClosed(queue);
            if (changes.len > 0) {
                change_call_count += 1;
                if (take(&faults.changes)) |errno| return fail(errno);
                var count: usize = 0;
                for (changes) |change| {
                    const errno = apply(queue, change);
                    if (change.flags & EV.RECEIPT == 0 and rows.len > 0) misuse.receipt_without_room += 1;
                    if (errno == .SUCCESS and change.flags & EV.RECEIPT == 0) continue;
                    if (count == rows.len) {
                        if (change.flags & EV.RECEIPT != 0) misuse.receipt_without_room += 1;
                        return fail(errno);
                    }
                    if (faults.lose_receipt) {
                        faults.lose_receipt = false;
                        continue;
                    }
                    rows[count] = change;
                    rows[count].flags = EV.ERROR;
                    rows[count].data = @backingInt(errno);
                    count += 1;
                }
                if (faults.interrupt_changes) {
                    faults.interrupt_changes = false;
                    return fail(.INTR);
                }
                if (count > 0) return @intCast(count);
            }
            if (rows.len == 0) return 0;
            if (take(&faults.wait)) |errno| return fail(errno);
            return scan(queue, rows, limit_ns);
        }

        fn apply(queue: *Queue, change: Kevent) Errno {
            const known = EV.ADD | EV.DELETE | EV.ONESHOT | EV.CLEAR | EV.RECEIPT;
            if (change.flags & ~@as(Flags, known) != 0) misuse.unknown_flags += 1;
            const is_fd = change.filter == EVFILT.READ or change.filter == EVFILT.WRITE;
            const identity: ?Identity = if (is_fd) identify(change.ident) orelse return .BADF else null;
            if (!is_fd and change.filter != EVFILT.TIMER and !(options.has_user and change.filter == EVFILT.USER)) return .INVAL;
            const index: ?usize = for (queue.knotes.items, 0..) |knote, i| {
                if (knote.ident == change.ident and knote.filter == change.filter) break i;
            } else null;
            if (change.flags & EV.DELETE != 0) {
                if (takeFor(&faults.delete, change.filter)) |errno| return errno;
                _ = queue.knotes.orderedRemove(index orelse return .NOENT);
                return .SUCCESS;
            }
            if (change.flags & EV.ADD != 0) {
                if (takeFor(&faults.add, change.filter)) |errno| return errno;
                // Level-triggered descriptors are all that is simulated.
                if (is_fd and change.flags & (EV.CLEAR | EV.ONESHOT) != 0) misuse.unknown_flags += 1;
                if (index == null) {
                    if (identity) |id| if (refusal(change, id)) |errno| return errno;
                    queue.knotes.append(gpa, .{
                        .ident = change.ident,
                        .filter = change.filter,
                        .flags = 0,
                        .udata = 0,
                        .identity = identity,
                    }) catch return .NOMEM;
                }
            } else if (index == null) return .NOENT;
            const knote = &queue.knotes.items[index orelse queue.knotes.items.len - 1];
            knote.udata = change.udata;
            if (change.flags & EV.ADD != 0) knote.flags = change.flags;
            if (change.filter == EVFILT.TIMER) {
                knote.period_ns = @as(u64, @intCast(change.data)) * clock.ns_per_ms;
                knote.deadline_ns = clock.nowNs() + knote.period_ns;
            }
            if (change.filter == EVFILT.USER and change.fflags & NOTE.TRIGGER != 0) knote.is_triggered = true;
            signal(queue.kq);
            return .SUCCESS;
        }

        fn scan(queue: *Queue, rows: []Kevent, limit_ns: ?u64) c_int {
            const end_ns: ?u64 = if (limit_ns) |ns| clock.nowNs() +| ns else null;
            while (true) {
                unsignal(queue.kq);
                dropClosed(queue);
                const count = report(queue, rows) catch return fail(.NOMEM);
                if (count > 0) return @intCast(count);
                const now_ns = clock.nowNs();
                if (end_ns) |end| if (now_ns >= end) return 0;
                var wake_ns = end_ns;
                for (queue.knotes.items) |knote| {
                    if (knote.filter != EVFILT.TIMER) continue;
                    wake_ns = @min(wake_ns orelse knote.deadline_ns, knote.deadline_ns);
                }
                if (blockUntil(queue, if (wake_ns) |ns| ns -| now_ns else null)) |errno| return fail(errno);
            }
        }

        /// Sleeps without the lock, so that other threads can trigger.
        fn blockUntil(queue: *Queue, sleep_ns: ?u64) ?Errno {
            var fds: std.ArrayList(linux.pollfd) = .empty;
            defer fds.deinit(gpa);
            fds.ensureTotalCapacity(gpa, queue.knotes.items.len + 1) catch return .NOMEM;
            fds.appendAssumeCapacity(.{ .fd = queue.kq, .events = linux.POLL.IN, .revents = 0 });
            for (queue.knotes.items) |knote| {
                if (knote.identity == null) continue;
                fds.appendAssumeCapacity(.{
                    .fd = @intCast(knote.ident),
                    .events = pollMask(knote.filter),
                    .revents = 0,
                });
            }
            var ts: linux.timespec = undefined;
            if (sleep_ns) |ns| ts = .{ .sec = @intCast(ns / clock.ns_per_s), .nsec = @intCast(ns % clock.ns_per_s) };
            leave();
            const rc = linux.ppoll(fds.items.ptr, fds.items.len, if (sleep_ns == null) null else &ts, null);
            enter();
            return switch (linux.errno(rc)) {
                .SUCCESS => null,
                else => |errno| errno,
            };
        }

        /// Fills `rows` with what is ready. What was reported goes to the end of the table, as in
        /// the kernels' queues: a small batch starves nobody.
        fn report(queue: *Queue, rows: []Kevent) !usize {
            var count: usize = 0;
            var index: usize = 0;
            var unseen = queue.knotes.items.len;
            while (unseen > 0 and count < rows.len) : (unseen -= 1) {
                const knote = &queue.knotes.items[index];
                const flags = readyFlags(knote) orelse {
                    index += 1;
                    continue;
                };
                rows[count] = .{
                    .ident = knote.ident,
                    .filter = knote.filter,
                    .flags = knote.flags | flags,
                    .fflags = 0,
                    .data = 0,
                    .udata = knote.udata,
                };
                if (knote.identity != null) injectInto(&rows[count]);
                count += 1;
                if (knote.flags & EV.CLEAR != 0) knote.is_triggered = false;
                knote.deadline_ns += knote.period_ns;
                const moved = queue.knotes.orderedRemove(index);
                if (moved.flags & EV.ONESHOT == 0) queue.knotes.appendAssumeCapacity(moved);
            }
            return count;
        }

        fn injectInto(row: *Kevent) void {
            if (faults.eof) row.flags |= EV.EOF;
            faults.eof = false;
            if (take(&faults.broken)) |errno| {
                row.flags |= EV.ERROR;
                row.data = @backingInt(errno);
            }
        }

        fn readyFlags(knote: *const Knote) ?Flags {
            if (knote.filter == EVFILT.USER) return if (knote.is_triggered) 0 else null;
            if (knote.filter == EVFILT.TIMER) return if (clock.nowNs() >= knote.deadline_ns) 0 else null;
            const got = pollNow(knote.ident, pollMask(knote.filter));
            if (got == 0) return null;
            if (options.misses_lost_reader and isSilent(knote, got)) return null;
            const end: i16 = if (knote.filter == EVFILT.READ) linux.POLL.HUP | poll_rdhup else linux.POLL.HUP | linux.POLL.ERR;
            return if (got & end != 0) EV.EOF else 0;
        }

        fn isSilent(knote: *const Knote, got: i16) bool {
            return knote.filter == EVFILT.WRITE and linux.S.ISFIFO(knote.identity.?.mode) and got & linux.POLL.OUT == 0;
        }

        /// Why a descriptor cannot be watched by that filter.
        fn refusal(change: Kevent, identity: Identity) ?Errno {
            if (linux.S.ISCHR(identity.mode)) return .NODEV;
            if (change.filter == EVFILT.WRITE and linux.S.ISFIFO(identity.mode)) {
                if (pollNow(change.ident, linux.POLL.OUT) & linux.POLL.ERR != 0) return options.reader_gone;
            }
            return null;
        }

        fn pollMask(filter: Filter) i16 {
            return if (filter == EVFILT.READ) linux.POLL.IN | poll_rdhup else linux.POLL.OUT;
        }

        /// The kernels drop knotes when a number is closed; poll's table cannot know, so each call
        /// looks whether the numbers still name the same files.
        fn dropClosed(queue: *Queue) void {
            var index: usize = 0;
            while (index < queue.knotes.items.len) {
                const knote = queue.knotes.items[index];
                const now = if (knote.identity == null) null else identify(knote.ident);
                if (std.meta.eql(knote.identity, now)) {
                    index += 1;
                    continue;
                }
                misuse.closed_while_registered += 1;
                _ = queue.knotes.orderedRemove(index);
            }
        }

        fn takeFor(fault: *?Faults(Filter).OfFilter, filter: Filter) ?Errno {
            const known = fault.* orelse return null;
            if (known.filter != filter) return null;
            fault.* = null;
            return known.errno;
        }

        fn enter() void {
            _ = c.pthread_mutex_lock(&lock);
        }

        fn leave() void {
            _ = c.pthread_mutex_unlock(&lock);
        }
    };
}

/// Names an open file for as long as it is open.
const Identity = struct {
    device: [2]u32,
    inode: u64,
    mode: u16,
};

fn identify(fd: usize) ?Identity {
    var stat: linux.Statx = undefined;
    const rc = linux.statx(@intCast(fd), "", linux.AT.EMPTY_PATH, .{ .TYPE = true, .INO = true }, &stat);
    if (linux.errno(rc) != .SUCCESS) return null;
    return .{
        .device = .{ stat.dev_major, stat.dev_minor },
        .inode = stat.ino,
        .mode = stat.mode & linux.S.IFMT,
    };
}

fn pollNow(fd: usize, mask: i16) i16 {
    var one: [1]linux.pollfd = .{.{ .fd = @intCast(fd), .events = mask, .revents = 0 }};
    _ = linux.poll(&one, 1, 0);
    return one[0].revents;
}

fn timeoutNs(timeout: ?*const c.timespec) error{Invalid}!?u64 {
    const ts = timeout orelse return null;
    if (ts.sec < 0 or ts.sec > 100_000_000 or ts.nsec < 0 or ts.nsec >= clock.ns_per_s) return error.Invalid;
    return @as(u64, @intCast(ts.sec)) * clock.ns_per_s + @as(u64, @intCast(ts.nsec));
}

fn signal(kq: fd_t) void {
    const one: u64 = 1;
    _ = linux.write(kq, std.mem.asBytes(&one), @sizeOf(u64));
}

fn unsignal(kq: fd_t) void {
    var count: u64 = undefined;
    _ = linux.read(kq, std.mem.asBytes(&count), @sizeOf(u64));
}

fn take(fault: *?Errno) ?Errno {
    defer fault.* = null;
    return fault.*;
}

fn fail(errno: Errno) c_int {
    c._errno().* = @backingInt(errno);
    return -1;
}

const Probe = struct {
    const System = Sim(.{});
    kq: c_int,
    pair: [2]fd_t,

    fn init() !Probe {
        var pair: [2]fd_t = undefined;
        try std.testing.expectEqual(0, c.socketpair(c.AF.UNIX, c.SOCK.STREAM, 0, &pair));
        return .{ .kq = System.kqueue(), .pair = pair };
    }

    fn deinit(self: *Probe, misuse: Misuse) !void {
        System.close(self.kq);
        for (self.pair) |fd| sys.close(fd);
        try System.verify(misuse);
    }

    /// One change by itself: SUCCESS or the errno of the call.
    fn change(self: *Probe, ident: fd_t, filter: anytype, flags: u16, udata: usize) Errno {
        const one: System.Kevent = .{
            .ident = @intCast(ident),
            .filter = filter,
            .flags = flags,
            .fflags = if (filter == System.EVFILT.USER and flags == 0) System.NOTE.TRIGGER else 0,
            .data = 0,
            .udata = udata,
        };
        if (System.kevent(self.kq, &.{one}, &.{}, null) == 0) return .SUCCESS;
        return @fromBackingInt(@intCast(c._errno().*));
    }

    fn rows(self: *Probe, buffer: []System.Kevent) []System.Kevent {
        const rc = System.kevent(self.kq, &.{}, buffer, &.{ .sec = 0, .nsec = 0 });
        return buffer[0..@intCast(rc)];
    }
};

test "simulation: a second addition modifies, a second removal finds nothing" {
    const System = Probe.System;
    var probe = try Probe.init();
    const fd = probe.pair[0];
    var buffer: [4]System.Kevent = undefined;
    try std.testing.expectEqual(.NOENT, probe.change(fd, System.EVFILT.WRITE, System.EV.DELETE, 0));
    try std.testing.expectEqual(.SUCCESS, probe.change(fd, System.EVFILT.WRITE, System.EV.ADD, 1));
    try std.testing.expectEqual(.SUCCESS, probe.change(fd, System.EVFILT.WRITE, System.EV.ADD, 2));
    try std.testing.expectEqual(.SUCCESS, probe.change(fd, System.EVFILT.READ, System.EV.ADD, 3));
    const got = probe.rows(&buffer);
    try std.testing.expectEqual(1, got.len);
    try std.testing.expectEqual(2, got[0].udata);
    try std.testing.expectEqual(.SUCCESS, probe.change(fd, System.EVFILT.WRITE, System.EV.DELETE, 0));
    try std.testing.expectEqual(.NOENT, probe.change(fd, System.EVFILT.WRITE, System.EV.DELETE, 0));
    try std.testing.expectEqual(0, probe.rows(&buffer).len);
    try std.testing.expectEqual(.BADF, probe.change(1000, System.EVFILT.READ, System.EV.ADD, 0));
    try probe.deinit(.{});
}

test "simulation: a descriptor closed while registered loses its knotes, and is counted" {
    const System = Probe.System;
    var probe = try Probe.init();
    const fd = probe.pair[0];
    try std.testing.expectEqual(.SUCCESS, probe.change(fd, System.EVFILT.READ, System.EV.ADD, 1));
    try std.testing.expectEqual(.SUCCESS, probe.change(fd, System.EVFILT.WRITE, System.EV.ADD, 1));
    // The number lives on, and names something else.
    try std.testing.expectEqual(fd, c.dup2(probe.pair[1], fd));
    try std.testing.expectEqual(.NOENT, probe.change(fd, System.EVFILT.READ, System.EV.DELETE, 0));
    var buffer: [4]System.Kevent = undefined;
    try std.testing.expectEqual(0, probe.rows(&buffer).len);
    try probe.deinit(.{ .closed_while_registered = 2 });
}

test "simulation: triggers of a user event are one event" {
    const System = Probe.System;
    var probe = try Probe.init();
    var buffer: [4]System.Kevent = undefined;
    try std.testing.expectEqual(.NOENT, probe.change(0, System.EVFILT.USER, 0, 0));
    try std.testing.expectEqual(.SUCCESS, probe.change(0, System.EVFILT.USER, System.EV.ADD | System.EV.CLEAR, 5));
    try std.testing.expectEqual(0, probe.rows(&buffer).len);
    for (0..3) |_| try std.testing.expectEqual(.SUCCESS, probe.change(0, System.EVFILT.USER, 0, 6));
    const got = probe.rows(&buffer);
    try std.testing.expectEqual(1, got.len);
    // The trigger is a modification like any other.
    try std.testing.expectEqual(6, got[0].udata);
    try std.testing.expectEqual(0, probe.rows(&buffer).len);
    try probe.deinit(.{});
}

test "simulation: what a careful program does not do is refused or counted" {
    const System = Probe.System;
    var probe = try Probe.init();
    const fd = probe.pair[0];
    var buffer: [1]System.Kevent = undefined;
    const too_long: c.timespec = .{ .sec = 100_000_001, .nsec = 0 };
    try std.testing.expectEqual(-1, System.kevent(probe.kq, &.{}, &buffer, &too_long));
    const no_receipt: System.Kevent = .{
        .ident = @intCast(fd),
        .filter = System.EVFILT.WRITE,
        .flags = System.EV.ADD,
        .fflags = 0,
        .data = 0,
        .udata = 0,
    };
    // The event of the very registration that was asked for comes out of the call that made it.
    try std.testing.expectEqual(1, System.kevent(probe.kq, &.{no_receipt}, &buffer, null));
    try std.testing.expectEqual(0, buffer[0].flags & System.EV.ERROR);
    try std.testing.expectEqual(.SUCCESS, probe.change(fd, System.EVFILT.READ, System.EV.ADD | System.EV.CLEAR, 0));
    System.is_forked = true;
    try std.testing.expectEqual(-1, System.kevent(probe.kq, &.{}, &buffer, null));
    System.is_forked = false;
    try probe.deinit(.{ .receipt_without_room = 1, .unknown_flags = 1, .used_after_fork = 1 });
}
