//! The event loop: one turn after another.
//!
//! A turn polls for readiness, adds the timers that are due, and runs what was ready when the turn
//! began running: first in, first out, in asyncio's order (work queued before, then descriptors,
//! then timers). Work that the turn itself queues waits for the next turn.
//!
//! The loop never runs anything by itself: the host gives the type of the queue's elements and
//! runs them. Everything here belongs to the loop's thread except `postThreadsafe`.

const std = @import("std");
const Allocator = std.mem.Allocator;
const clock = @import("clock.zig");
const process = @import("process.zig");
const reactor_ = @import("reactor.zig");
const Fifo = @import("fifo.zig").Fifo;
const Inbox = @import("inbox.zig").Inbox;
const PushError = @import("inbox.zig").PushError;
const TimerHeap = @import("timers.zig").TimerHeap;
const Timer = @import("timers.zig").Timer;
const Watch = @import("watch.zig").Watch;
const WatchTable = @import("watch.zig").WatchTable;

pub const WatchError = @import("watch.zig").UpdateError || reactor_.OpenError || error{Forked};

const Event = reactor_.Event;
const Interest = reactor_.Interest;

/// Readiness events taken by one wait. More stay in the kernel for the next turn.
const event_count_max = 512;

/// With work ready and no descriptor watched there is nothing a poll could find; one is made after
/// this many turns all the same, so that other threads get the host's lock and signals are seen.
const turns_without_poll_max = 64;

/// With descriptors watched, a turn that has work ready may leave the poll out if the last one is
/// this fresh: what a callback just queued (a task to wake, a response to write) runs without a
/// system call in between. Costs nothing but a look at the clock, and no callback can delay the
/// next poll by more than its own length. Measured: one of two polls a request of a stream or HTTP
/// server.
const poll_fresh_ns = 20 * clock.ns_per_us;
const turns_with_fresh_poll_max = 2;

/// A descriptor that a program closes while it is watched, and a child process still holds, is
/// reported by every poll from then on and cannot be removed. After this many the reactor starts
/// anew; fewer are events that were on their way when their watch ended.
const stale_polls_max = 4;

/// `Host` supplies:
///   Work                                  the ready queue's element
///   Error                                 what ends a turn early
///   workOfTimer(*Host, *Timer) Work       a due timer's work; the timer is out of the heap
///   queueWatch(*Host, *Watch) void        queues the work of a watch that has `pending` readiness
///   run(*Host, Work) Error!void
///   turnDone(*Host) Error!void            everything that was ready has run
///   isStopping(*Host) bool                the run is to end: nothing is waited for
///   timeNs(*Host) Error!u64               now, by the clock that timers go by; may queue work
///   checkSignals(*Host) Error!void        once a turn, and when a signal ended the wait; may queue work
///   waitElsewhere(*Host, fd, ?u64) Error!?u64
///                                         waits until the reactor's descriptor is readable, if the host has a way
///                                         of its own; gives how long is left to wait. May queue work
///   beforeWait/afterWait                  around a wait, which runs without the host's lock
///   idle(*Host) void                      nothing is queued: what is kept for a busy loop can go; may queue work
///   patienceNs(*Host) ?u64                how long to wait at most, then to be `idle` once more
///   pollsItself(*Host) bool               each turn calls `pollBy`, which calls `pollOnce` if it likes
///   pollBy(*Host, ?u64) Error!void        for so many nanoseconds at most; null for any time
pub fn Loop(comptime Host: type) type {
    return LoopOver(Host, reactor_.Reactor);
}

/// The same over a chosen reactor: tests run one loop over each.
pub fn LoopOver(comptime Host: type, comptime Reactor: type) type {
    return struct {
        const Self = @This();
        const Work = Host.Work;

        gpa: Allocator,
        ready: Fifo(Work) = .empty,
        timers: TimerHeap = .{},
        inbox: Inbox(Work) = .{},
        watches: WatchTable = .{},
        /// Opened by the first watch or the first wait that needs it: a loop that only runs
        /// callbacks never asks the kernel for anything.
        reactor: ?Reactor = null,
        /// Of the process that may use the reactor. A forked child shares the kernel object with its
        /// parent and must not touch it.
        fork_count: u32,
        /// A forked child's copy that runs all the same, see `runInChild`.
        runs_in_child: bool = false,
        /// Set while the loop is about to wait or waiting: whoever clears it wakes the loop.
        waiting: std.atomic.Value(bool) = .init(false),
        turns_without_poll: u32 = 0,
        /// When the last poll ended.
        polled_ns: u64 = 0,
        /// There is something that the last poll, however fresh, could not know of.
        poll_is_due: bool = true,
        /// Polls so far; wraps around.
        poll_count: u32 = 0,
        /// Events that the last poll reported.
        event_count: usize = 0,
        /// Polls in a row that reported a descriptor of nobody's.
        stale_polls: u32 = 0,

        pub fn init(gpa: Allocator) Self {
            return .{ .gpa = gpa, .fork_count = process.forkCount() };
        }

        /// Queues must be empty of anything the host owns.
        pub fn deinit(self: *Self) void {
            self.closeReactor();
            self.ready.deinit(self.gpa);
            self.timers.deinit(self.gpa);
            self.inbox.deinit(self.gpa);
            self.watches.deinit(self.gpa);
            self.* = undefined;
        }

        pub fn closeReactor(self: *Self) void {
            self.inbox.lock();
            defer self.inbox.unlock();
            if (self.reactor) |*reactor| reactor.close();
            self.reactor = null;
        }

        pub fn openReactor(self: *Self) reactor_.OpenError!*Reactor {
            if (self.reactor == null) self.reactor = try Reactor.open();
            return &self.reactor.?;
        }

        /// Whether this is a child's copy of a loop.
        pub inline fn isForked(self: *const Self) bool {
            return process.forkCount() != self.fork_count;
        }

        /// Whether this is a child's copy of a loop, which must not run.
        pub inline fn isParents(self: *const Self) bool {
            return self.isForked() and !self.runs_in_child;
        }

        /// A child's copy may run from now on, by a reactor of its own that watches nothing. Closing this process's
        /// descriptors of the parent's reactor changes nothing for the parent. What is armed stays so in name, for
        /// its owners to disarm, and `watch` goes on to refuse.
        pub fn runInChild(self: *Self) void {
            std.debug.assert(self.isForked());
            self.closeReactor();
            self.waiting.store(false, .seq_cst);
            self.runs_in_child = true;
        }

        pub inline fn post(self: *Self, work: Work) Allocator.Error!void {
            if (!self.inbox.isEmptyHint() and !self.isParents()) try self.inbox.drainInto(self.gpa, &self.ready);
            try self.ready.push(self.gpa, work);
        }

        /// What other threads have posted joins the ready queue.
        pub fn drainInbox(self: *Self) Allocator.Error!void {
            if (!self.inbox.isEmptyHint()) try self.inbox.drainInto(self.gpa, &self.ready);
        }

        /// Any thread. At most one wake-up per batch: the first to post after the loop went to wait.
        pub fn postThreadsafe(self: *Self, work: Work) PushError!void {
            try self.inbox.push(self.gpa, work);
            self.wake();
        }

        /// Any thread.
        pub fn wake(self: *Self) void {
            if (!self.waiting.load(.seq_cst) or !self.waiting.swap(false, .seq_cst)) return;
            // The parent's wake-up is not a child's to use.
            if (self.isParents()) return;
            // The loop can have left the wait by itself and be closing at this moment.
            self.inbox.lock();
            defer self.inbox.unlock();
            if (self.reactor) |*reactor| reactor.wake();
        }

        pub fn watch(self: *Self, w: *Watch, interest: Interest) WatchError!void {
            if (w.armed == interest) return;
            if (self.isForked()) return error.Forked;
            const reactor = try self.openReactor();
            const is_more = (interest.read and !w.armed.read) or (interest.write and !w.armed.write);
            try self.watches.update(self.gpa, reactor, w, interest);
            // The last poll could not know of it: in asyncio the next turn would.
            if (is_more) self.poll_is_due = true;
        }

        /// Whether an armed watch's descriptor is still open, see `WatchTable.isKnown`.
        pub fn isKnown(self: *Self, w: *const Watch) bool {
            if (self.isForked() or self.reactor == null) return false;
            return WatchTable.isKnown(&self.reactor.?, w);
        }

        pub fn unwatch(self: *Self, w: *Watch) void {
            // Removing fails only for a child's copy of the loop, which must leave the kernel alone.
            self.watch(w, .none) catch {};
        }

        /// One turn. It waits for nothing if the host is stopping.
        pub fn turn(self: *Self, host: *Host) (Host.Error || error{Forked})!void {
            if (self.isParents()) return error.Forked;
            if (!self.inbox.isEmptyHint()) try self.inbox.drainInto(self.gpa, &self.ready);
            // Can queue work, so it comes before the decision to wait.
            if (self.ready.len == 0) host.idle();
            const timeout_ns = try self.timeoutNs(host);
            if (self.mustPoll(host, timeout_ns)) try self.poll(host, timeout_ns);
            try self.collectDue(host);
            try self.runReady(host);
            try host.turnDone();
        }

        /// How long the turn may wait; null for as long as it takes. The host's code that runs in here can queue
        /// work, stop the run and add timers, so the decision comes after all of it. None of the host's code
        /// runs between the decision and the wait: `beforeWait` gives the lock away when `waiting` is set.
        fn timeoutNs(self: *Self, host: *Host) Host.Error!?u64 {
            const asks_clock = !self.isBusy(host) and self.timers.count() > 0;
            const now_ns = if (asks_clock) try host.timeNs() else 0;
            try host.checkSignals();
            if (self.isBusy(host)) return 0;
            const deadline_ns = self.timers.earliestNs() orelse return null;
            // Without a look at the clock the timer is a signal handler's: the next turn knows how long to wait.
            return if (asks_clock) deadline_ns -| now_ns else 0;
        }

        inline fn isBusy(self: *const Self, host: *Host) bool {
            return self.ready.len > 0 or host.isStopping();
        }

        fn mustPoll(self: *Self, host: *Host, timeout_ns: ?u64) bool {
            if (host.pollsItself()) return true;
            const may_wait = timeout_ns == null or timeout_ns.? > 0;
            if (may_wait or self.turns_without_poll >= self.turnsWithoutPollMax()) return true;
            self.turns_without_poll += 1;
            return false;
        }

        fn turnsWithoutPollMax(self: *const Self) u32 {
            if (self.watches.armed_count == 0) return turns_without_poll_max;
            if (self.poll_is_due) return 0;
            return if (clock.nowNs() -| self.polled_ns < poll_fresh_ns) turns_with_fresh_poll_max else 0;
        }

        /// A new run begins: its first turn looks at the descriptors, however fresh the last poll is.
        pub fn beginRun(self: *Self) void {
            self.poll_is_due = true;
        }

        fn poll(self: *Self, host: *Host, timeout_ns: ?u64) Host.Error!void {
            if (host.pollsItself()) return host.pollBy(timeout_ns);
            return self.pollOnce(host, timeout_ns);
        }

        /// One wait, and what it found into the ready queue.
        pub fn pollOnce(self: *Self, host: *Host, timeout_ns: ?u64) Host.Error!void {
            const reactor = try self.openReactor();
            var events: [event_count_max]Event = undefined;
            self.waiting.store(true, .seq_cst);
            // A post that came before the flag was up did not wake us: look again now that it is.
            const wait_ns: ?u64 = if (self.inbox.isEmptyHint()) patient(host, timeout_ns) else 0;
            const left_ns = host.waitElsewhere(reactor.fileno(), wait_ns) catch |err| {
                self.waiting.store(false, .seq_cst);
                return err;
            };
            host.beforeWait();
            const result = reactor.wait(&events, left_ns);
            host.afterWait();
            self.waiting.store(false, .seq_cst);
            self.turns_without_poll = 0;
            self.poll_is_due = false;
            self.polled_ns = clock.nowNs();
            self.poll_count +%= 1;
            const got = result catch |err| switch (err) {
                error.Interrupted => return host.checkSignals(),
                error.Unexpected => |e| return e,
            };
            self.event_count = got.len;
            if (!self.inbox.isEmptyHint()) try self.inbox.drainInto(self.gpa, &self.ready);
            try self.ready.ensureUnusedCapacity(self.gpa, 2 * got.len);
            var has_stale = false;
            for (got) |event| {
                const w = self.watches.resolve(event.token) orelse {
                    has_stale = true;
                    continue;
                };
                const queued = w.pending != reactor_.Readiness.none;
                w.pending = w.pending.merge(.{
                    .read = event.readiness.read and w.armed.read,
                    .write = event.readiness.write and w.armed.write,
                });
                if (!queued and w.pending != reactor_.Readiness.none) host.queueWatch(w);
            }
            self.stale_polls = if (has_stale) self.stale_polls + 1 else 0;
            if (self.stale_polls == stale_polls_max) self.renew(reactor);
        }

        /// A host that has something to give back if nothing happens waits no longer than that.
        fn patient(host: *Host, timeout_ns: ?u64) ?u64 {
            if (timeout_ns == 0) return 0;
            const patience_ns = host.patienceNs() orelse return timeout_ns;
            return @min(timeout_ns orelse patience_ns, patience_ns);
        }

        /// Out of resources, it is tried again after as many polls.
        fn renew(self: *Self, reactor: *Reactor) void {
            self.stale_polls = 0;
            reactor.renew() catch return;
            self.watches.rearm(reactor);
        }

        fn collectDue(self: *Self, host: *Host) Host.Error!void {
            if (self.timers.count() == 0) return;
            const now_ns = try host.timeNs();
            while (true) {
                // Room first: a timer taken out of the heap must reach the queue.
                try self.ready.ensureUnusedCapacity(self.gpa, 1);
                const timer = self.timers.popDue(self.gpa, now_ns) orelse return;
                self.ready.pushAssumeCapacity(host.workOfTimer(timer));
            }
        }

        fn runReady(self: *Self, host: *Host) (Host.Error || error{Forked})!void {
            var count = self.ready.len;
            while (count > 0) : (count -= 1) {
                // A child that returns from the callback that made it: the rest is the parent's.
                if (self.isParents()) return error.Forked;
                // The host can empty the queue under us by closing the loop after an error.
                const work = self.ready.pop() orelse return;
                try host.run(work);
            }
            if (self.ready.len == 0) self.ready.trim(self.gpa);
        }
    };
}

const TestHost = struct {
    const Error = Allocator.Error || reactor_.OpenError || error{ Unexpected, Stop };
    const Work = union(enum) { note: u32, again: u32, watch: *Watch, timer: *TestTimer, stop };
    const TestTimer = struct { timer: Timer = .{}, id: u32 };

    loop: Loop(TestHost),
    log: std.ArrayList(u32) = .empty,
    waits: usize = 0,
    stopping: bool = false,
    /// What the host's own code does next time it is asked for the time, or looks at signals.
    during_time: ?Work = null,
    during_signals: ?Work = null,

    fn workOfTimer(_: *TestHost, timer: *Timer) Work {
        return .{ .timer = @fieldParentPtr("timer", timer) };
    }

    fn queueWatch(self: *TestHost, w: *Watch) void {
        self.loop.ready.pushAssumeCapacity(.{ .watch = w });
    }

    fn idle(_: *TestHost) void {}

    fn patienceNs(_: *TestHost) ?u64 {
        return null;
    }

    fn turnDone(_: *TestHost) Error!void {}

    fn waitElsewhere(_: *TestHost, _: reactor_.fd_t, wait_ns: ?u64) Error!?u64 {
        return wait_ns;
    }

    fn beforeWait(self: *TestHost) void {
        self.waits += 1;
    }

    fn afterWait(_: *TestHost) void {}

    fn isStopping(self: *TestHost) bool {
        return self.stopping;
    }

    fn timeNs(self: *TestHost) Error!u64 {
        try self.postOnce(&self.during_time);
        return clock.nowNs();
    }

    fn checkSignals(self: *TestHost) Error!void {
        try self.postOnce(&self.during_signals);
    }

    fn postOnce(self: *TestHost, field: *?Work) Error!void {
        const work = field.* orelse return;
        field.* = null;
        switch (work) {
            .timer => |timer| try self.loop.timers.push(std.testing.allocator, &timer.timer, clock.nowNs() + clock.ns_per_ms),
            else => try self.loop.post(work),
        }
    }

    fn turn(self: *TestHost, stopping: bool) (Error || error{Forked})!void {
        self.stopping = stopping;
        return self.loop.turn(self);
    }

    fn pollsItself(_: *TestHost) bool {
        return false;
    }

    fn pollBy(_: *TestHost, _: ?u64) Error!void {
        unreachable;
    }

    fn run(self: *TestHost, work: Work) Error!void {
        switch (work) {
            .note => |id| try self.log.append(std.testing.allocator, id),
            .again => |id| {
                try self.log.append(std.testing.allocator, id);
                try self.loop.post(.{ .note = id + 1 });
            },
            .watch => |w| {
                w.pending = .none;
                try self.log.append(std.testing.allocator, 1000 + @as(u32, @intCast(w.fd)));
            },
            .timer => |timer| try self.log.append(std.testing.allocator, timer.id),
            .stop => return error.Stop,
        }
    }

    fn deinit(self: *TestHost) void {
        self.loop.deinit();
        self.log.deinit(std.testing.allocator);
    }
};

fn connectedPair() ![2]reactor_.fd_t {
    var pair: [2]reactor_.fd_t = undefined;
    try std.testing.expectEqual(@as(c_int, 0), std.c.socketpair(std.c.AF.UNIX, std.c.SOCK.STREAM, 0, &pair));
    return pair;
}

test "a turn right after a poll runs ready work without another, a few times" {
    const sys = @import("sys.zig");
    const gpa = std.testing.allocator;
    var host: TestHost = .{ .loop = .init(gpa) };
    defer host.deinit();
    const pair = try connectedPair();
    defer for (pair) |fd| sys.close(fd);
    var w: Watch = .{ .fd = pair[0] };
    try host.loop.watch(&w, .{ .read = true });
    defer host.loop.unwatch(&w);

    host.loop.beginRun();
    for (0..turns_with_fresh_poll_max + 2) |turn_index| {
        // However slow this machine is at the moment, the last poll counts as fresh.
        if (turn_index > 0) host.loop.polled_ns = std.math.maxInt(u64) / 2;
        try host.loop.post(.{ .note = 1 });
        try host.turn(false);
        try std.testing.expectEqual(@as(usize, if (turn_index <= turns_with_fresh_poll_max) 1 else 2), host.waits);
    }
    host.loop.polled_ns = clock.nowNs() - poll_fresh_ns;
    try host.loop.post(.{ .note = 1 });
    try host.turn(false);
    try std.testing.expectEqual(@as(usize, 3), host.waits);
}

test "the turn after a watch polls, however fresh the last poll is" {
    const sys = @import("sys.zig");
    const gpa = std.testing.allocator;
    var host: TestHost = .{ .loop = .init(gpa) };
    defer host.deinit();
    const pair = try connectedPair();
    defer for (pair) |fd| sys.close(fd);
    var other: Watch = .{ .fd = pair[1] };
    try host.loop.watch(&other, .{ .read = true });
    defer host.loop.unwatch(&other);
    try host.turn(true);
    _ = sys.send(pair[1], "x");

    // However slow this machine is at the moment, the last poll counts as fresh.
    host.loop.polled_ns = std.math.maxInt(u64) / 2;
    var w: Watch = .{ .fd = pair[0] };
    try host.loop.watch(&w, .{ .read = true });
    defer host.loop.unwatch(&w);
    try host.loop.post(.{ .note = 1 });
    try host.turn(false);
    try std.testing.expectEqualSlices(u32, &.{ 1, @intCast(1000 + pair[0]) }, host.log.items);

    // Watching for less is no reason to poll.
    host.loop.polled_ns = std.math.maxInt(u64) / 2;
    host.loop.unwatch(&w);
    const waits = host.waits;
    try host.loop.post(.{ .note = 2 });
    try host.turn(false);
    try std.testing.expectEqual(waits, host.waits);
}

test "a turn runs what was ready when it began, in order, then new work in the next turn" {
    var host: TestHost = .{ .loop = .init(std.testing.allocator) };
    defer host.deinit();
    try host.loop.post(.{ .again = 1 });
    try host.loop.post(.{ .note = 5 });
    try host.turn(false);
    try std.testing.expectEqualSlices(u32, &.{ 1, 5 }, host.log.items);
    try host.turn(false);
    try std.testing.expectEqualSlices(u32, &.{ 1, 5, 2 }, host.log.items);
    try std.testing.expectEqual(@as(usize, 0), host.waits);
    try std.testing.expect(host.loop.reactor == null);
}

test "queued work, then descriptors, then due timers" {
    const sys = @import("sys.zig");
    const gpa = std.testing.allocator;
    var host: TestHost = .{ .loop = .init(gpa) };
    defer host.deinit();
    const pair = try connectedPair();
    defer for (pair) |fd| sys.close(fd);
    _ = sys.send(pair[1], "x");

    var w: Watch = .{ .fd = pair[0] };
    try host.loop.watch(&w, .{ .read = true });
    defer host.loop.unwatch(&w);
    var timers = [_]TestHost.TestTimer{ .{ .id = 7 }, .{ .id = 8 }, .{ .id = 9 } };
    const now_ns = clock.nowNs();
    try host.loop.timers.push(gpa, &timers[0].timer, now_ns);
    try host.loop.timers.push(gpa, &timers[1].timer, now_ns);
    try host.loop.timers.push(gpa, &timers[2].timer, now_ns + 3600 * clock.ns_per_s);
    try host.loop.post(.{ .note = 1 });
    try host.turn(false);
    const readable: u32 = @intCast(1000 + pair[0]);
    try std.testing.expectEqualSlices(u32, &.{ 1, readable, 7, 8 }, host.log.items);
    host.loop.timers.remove(gpa, &timers[2].timer);
}

test "a timer never fires early and the wait ends by it" {
    const gpa = std.testing.allocator;
    var host: TestHost = .{ .loop = .init(gpa) };
    defer host.deinit();
    var timer: TestHost.TestTimer = .{ .id = 3 };
    const deadline_ns = clock.nowNs() + 2 * clock.ns_per_ms;
    try host.loop.timers.push(gpa, &timer.timer, deadline_ns);
    while (host.log.items.len == 0) try host.turn(false);
    try std.testing.expect(clock.nowNs() >= deadline_ns);
    try std.testing.expect(host.waits <= 2);
}

test "a post from another thread ends the wait" {
    const gpa = std.heap.smp_allocator;
    var host: TestHost = .{ .loop = .init(gpa) };
    defer host.deinit();
    const Poster = struct {
        fn post(loop: *Loop(TestHost)) void {
            loop.postThreadsafe(.{ .note = 42 }) catch unreachable;
        }
    };
    const thread = try std.Thread.spawn(.{}, Poster.post, .{&host.loop});
    while (host.log.items.len == 0) try host.turn(false);
    thread.join();
    try std.testing.expectEqualSlices(u32, &.{42}, host.log.items);
}

test "work that the host's own code queues while the loop decides to wait ends the wait" {
    const gpa = std.testing.allocator;
    inline for (.{ "during_time", "during_signals" }) |field| {
        var host: TestHost = .{ .loop = .init(gpa) };
        defer host.deinit();
        var timer: TestHost.TestTimer = .{ .id = 3 };
        try host.loop.timers.push(gpa, &timer.timer, clock.nowNs() + 3600 * clock.ns_per_s);
        @field(host, field) = .{ .note = 1 };
        try host.turn(false);
        try std.testing.expectEqualSlices(u32, &.{1}, host.log.items);
        host.loop.timers.remove(gpa, &timer.timer);
    }
}

test "a timer that a signal handler adds does not wait for ever" {
    const gpa = std.testing.allocator;
    var host: TestHost = .{ .loop = .init(gpa) };
    defer host.deinit();
    var timer: TestHost.TestTimer = .{ .id = 5 };
    host.during_signals = .{ .timer = &timer };
    while (host.log.items.len == 0) try host.turn(false);
    try std.testing.expectEqualSlices(u32, &.{5}, host.log.items);
}

test "an error leaves the rest of the queue for the next run" {
    var host: TestHost = .{ .loop = .init(std.testing.allocator) };
    defer host.deinit();
    try host.loop.post(.{ .note = 1 });
    try host.loop.post(.stop);
    try host.loop.post(.{ .note = 2 });
    try std.testing.expectError(error.Stop, host.turn(false));
    try host.turn(true);
    try std.testing.expectEqualSlices(u32, &.{ 1, 2 }, host.log.items);
}

test "a forked child's copy runs nothing and wakes nobody" {
    const gpa = std.testing.allocator;
    var host: TestHost = .{ .loop = .init(gpa) };
    defer host.deinit();
    try host.loop.post(.{ .note = 1 });
    host.loop.fork_count +%= 1;
    try std.testing.expectError(error.Forked, host.turn(true));
    var w: Watch = .{ .fd = 0 };
    try std.testing.expectError(error.Forked, host.loop.watch(&w, .{ .read = true }));
    host.loop.waiting.store(true, .seq_cst);
    host.loop.wake();
    try std.testing.expect(host.loop.reactor == null);
    try std.testing.expectEqual(@as(usize, 0), host.log.items.len);
}

test "a child's copy that may run does so by a reactor of its own" {
    const gpa = std.testing.allocator;
    var host: TestHost = .{ .loop = .init(gpa) };
    defer host.deinit();
    _ = try host.loop.openReactor();
    try host.loop.post(.{ .note = 1 });
    host.loop.fork_count +%= 1;
    try host.loop.post(.{ .note = 2 });
    try std.testing.expectError(error.Forked, host.turn(true));
    host.loop.runInChild();
    try std.testing.expect(host.loop.reactor == null);
    try host.turn(true);
    try std.testing.expectEqualSlices(u32, &.{ 1, 2 }, host.log.items);
    // Its transports' descriptors stay the parent's.
    var w: Watch = .{ .fd = 0 };
    try std.testing.expectError(error.Forked, host.loop.watch(&w, .{ .read = true }));
}

test "a descriptor that was closed while another holds a duplicate does not keep the loop awake" {
    const sys = @import("sys.zig");
    const gpa = std.testing.allocator;
    var host: TestHost = .{ .loop = .init(gpa) };
    defer host.deinit();
    var pairs: [2][2]sys.fd_t = undefined;
    for (&pairs) |*pair| pair.* = try connectedPair();
    defer sys.close(pairs[0][1]);
    defer for (pairs[1]) |fd| sys.close(fd);

    var lost: Watch = .{ .fd = pairs[0][0] };
    var kept: Watch = .{ .fd = pairs[1][0] };
    try host.loop.watch(&lost, .{ .read = true });
    try host.loop.watch(&kept, .{ .read = true });
    defer host.loop.unwatch(&kept);
    const duplicate = std.c.dup(lost.fd);
    defer sys.close(duplicate);
    _ = sys.send(pairs[0][1], "x");
    sys.close(lost.fd);
    host.loop.unwatch(&lost);

    // More than enough: a turn may leave its poll out.
    for (0..8 * stale_polls_max) |_| try host.turn(true);
    try std.testing.expectEqual(@as(u32, 0), host.loop.stale_polls);
    try std.testing.expectEqual(@as(usize, 0), host.log.items.len);
    // The others are still watched.
    _ = sys.send(pairs[1][1], "x");
    while (host.log.items.len == 0) try host.turn(true);
    try std.testing.expectEqual(@as(u32, @intCast(1000 + kept.fd)), host.log.items[0]);
    // And a wake-up still ends a wait.
    var buffer: [1]u8 = undefined;
    _ = sys.recv(kept.fd, &buffer);
    host.log.clearRetainingCapacity();
    const Poster = struct {
        fn post(loop: *Loop(TestHost)) void {
            loop.postThreadsafe(.{ .note = 42 }) catch unreachable;
        }
    };
    const thread = try std.Thread.spawn(.{}, Poster.post, .{&host.loop});
    while (host.log.items.len == 0) try host.turn(false);
    thread.join();
}
