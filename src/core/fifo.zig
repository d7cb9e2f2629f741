//! First in, first out: a growable ring of small values, the loop's ready queue.
//!
//! The capacity is a power of two. Only the loop's thread touches a Fifo; the values' owner is
//! whoever pushed them until they are popped.

const std = @import("std");
const assert = std.debug.assert;
const Allocator = std.mem.Allocator;

pub fn Fifo(comptime T: type) type {
    return struct {
        const Self = @This();

        items: []T,
        head: usize,
        len: usize,

        pub const empty: Self = .{ .items = &.{}, .head = 0, .len = 0 };

        /// After a burst the ring is given back when it drains; this many slots are kept.
        const capacity_kept_max = 4096;
        const capacity_min = 64;

        pub fn deinit(self: *Self, gpa: Allocator) void {
            gpa.free(self.items);
            self.* = undefined;
        }

        pub inline fn push(self: *Self, gpa: Allocator, value: T) Allocator.Error!void {
            if (self.len == self.items.len) try self.grow(gpa, self.len + 1);
            self.pushAssumeCapacity(value);
        }

        pub inline fn pushAssumeCapacity(self: *Self, value: T) void {
            assert(self.len < self.items.len);
            self.items[(self.head +% self.len) & (self.items.len - 1)] = value;
            self.len += 1;
        }

        pub fn pushFrontAssumeCapacity(self: *Self, value: T) void {
            assert(self.len < self.items.len);
            self.head = (self.head -% 1) & (self.items.len - 1);
            self.items[self.head] = value;
            self.len += 1;
        }

        pub fn ensureUnusedCapacity(self: *Self, gpa: Allocator, count: usize) Allocator.Error!void {
            if (self.items.len - self.len < count) try self.grow(gpa, self.len + count);
        }

        pub inline fn pop(self: *Self) ?T {
            if (self.len == 0) return null;
            const value = self.items[self.head];
            self.head = (self.head +% 1) & (self.items.len - 1);
            self.len -= 1;
            return value;
        }

        /// The value `index` places behind the head.
        pub fn at(self: *const Self, index: usize) T {
            assert(index < self.len);
            return self.items[(self.head +% index) & (self.items.len - 1)];
        }

        /// Gives a burst's memory back. Called when the queue is empty.
        pub fn trim(self: *Self, gpa: Allocator) void {
            assert(self.len == 0);
            self.head = 0;
            if (self.items.len <= capacity_kept_max) return;
            gpa.free(self.items);
            self.items = &.{};
        }

        fn grow(self: *Self, gpa: Allocator, count_min: usize) Allocator.Error!void {
            @branchHint(.cold);
            const capacity = std.math.ceilPowerOfTwoAssert(usize, @max(count_min, capacity_min));
            const items = try gpa.alloc(T, capacity);
            const first = @min(self.len, self.items.len - self.head);
            @memcpy(items[0..first], self.items[self.head..][0..first]);
            @memcpy(items[first..self.len], self.items[0 .. self.len - first]);
            gpa.free(self.items);
            self.items = items;
            self.head = 0;
        }
    };
}

test "order is kept across growth and wrap-around, against a plain list" {
    const gpa = std.testing.allocator;
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    const random = prng.random();

    var fifo: Fifo(u32) = .empty;
    defer fifo.deinit(gpa);
    var model: std.ArrayList(u32) = .empty;
    defer model.deinit(gpa);

    var next: u32 = 0;
    for (0..50_000) |_| {
        switch (random.uintLessThan(u8, 8)) {
            0 => {
                try fifo.ensureUnusedCapacity(gpa, 1);
                fifo.pushFrontAssumeCapacity(next);
                try model.insert(gpa, 0, next);
                next += 1;
            },
            1...3 => {
                try fifo.push(gpa, next);
                try model.append(gpa, next);
                next += 1;
            },
            4...6 => {
                const expected: ?u32 = if (model.items.len == 0) null else model.orderedRemove(0);
                try std.testing.expectEqual(expected, fifo.pop());
            },
            else => if (fifo.len == 0) fifo.trim(gpa) else {
                const index = random.uintLessThan(usize, fifo.len);
                try std.testing.expectEqual(model.items[index], fifo.at(index));
            },
        }
        try std.testing.expectEqual(model.items.len, fifo.len);
    }
}

test "a burst is given back" {
    const gpa = std.testing.allocator;
    var fifo: Fifo(usize) = .empty;
    defer fifo.deinit(gpa);
    try fifo.ensureUnusedCapacity(gpa, 100_000);
    for (0..100_000) |i| fifo.pushAssumeCapacity(i);
    for (0..100_000) |i| try std.testing.expectEqual(i, fifo.pop().?);
    fifo.trim(gpa);
    try std.testing.expectEqual(@as(usize, 0), fifo.items.len);
}
