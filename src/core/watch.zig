//! Watches: who wants to know about which descriptor.
//!
//! A `Watch` lives inside its owner's object (a transport, a reader/writer pair, a listener). The
//! table maps a descriptor number to the one watch armed for it. Rules:
//! - one watch per descriptor; it is in the table exactly while it is armed for something;
//! - the watch leaves the table, and the kernel, before its descriptor is closed;
//! - every arming gets a new generation, and an event whose generation is not the armed one is
//!   dropped: a late event for a reused number reaches nobody.
//! Only the loop's thread touches watches.

const std = @import("std");
const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const reactor_ = @import("reactor.zig");

const Interest = reactor_.Interest;
const Readiness = reactor_.Readiness;
const Token = reactor_.Token;

pub const Watch = struct {
    fd: reactor_.fd_t = -1,
    generation: u32 = 0,
    /// What the kernel has been told.
    armed: Interest = .none,
    /// Reported by the kernel and not yet handled. Not empty exactly while the owner is queued.
    pending: Readiness = .none,

    fn token(self: *const Watch) Token {
        return .{ .fd = self.fd, .generation = self.generation };
    }
};

pub const UpdateError = reactor_.SetError || Allocator.Error || error{Occupied};

pub const WatchTable = struct {
    slots: std.ArrayList(?*Watch) = .empty,
    generation_next: u32 = 1,
    armed_count: usize = 0,

    pub fn deinit(self: *WatchTable, gpa: Allocator) void {
        self.slots.deinit(gpa);
        self.* = undefined;
    }

    pub fn find(self: *const WatchTable, fd: reactor_.fd_t) ?*Watch {
        if (fd < 0) return null;
        const index: usize = @intCast(fd);
        if (index >= self.slots.items.len) return null;
        return self.slots.items[index];
    }

    /// The armed watch an event is for; null if it is late.
    pub fn resolve(self: *const WatchTable, token: Token) ?*Watch {
        const watch = self.find(token.fd) orelse return null;
        if (watch.generation != token.generation) return null;
        return watch;
    }

    /// Changes what `watch` is armed for. `error.Occupied`: another watch is armed for that number.
    /// After any other error the watch is armed for nothing.
    pub fn update(self: *WatchTable, gpa: Allocator, reactor: anytype, watch: *Watch, after: Interest) UpdateError!void {
        const before = watch.armed;
        if (before == after) return;
        if (after.isNone()) {
            self.forget(watch);
            // Fails if the descriptor was closed behind our back; then nothing is left to remove.
            return reactor.set(watch.token(), before, .none) catch {};
        }
        if (before.isNone()) return self.arm(gpa, reactor, watch, after);
        if (reactor.set(watch.token(), before, after)) |_| {
            watch.armed = after;
        } else |err| {
            self.forget(watch);
            // The program closed this descriptor and opened another under the same number: start
            // over with the new one, which never sees the old one's events.
            if (err != error.BadDescriptor) return err;
            return self.arm(gpa, reactor, watch, after);
        }
    }

    fn arm(self: *WatchTable, gpa: Allocator, reactor: anytype, watch: *Watch, after: Interest) UpdateError!void {
        assert(watch.armed.isNone());
        if (watch.fd < 0) return error.BadDescriptor;
        const index: usize = @intCast(watch.fd);
        if (self.find(watch.fd) != null) return error.Occupied;
        watch.generation = self.generation_next;
        self.generation_next +%= 1;
        // The kernel first: the table grows for numbers of open descriptors only, however large a
        // number a program comes up with.
        try reactor.set(watch.token(), .none, after);
        if (index >= self.slots.items.len) {
            self.slots.appendNTimes(gpa, null, index + 1 - self.slots.items.len) catch |err| {
                reactor.set(watch.token(), after, .none) catch {};
                return err;
            };
        }
        watch.armed = after;
        self.slots.items[index] = watch;
        self.armed_count += 1;
    }

    fn forget(self: *WatchTable, watch: *Watch) void {
        const index: usize = @intCast(watch.fd);
        assert(self.slots.items[index] == watch);
        self.slots.items[index] = null;
        self.armed_count -= 1;
        watch.armed = .none;
    }

    /// Whether the kernel still knows an armed watch under its number: false if the program closed the
    /// descriptor behind our back, and the number may be another's.
    pub fn isKnown(reactor: anytype, watch: *const Watch) bool {
        // A change that takes something away fails for a registration that is gone.
        const other: Interest = if (watch.armed.write) .{ .read = true } else .{ .write = true };
        reactor.set(watch.token(), watch.armed, other) catch return false;
        reactor.set(watch.token(), other, watch.armed) catch return false;
        return true;
    }

    /// Tells a reactor that has forgotten everything what is armed. A descriptor that it refuses is
    /// closed, and would have reported nothing anyway.
    pub fn rearm(self: *const WatchTable, reactor: anytype) void {
        for (self.slots.items) |slot| {
            const watch = slot orelse continue;
            reactor.set(watch.token(), .none, watch.armed) catch {};
        }
    }

    /// Takes any armed watch out, kernel included; null when none is left. For closing the loop.
    pub fn popAny(self: *WatchTable, reactor: anytype) ?*Watch {
        while (self.slots.items.len > 0) {
            const watch = self.slots.items[self.slots.items.len - 1] orelse {
                _ = self.slots.pop();
                continue;
            };
            const before = watch.armed;
            self.forget(watch);
            reactor.set(watch.token(), before, .none) catch {};
            return watch;
        }
        return null;
    }
};

const Recorder = struct {
    calls: std.ArrayList(struct { Token, Interest, Interest }) = .empty,
    fail: ?reactor_.SetError = null,

    fn set(self: *Recorder, token: Token, before: Interest, after: Interest) reactor_.SetError!void {
        if (self.fail) |err| {
            self.fail = null;
            return err;
        }
        self.calls.append(std.testing.allocator, .{ token, before, after }) catch unreachable;
    }
};

test "a late event for a reused number is dropped" {
    const gpa = std.testing.allocator;
    var recorder: Recorder = .{};
    defer recorder.calls.deinit(gpa);
    var table: WatchTable = .{};
    defer table.deinit(gpa);

    var first: Watch = .{ .fd = 5 };
    try table.update(gpa, &recorder, &first, .{ .read = true });
    const late = first.token();
    try std.testing.expectEqual(&first, table.resolve(late).?);
    try table.update(gpa, &recorder, &first, .none);
    try std.testing.expectEqual(@as(?*Watch, null), table.resolve(late));

    var second: Watch = .{ .fd = 5 };
    try table.update(gpa, &recorder, &second, .{ .read = true });
    try std.testing.expectEqual(@as(?*Watch, null), table.resolve(late));
    try std.testing.expectEqual(&second, table.resolve(second.token()).?);
    try std.testing.expectEqual(@as(usize, 1), table.armed_count);
}

test "a number has one watch, and a failed arming leaves none" {
    const gpa = std.testing.allocator;
    var recorder: Recorder = .{};
    defer recorder.calls.deinit(gpa);
    var table: WatchTable = .{};
    defer table.deinit(gpa);

    var a: Watch = .{ .fd = 3 };
    var b: Watch = .{ .fd = 3 };
    try table.update(gpa, &recorder, &a, .{ .read = true });
    try std.testing.expectError(error.Occupied, table.update(gpa, &recorder, &b, .{ .write = true }));
    try table.update(gpa, &recorder, &a, .none);
    recorder.fail = error.NotPollable;
    try std.testing.expectError(error.NotPollable, table.update(gpa, &recorder, &b, .{ .read = true }));
    try std.testing.expectEqual(@as(usize, 0), table.armed_count);
    try std.testing.expect(table.find(3) == null);
}

test "a number reopened behind our back is armed afresh" {
    const gpa = std.testing.allocator;
    var recorder: Recorder = .{};
    defer recorder.calls.deinit(gpa);
    var table: WatchTable = .{};
    defer table.deinit(gpa);

    var watch: Watch = .{ .fd = 9 };
    try table.update(gpa, &recorder, &watch, .{ .read = true });
    const before = watch.token();
    recorder.fail = error.BadDescriptor;
    try table.update(gpa, &recorder, &watch, .{ .read = true, .write = true });
    try std.testing.expect(watch.armed.write);
    try std.testing.expect(table.resolve(before) == null);
    try std.testing.expectEqual(&watch, table.popAny(&recorder).?);
    try std.testing.expect(table.popAny(&recorder) == null);
}
