//! A kqueue for Linux made of epoll, eventfd and timerfd, so that a whole build of zloop, and with it every test
//! written in Python, goes through kqueue.zig. For tests only; `ZLOOP_BACKEND` chooses it.
//!
//! It means what the BSDs agree about: knotes by number and filter, a row for each filter, receipts, knotes that
//! vanish with close(), nothing inherited by fork. The queue is an epoll, so that it nests as a kqueue does. A
//! kernel that fails on demand, or that tells of misuse, is kqueue_sim.zig.
//!
//! - epoll watches open files, kqueue numbers. Each change and each event asks whether the number still names the
//!   same file. A closed file that a duplicate keeps alive would report for ever: only a new epoll ends that.
//! - One lock guards all queues, and is held during fork(), so that a child does not inherit it locked.

const std = @import("std");
const linux = std.os.linux;
const c = std.c;
const clock = @import("../clock.zig");
const sys = @import("../sys.zig");

const Errno = c.E;
const fd_t = c.fd_t;
const gpa = std.heap.smp_allocator;

pub const Options = struct {
    /// EVFILT_USER exists.
    has_user: bool = true,
    /// What adding EVFILT_WRITE to a pipe without a reader fails with.
    reader_gone: Errno = .PIPE,
    /// A full pipe that is watched when its reader closes reports nothing.
    misses_lost_reader: bool = false,
};

/// As NetBSD before 10.
pub const old_netbsd: Options = .{ .has_user = false, .reader_gone = .BADF, .misses_lost_reader = true };

/// The one that the build asks for. What NetBSD misses, no loop can make good: the tests in Python expect it.
pub const Chosen = Emulated(if (sys.backend == .kqueue_emulated_pipe)
    .{ .has_user = false, .reader_gone = .BADF }
else
    .{});

/// What an epoll reports for its registration.
const Mark = packed struct(u64) {
    const Kind = enum(u2) { file, timer, user };

    number: fd_t,
    /// Tells a file's present registration from an earlier one under the same number.
    serial: u30,
    kind: Kind,
};

/// Names an open file for as long as it is open.
const Identity = struct {
    device: [2]u32,
    inode: u64,
    mode: u16,

    fn of(fd: fd_t) ?Identity {
        var stat: linux.Statx = undefined;
        const rc = linux.statx(fd, "", linux.AT.EMPTY_PATH, .{ .TYPE = true, .INO = true }, &stat);
        if (linux.errno(rc) != .SUCCESS) return null;
        return .{
            .device = .{ stat.dev_major, stat.dev_minor },
            .inode = stat.ino,
            .mode = stat.mode & linux.S.IFMT,
        };
    }

    fn isPipe(self: Identity) bool {
        return linux.S.ISFIFO(self.mode);
    }
};

/// The knotes of both filters on one number.
const File = struct {
    identity: Identity,
    serial: u30,
    /// The token of the knote, if there is one.
    read: ?usize = null,
    write: ?usize = null,
    /// Where only one of two rows has room, they take turns.
    gave_read: bool = false,

    fn mask(self: File) u32 {
        var bits: u32 = 0;
        if (self.read != null) bits |= linux.EPOLL.IN | linux.EPOLL.RDHUP;
        if (self.write != null) bits |= linux.EPOLL.OUT;
        return bits;
    }
};

const Timer = struct { fd: fd_t, token: usize, is_oneshot: bool };

const Queue = struct {
    epoll_fd: fd_t,
    files: std.AutoHashMapUnmanaged(fd_t, File) = .empty,
    timers: std.AutoHashMapUnmanaged(fd_t, Timer) = .empty,
    user: ?struct { fd: fd_t, token: usize } = null,

    fn closeAll(self: *Queue) void {
        var timers = self.timers.valueIterator();
        while (timers.next()) |timer| _ = linux.close(timer.fd);
        if (self.user) |user| _ = linux.close(user.fd);
        _ = linux.close(self.epoll_fd);
    }

    fn destroy(self: *Queue) void {
        self.files.deinit(gpa);
        self.timers.deinit(gpa);
        gpa.destroy(self);
    }

    fn register(self: *Queue, op: u32, fd: fd_t, mask: u32, mark: Mark) Errno {
        var event: linux.epoll_event = .{ .events = mask, .data = .{ .u64 = @bitCast(mark) } };
        return linux.errno(linux.epoll_ctl(self.epoll_fd, op, fd, &event));
    }

    fn registerFile(self: *Queue, op: u32, fd: fd_t, file: File) Errno {
        const mark: Mark = .{ .number = fd, .serial = file.serial, .kind = .file };
        const errno = self.register(op, fd, file.mask(), mark);
        return switch (errno) {
            .PERM => .NODEV,
            // A duplicate of what was closed behind our back is back under its number.
            .EXIST => self.register(linux.EPOLL.CTL_MOD, fd, file.mask(), mark),
            // Forgotten because its reports had to end.
            .NOENT => self.register(linux.EPOLL.CTL_ADD, fd, file.mask(), mark),
            else => errno,
        };
    }

    fn registerTimer(self: *Queue, number: fd_t, timer: Timer) Errno {
        return self.register(linux.EPOLL.CTL_ADD, timer.fd, linux.EPOLL.IN, .{ .number = number, .serial = 0, .kind = .timer });
    }

    fn registerUser(self: *Queue, fd: fd_t) Errno {
        return self.register(linux.EPOLL.CTL_ADD, fd, linux.EPOLL.IN, .{ .number = 0, .serial = 0, .kind = .user });
    }

    /// The same registrations in a new epoll, which takes the number of the old one.
    fn renew(self: *Queue) void {
        const rc = linux.epoll_create1(linux.EPOLL.CLOEXEC);
        if (linux.errno(rc) != .SUCCESS) return; // tried again at the next report
        const close_on_exec: u32 = @bitCast(linux.O{ .CLOEXEC = true });
        _ = linux.dup3(@intCast(rc), self.epoll_fd, close_on_exec);
        _ = linux.close(@intCast(rc));
        var files = self.files.iterator();
        while (files.next()) |entry| _ = self.registerFile(linux.EPOLL.CTL_ADD, entry.key_ptr.*, entry.value_ptr.*);
        var timers = self.timers.iterator();
        while (timers.next()) |entry| _ = self.registerTimer(entry.key_ptr.*, entry.value_ptr.*);
        if (self.user) |user| _ = self.registerUser(user.fd);
    }
};

var lock: c.pthread_mutex_t = c.PTHREAD_MUTEX_INITIALIZER;
var queues: std.AutoHashMapUnmanaged(fd_t, *Queue) = .empty;
var serial_last: u30 = 0;
var watches_forks = false;

fn enter() callconv(.c) void {
    _ = c.pthread_mutex_lock(&lock);
}

fn leave() callconv(.c) void {
    _ = c.pthread_mutex_unlock(&lock);
}

const ForkHook = ?*const fn () callconv(.c) void;
extern "c" fn pthread_atfork(before: ForkHook, in_parent: ForkHook, in_child: ForkHook) c_int;

/// A kqueue is not inherited. The memory stays the parent's image: a child frees nothing of it.
fn forgetInChild() callconv(.c) void {
    var all = queues.valueIterator();
    while (all.next()) |queue| queue.*.closeAll();
    queues = .empty;
    leave();
}

fn fail(errno: Errno) c_int {
    c._errno().* = @backingInt(errno);
    return -1;
}

fn isReaderGone(fd: fd_t) bool {
    var query = [_]linux.pollfd{.{ .fd = fd, .events = linux.POLL.OUT, .revents = 0 }};
    _ = linux.poll(&query, 1, 0);
    return query[0].revents & linux.POLL.ERR != 0;
}

/// Empties an eventfd or a timerfd.
fn unsignal(fd: fd_t) void {
    var count: u64 = undefined;
    _ = linux.read(fd, std.mem.asBytes(&count), @sizeOf(u64));
}

pub fn Emulated(comptime options: Options) type {
    return struct {
        pub const misses_lost_reader = options.misses_lost_reader;

        pub const Kevent = extern struct {
            ident: usize,
            filter: i16,
            flags: u16,
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

        pub const EVFILT = struct {
            pub const READ = -1;
            pub const WRITE = -2;
            pub const TIMER = -7;
            pub const USER = -11;
        };

        pub const NOTE = struct {
            pub const TRIGGER = 0x01000000;
        };

        pub fn getpid() c.pid_t {
            return c.getpid();
        }

        pub fn kqueue() c_int {
            enter();
            defer leave();
            if (!watches_forks) {
                if (pthread_atfork(enter, leave, forgetInChild) != 0) return fail(.NOMEM);
                watches_forks = true;
            }
            const rc = linux.epoll_create1(linux.EPOLL.CLOEXEC);
            if (linux.errno(rc) != .SUCCESS) return fail(linux.errno(rc));
            const kq: fd_t = @intCast(rc);
            const queue = gpa.create(Queue) catch {
                _ = linux.close(kq);
                return fail(.NOMEM);
            };
            queue.* = .{ .epoll_fd = kq };
            // A queue that was closed as a plain number is found under the number of the new one.
            const before = queues.fetchPut(gpa, kq, queue) catch {
                queue.closeAll();
                queue.destroy();
                return fail(.NOMEM);
            };
            if (before) |entry| entry.value.destroy();
            return kq;
        }

        pub fn close(kq: fd_t) void {
            enter();
            defer leave();
            const entry = queues.fetchRemove(kq) orelse return;
            entry.value.closeAll();
            entry.value.destroy();
        }

        pub fn kevent(kq: fd_t, changes: []const Kevent, rows: []Kevent, timeout: ?*const c.timespec) c_int {
            enter();
            defer leave();
            const queue = queues.get(kq) orelse return fail(.BADF);
            const limit_ns: ?u64 = if (timeout) |value| durationNs(value) orelse return fail(.INVAL) else null;
            var count: usize = 0;
            for (changes) |change| {
                const errno = apply(queue, change);
                if (errno == .SUCCESS and change.flags & EV.RECEIPT == 0) continue;
                if (count == rows.len) return fail(errno);
                rows[count] = change;
                rows[count].flags = EV.ERROR;
                rows[count].data = @backingInt(errno);
                count += 1;
            }
            if (count > 0 or rows.len == 0) return @intCast(count);
            return wait(queue, rows, limit_ns);
        }

        fn durationNs(value: *const c.timespec) ?u64 {
            if (value.sec < 0 or value.sec > 100_000_000 or value.nsec < 0 or value.nsec >= clock.ns_per_s) return null;
            return @as(u64, @intCast(value.sec)) * clock.ns_per_s + @as(u64, @intCast(value.nsec));
        }

        fn wait(queue: *Queue, rows: []Kevent, limit_ns: ?u64) c_int {
            const kq = queue.epoll_fd;
            const end_ns: ?u64 = if (limit_ns) |ns| clock.nowNs() + ns else null;
            while (true) {
                var events: [256]linux.epoll_event = undefined;
                // An event can become two rows. One that finds no room is ready the next time too.
                const space = events[0..@min(events.len, rows.len)];
                const left_ns: ?u64 = if (end_ns) |end| end -| clock.nowNs() else null;
                // Without the lock: other threads can make changes.
                leave();
                const rc = sleep(kq, space, left_ns);
                enter();
                if (linux.errno(rc) != .SUCCESS) return fail(linux.errno(rc));
                if (queues.get(kq) != queue) return fail(.BADF);
                const count = collect(queue, space[0..rc], rows);
                if (count > 0) return @intCast(count);
                if (end_ns) |end| if (clock.nowNs() >= end) return 0;
            }
        }

        fn sleep(kq: fd_t, space: []linux.epoll_event, left_ns: ?u64) usize {
            var left: linux.kernel_timespec = undefined;
            if (left_ns) |ns| left = .{ .sec = @intCast(ns / clock.ns_per_s), .nsec = @intCast(ns % clock.ns_per_s) };
            const limit = if (left_ns == null) 0 else @intFromPtr(&left);
            return linux.syscall6(.epoll_pwait2, @as(u32, @bitCast(kq)), @intFromPtr(space.ptr), space.len, limit, 0, 0);
        }

        fn collect(queue: *Queue, events: []const linux.epoll_event, rows: []Kevent) usize {
            var count: usize = 0;
            var is_stale = false;
            for (events) |event| {
                if (count == rows.len) break;
                const mark: Mark = @bitCast(event.data.u64);
                switch (mark.kind) {
                    .user => {
                        unsignal(queue.user.?.fd);
                        rows[count] = row(0, EVFILT.USER, EV.CLEAR, queue.user.?.token);
                        count += 1;
                    },
                    .timer => {
                        const timer = queue.timers.get(mark.number) orelse continue;
                        unsignal(timer.fd);
                        rows[count] = row(mark.number, EVFILT.TIMER, if (timer.is_oneshot) EV.ONESHOT else 0, timer.token);
                        count += 1;
                        if (timer.is_oneshot) removeTimer(queue, mark.number);
                    },
                    .file => {
                        const file = queue.files.getPtr(mark.number);
                        const is_current = file != null and file.?.serial == mark.serial;
                        if (is_current and std.meta.eql(Identity.of(mark.number), file.?.identity)) {
                            count += report(queue, mark.number, file.?, event.events, rows[count..]);
                            continue;
                        }
                        is_stale = true;
                        if (is_current) _ = queue.files.remove(mark.number);
                    },
                }
            }
            if (is_stale) queue.renew();
            return count;
        }

        fn report(queue: *Queue, fd: fd_t, file: *File, bits: u32, rows: []Kevent) usize {
            const E = linux.EPOLL;
            var is_read = file.read != null and bits & (E.IN | E.RDHUP | E.HUP | E.ERR) != 0;
            var is_write = file.write != null and bits & (E.OUT | E.HUP | E.ERR) != 0;
            if (options.misses_lost_reader and file.identity.isPipe() and bits & E.OUT == 0) is_write = false;
            if (!is_read and !is_write) {
                // epoll cannot be told to keep an error to itself.
                _ = linux.epoll_ctl(queue.epoll_fd, E.CTL_DEL, fd, null);
                return 0;
            }
            if (is_read and is_write and rows.len == 1) {
                is_read = !file.gave_read;
                is_write = !is_read;
                file.gave_read = is_read;
            }
            var count: usize = 0;
            if (is_read) {
                rows[count] = row(fd, EVFILT.READ, if (bits & (E.RDHUP | E.HUP) != 0) EV.EOF else 0, file.read.?);
                count += 1;
            }
            if (is_write) {
                rows[count] = row(fd, EVFILT.WRITE, if (bits & (E.ERR | E.HUP) != 0) EV.EOF else 0, file.write.?);
                count += 1;
            }
            return count;
        }

        fn row(number: fd_t, filter: i16, flags: u16, token: usize) Kevent {
            return .{ .ident = @intCast(number), .filter = filter, .flags = flags, .fflags = 0, .data = 0, .udata = token };
        }

        fn apply(queue: *Queue, change: Kevent) Errno {
            return switch (change.filter) {
                EVFILT.READ, EVFILT.WRITE => applyFile(queue, change),
                EVFILT.TIMER => applyTimer(queue, change),
                EVFILT.USER => if (options.has_user) applyUser(queue, change) else .INVAL,
                else => .INVAL,
            };
        }

        fn applyFile(queue: *Queue, change: Kevent) Errno {
            const fd: fd_t = @intCast(change.ident);
            const identity = Identity.of(fd) orelse return .BADF;
            var known = queue.files.get(fd);
            if (known) |file| if (!std.meta.eql(identity, file.identity)) {
                _ = queue.files.remove(fd);
                known = null;
            };
            var file = known orelse File{ .identity = identity, .serial = serial_last +% 1 };
            const slot = if (change.filter == EVFILT.READ) &file.read else &file.write;
            if (change.flags & EV.DELETE != 0) {
                if (slot.* == null) return .NOENT;
                slot.* = null;
            } else {
                if (change.flags & EV.ADD == 0) return .NOENT;
                const is_new_write = change.filter == EVFILT.WRITE and slot.* == null;
                if (is_new_write and identity.isPipe() and isReaderGone(fd)) return options.reader_gone;
                slot.* = change.udata;
            }
            if (file.read == null and file.write == null) {
                _ = queue.files.remove(fd);
                _ = linux.epoll_ctl(queue.epoll_fd, linux.EPOLL.CTL_DEL, fd, null);
                return .SUCCESS;
            }
            if (known == null) serial_last = file.serial;
            const op: u32 = if (known == null) linux.EPOLL.CTL_ADD else linux.EPOLL.CTL_MOD;
            const errno = queue.registerFile(op, fd, file);
            if (errno != .SUCCESS) return errno;
            queue.files.put(gpa, fd, file) catch return .NOMEM;
            return .SUCCESS;
        }

        fn applyTimer(queue: *Queue, change: Kevent) Errno {
            const number: fd_t = @intCast(change.ident);
            const is_known = queue.timers.contains(number);
            if (change.flags & EV.ADD == 0 and !is_known) return .NOENT;
            if (is_known) removeTimer(queue, number);
            if (change.flags & EV.DELETE != 0) return .SUCCESS;
            const rc = linux.timerfd_create(.MONOTONIC, .{ .CLOEXEC = true, .NONBLOCK = true });
            if (linux.errno(rc) != .SUCCESS) return linux.errno(rc);
            const timer: Timer = .{ .fd = @intCast(rc), .token = change.udata, .is_oneshot = change.flags & EV.ONESHOT != 0 };
            queue.timers.put(gpa, number, timer) catch {
                _ = linux.close(timer.fd);
                return .NOMEM;
            };
            const ns = @as(u64, @intCast(@max(change.data, 1))) * clock.ns_per_ms;
            const period: linux.timespec = .{ .sec = @intCast(ns / clock.ns_per_s), .nsec = @intCast(ns % clock.ns_per_s) };
            const once: linux.timespec = .{ .sec = 0, .nsec = 0 };
            _ = linux.timerfd_settime(timer.fd, .{}, &.{ .it_interval = if (timer.is_oneshot) once else period, .it_value = period }, null);
            return queue.registerTimer(number, timer);
        }

        fn removeTimer(queue: *Queue, number: fd_t) void {
            const entry = queue.timers.fetchRemove(number) orelse return;
            _ = linux.close(entry.value.fd);
        }

        fn applyUser(queue: *Queue, change: Kevent) Errno {
            if (queue.user == null) {
                if (change.flags & EV.ADD == 0) return .NOENT;
                const rc = linux.eventfd(0, linux.EFD.CLOEXEC | linux.EFD.NONBLOCK);
                if (linux.errno(rc) != .SUCCESS) return linux.errno(rc);
                queue.user = .{ .fd = @intCast(rc), .token = 0 };
                const errno = queue.registerUser(queue.user.?.fd);
                if (errno != .SUCCESS) return errno;
            }
            const user = &queue.user.?;
            user.token = change.udata;
            if (change.fflags & NOTE.TRIGGER != 0) {
                const one: u64 = 1;
                _ = linux.write(user.fd, std.mem.asBytes(&one), @sizeOf(u64));
            }
            return .SUCCESS;
        }
    };
}
