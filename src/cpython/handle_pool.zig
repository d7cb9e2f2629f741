//! Freed handles that wait to be used again, a list for each kind.
//!
//! A burst's handles are many pages of memory: taking them from the system and giving them back each time costs
//! half of what the handles themselves cost. So the pool grows to what a burst leaves, and a loop that has had no
//! use for them for `period_ns` gives them back.
//!
//! Ownership: a handle in the pool has no references and holds none but to its type.

const std = @import("std");
const py = @import("py.zig");
const handle = @import("handle.zig");

const Object = py.Object;

/// Some 20 MB of one kind.
const count_max = 128 * 1024;
/// So many are never worth giving back.
const kept_max = 512;
const period_ns = 100 * std.time.ns_per_ms;

const List = struct {
    /// Linked through the callback field.
    first: ?*Object = null,
    count: u32 = 0,
    /// The fewest there were at any wait since the last look: so many were of no use.
    unused: u32 = 0,

    inline fn pop(self: *List) ?*Object {
        const object = self.first orelse return null;
        self.first = handle.of(object).callback;
        self.count -= 1;
        return object;
    }

    fn shrink(self: *List, count: u32) void {
        while (self.count > count) handle.free(self.pop().?);
    }
};

pub const Pool = struct {
    lists: std.EnumArray(handle.Kind, List) = .initFill(.{}),
    /// More than `kept_max` of a kind came in since the last look, or were left by it.
    is_large: bool = false,
    looked_ns: u64 = 0,

    pub inline fn take(self: *Pool, comptime kind: handle.Kind) ?*Object {
        return self.lists.getPtr(kind).pop();
    }

    /// False if there are enough: then it is the caller's to free.
    pub inline fn put(self: *Pool, object: *Object) bool {
        const list = self.lists.getPtr(handle.of(object).kind);
        if (list.count >= kept_max and !self.grow(list)) return false;
        handle.of(object).callback = list.first;
        list.first = object;
        list.count += 1;
        return true;
    }

    fn grow(self: *Pool, list: *const List) bool {
        self.is_large = true;
        return list.count < count_max;
    }

    /// How long the loop may wait before it looks again; null if nothing can be given back.
    pub inline fn patienceNs(self: *const Pool) ?u64 {
        return if (self.is_large) period_ns else null;
    }

    pub inline fn waited(self: *Pool) void {
        if (self.is_large) self.noteUnused();
    }

    fn noteUnused(self: *Pool) void {
        for (&self.lists.values) |*list| list.unused = @min(list.unused, list.count);
    }

    pub inline fn idle(self: *Pool, now_ns: u64) void {
        if (self.is_large and now_ns -| self.looked_ns >= period_ns) self.look(now_ns);
    }

    /// Gives back what the time since the last look had no use for.
    fn look(self: *Pool, now_ns: u64) void {
        self.looked_ns = now_ns;
        self.is_large = false;
        for (&self.lists.values) |*list| {
            list.shrink(@max(kept_max, list.count -| list.unused));
            list.unused = list.count;
            if (list.count > kept_max) self.is_large = true;
        }
    }

    pub fn empty(self: *Pool) void {
        for (&self.lists.values) |*list| list.shrink(0);
        self.is_large = false;
    }
};
