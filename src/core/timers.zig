//! Deadlines: a four-ary heap of intrusive timers.
//!
//! Each `Timer` lives inside its owner's object and knows its place in the heap, so cancelling is
//! O(log n) and frees at once; the common patterns (a later deadline than all others, cancelling
//! the newest) move nothing. Keys sit in the array, so sifting compares without touching the
//! timers themselves. Equal deadlines leave in the order they came.
//! Only the loop's thread touches the heap.

const std = @import("std");
const assert = std.debug.assert;
const Allocator = std.mem.Allocator;

pub const Timer = extern struct {
    /// Place in the heap, or `unset`.
    index: u32 = unset,

    pub const unset = std.math.maxInt(u32);

    pub fn isSet(self: *const Timer) bool {
        return self.index != unset;
    }
};

pub const TimerHeap = struct {
    entries: std.ArrayList(Entry) = .empty,
    /// Ties break by arrival. 2^64 timers outlast the machine.
    sequence_next: u64 = 0,

    const arity = 4;
    /// After a burst of timers the array is given back down to this many entries.
    const capacity_kept_max = 1024;

    pub const Entry = struct {
        deadline_ns: u64,
        sequence: u64,
        timer: *Timer,

        inline fn before(a: Entry, b: Entry) bool {
            if (a.deadline_ns != b.deadline_ns) return a.deadline_ns < b.deadline_ns;
            return a.sequence < b.sequence;
        }
    };

    pub fn deinit(self: *TimerHeap, gpa: Allocator) void {
        self.entries.deinit(gpa);
        self.* = undefined;
    }

    pub fn count(self: *const TimerHeap) usize {
        return self.entries.items.len;
    }

    /// The timer must stay where it is in memory until it leaves the heap.
    pub fn push(self: *TimerHeap, gpa: Allocator, timer: *Timer, deadline_ns: u64) Allocator.Error!void {
        assert(!timer.isSet());
        if (self.entries.items.len == Timer.unset) return error.OutOfMemory;
        _ = try self.entries.addOne(gpa);
        const entry: Entry = .{ .deadline_ns = deadline_ns, .sequence = self.sequence_next, .timer = timer };
        self.sequence_next += 1;
        self.siftUp(self.entries.items.len - 1, entry);
    }

    pub fn remove(self: *TimerHeap, gpa: Allocator, timer: *Timer) void {
        const index = timer.index;
        const items = self.entries.items;
        assert(index < items.len);
        assert(items[index].timer == timer);
        timer.index = Timer.unset;
        const last = self.entries.pop().?;
        if (index == items.len - 1) return self.trim(gpa);
        if (index > 0 and last.before(items[(index - 1) / arity])) {
            self.siftUp(index, last);
        } else {
            self.siftDown(index, last);
        }
        self.trim(gpa);
    }

    pub fn earliestNs(self: *const TimerHeap) ?u64 {
        if (self.entries.items.len == 0) return null;
        return self.entries.items[0].deadline_ns;
    }

    /// The earliest timer whose deadline is not after `now_ns`, taken out of the heap.
    pub fn popDue(self: *TimerHeap, gpa: Allocator, now_ns: u64) ?*Timer {
        if (self.entries.items.len == 0) return null;
        const first = self.entries.items[0];
        if (first.deadline_ns > now_ns) return null;
        self.remove(gpa, first.timer);
        return first.timer;
    }

    fn siftUp(self: *TimerHeap, start: usize, entry: Entry) void {
        const items = self.entries.items;
        var index = start;
        while (index > 0) {
            const parent = (index - 1) / arity;
            if (!entry.before(items[parent])) break;
            place(items, index, items[parent]);
            index = parent;
        }
        place(items, index, entry);
    }

    fn siftDown(self: *TimerHeap, start: usize, entry: Entry) void {
        const items = self.entries.items;
        var index = start;
        while (true) {
            const child_first = index * arity + 1;
            if (child_first >= items.len) break;
            var child = child_first;
            for (child_first + 1..@min(child_first + arity, items.len)) |other| {
                if (items[other].before(items[child])) child = other;
            }
            if (!items[child].before(entry)) break;
            place(items, index, items[child]);
            index = child;
        }
        place(items, index, entry);
    }

    inline fn place(items: []Entry, index: usize, entry: Entry) void {
        items[index] = entry;
        entry.timer.index = @intCast(index);
    }

    fn trim(self: *TimerHeap, gpa: Allocator) void {
        if (self.entries.capacity <= capacity_kept_max) return;
        if (self.entries.items.len > self.entries.capacity / 8) return;
        const capacity = @max(2 * self.entries.items.len, capacity_kept_max);
        // Without memory for the smaller array the larger one serves on.
        var smaller = std.ArrayList(Entry).initCapacity(gpa, capacity) catch return;
        smaller.appendSliceAssumeCapacity(self.entries.items);
        self.entries.deinit(gpa);
        self.entries = smaller;
    }

    /// Checks the whole structure: every parent before its children, every timer at its index.
    pub fn verify(self: *const TimerHeap) error{ ChildBeforeParent, TimerAstray }!void {
        for (self.entries.items, 0..) |entry, index| {
            if (entry.timer.index != index) return error.TimerAstray;
            if (index > 0 and entry.before(self.entries.items[(index - 1) / arity])) return error.ChildBeforeParent;
        }
    }
};

test "against a sorted model, with cancels" {
    const gpa = std.testing.allocator;
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    const random = prng.random();

    var timers: [512]Timer = @splat(.{});
    var deadline_ns: [512]u64 = @splat(0);
    var arrival: [512]u64 = @splat(0);
    var heap: TimerHeap = .{};
    defer heap.deinit(gpa);

    for (0..20_000) |step| {
        const i = random.uintLessThan(usize, timers.len);
        if (timers[i].isSet()) {
            heap.remove(gpa, &timers[i]);
        } else {
            deadline_ns[i] = random.uintLessThan(u64, 64);
            arrival[i] = step;
            try heap.push(gpa, &timers[i], deadline_ns[i]);
        }
        if (step % 64 == 0) try heap.verify();
        if (step % 997 == 0) {
            const now_ns = random.uintLessThan(u64, 64);
            var last_ns: u64 = 0;
            var last_arrival: u64 = 0;
            while (heap.popDue(gpa, now_ns)) |timer| {
                const index = (@intFromPtr(timer) - @intFromPtr(&timers)) / @sizeOf(Timer);
                try std.testing.expect(deadline_ns[index] <= now_ns);
                try std.testing.expect(deadline_ns[index] >= last_ns);
                if (deadline_ns[index] == last_ns) try std.testing.expect(arrival[index] >= last_arrival);
                last_ns = deadline_ns[index];
                last_arrival = arrival[index];
            }
            for (timers, deadline_ns) |timer, deadline| {
                if (timer.isSet()) try std.testing.expect(deadline > now_ns);
            }
        }
    }
}

test "memory follows the number of timers down" {
    const gpa = std.testing.allocator;
    const many = try gpa.alloc(Timer, 100_000);
    defer gpa.free(many);
    var heap: TimerHeap = .{};
    defer heap.deinit(gpa);
    for (many, 0..) |*timer, i| {
        timer.* = .{};
        try heap.push(gpa, timer, i);
    }
    for (many) |*timer| heap.remove(gpa, timer);
    try std.testing.expectEqual(@as(usize, 0), heap.count());
    try std.testing.expect(heap.entries.capacity <= 2 * TimerHeap.capacity_kept_max);
}
