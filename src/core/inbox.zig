//! Work that other threads hand to the loop.
//!
//! A short lock guards an array; the loop takes the whole array at once. The lock is held for a
//! copy of a few words, for growing the array, or by the loop for the write that wakes it; never
//! across a call into the host. Order is the order in which `push` got the lock.

const std = @import("std");
const Allocator = std.mem.Allocator;

pub const PushError = Allocator.Error || error{Closed};

pub fn Inbox(comptime T: type) type {
    return struct {
        const Self = @This();

        mutex: std.atomic.Mutex = .unlocked,
        items: std.ArrayList(T) = .empty,
        /// Mirrors `items.items.len`, readable without the lock: a hint that the loop polls on its
        /// hot path. A push that the hint does not show yet is seen by the wake-up that follows it: pusher and
        /// loop each write their own flag and then read the other's, which only holds in one order for all
        /// (`seq_cst`).
        count_hint: std.atomic.Value(usize) = .init(0),
        /// Nobody empties it any more.
        closed: bool = false,

        /// A burst's memory is given back above this many slots.
        const capacity_kept_max = 4096;

        pub fn deinit(self: *Self, gpa: Allocator) void {
            self.items.deinit(gpa);
            self.* = undefined;
        }

        /// Any thread.
        pub fn push(self: *Self, gpa: Allocator, item: T) PushError!void {
            self.lock();
            defer self.unlock();
            if (self.closed) return error.Closed;
            try self.items.append(gpa, item);
            self.count_hint.store(self.items.items.len, .seq_cst);
        }

        /// The loop's thread: from now on `push` refuses. What is in it can still be taken.
        pub fn close(self: *Self) void {
            self.lock();
            defer self.unlock();
            self.closed = true;
        }

        /// Any thread.
        pub inline fn isEmptyHint(self: *const Self) bool {
            return self.count_hint.load(.seq_cst) == 0;
        }

        /// The loop's thread: moves everything to the end of `fifo`, in order.
        pub fn drainInto(self: *Self, gpa: Allocator, fifo: anytype) Allocator.Error!void {
            self.lock();
            defer self.unlock();
            try fifo.ensureUnusedCapacity(gpa, self.items.items.len);
            for (self.items.items) |item| fifo.pushAssumeCapacity(item);
            if (self.items.capacity > capacity_kept_max) {
                self.items.clearAndFree(gpa);
            } else {
                self.items.clearRetainingCapacity();
            }
            self.count_hint.store(0, .release);
        }

        pub fn unlock(self: *Self) void {
            self.mutex.unlock();
        }

        pub fn lock(self: *Self) void {
            while (!self.mutex.tryLock()) {
                // The holder is copying a few words, or has lost its time slice: on a machine with
                // few cores spinning on would only keep it from running.
                std.Thread.yield() catch std.atomic.spinLoopHint();
            }
        }
    };
}

test "nothing is lost or reordered between four threads and the loop" {
    const Fifo = @import("fifo.zig").Fifo;
    const gpa = std.heap.smp_allocator;
    const per_thread = 20_000;
    const Shared = struct {
        inbox: Inbox(u64) = .{},

        fn produce(self: *@This(), who: u64) void {
            for (0..per_thread) |i| self.inbox.push(gpa, who << 32 | i) catch unreachable;
        }
    };
    var shared: Shared = .{};
    defer shared.inbox.deinit(gpa);
    var threads: [4]std.Thread = undefined;
    for (&threads, 0..) |*thread, who| thread.* = try std.Thread.spawn(.{}, Shared.produce, .{ &shared, who });

    var fifo: Fifo(u64) = .empty;
    defer fifo.deinit(gpa);
    var next: [4]u64 = @splat(0);
    var seen: usize = 0;
    while (seen < 4 * per_thread) {
        try shared.inbox.drainInto(gpa, &fifo);
        while (fifo.pop()) |item| : (seen += 1) {
            const who: usize = @intCast(item >> 32);
            try std.testing.expectEqual(next[who], item & 0xffff_ffff);
            next[who] += 1;
        }
    }
    for (threads) |thread| thread.join();
    try std.testing.expect(shared.inbox.isEmptyHint());
}

test "a closed inbox refuses, and gives what it has" {
    const Fifo = @import("fifo.zig").Fifo;
    const gpa = std.testing.allocator;
    var inbox: Inbox(u32) = .{};
    defer inbox.deinit(gpa);
    try inbox.push(gpa, 1);
    inbox.close();
    try std.testing.expectError(error.Closed, inbox.push(gpa, 2));
    var fifo: Fifo(u32) = .empty;
    defer fifo.deinit(gpa);
    try inbox.drainInto(gpa, &fifo);
    try std.testing.expectEqual(@as(?u32, 1), fifo.pop());
    try std.testing.expectEqual(@as(?u32, null), fifo.pop());
}
