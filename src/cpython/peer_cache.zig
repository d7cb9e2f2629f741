//! Internet addresses that datagrams have come from, with the tuples made for them.
//!
//! A peer that sends again gets the same tuple, and a reply to that tuple finds its address by
//! identity: the tuple is ours, and immutable down to its strings. One cache serves all sockets of
//! a loop. A place can be taken by a newer address; the tuple taken out lives on with its users.

const std = @import("std");
const core = @import("core");
const py = @import("py.zig");
const address_ = @import("address.zig");

const Object = py.Object;
const Address = core.sys.Address;
const Compact = address_.Compact;

const place_bits = 8;
const entry_count = 1 << place_bits;

pub const PeerCache = struct {
    entries: [entry_count]Entry = @splat(.{}),
    /// Places of entries by their tuple's address in memory, plus one.
    by_object: [entry_count]u16 = @splat(0),

    const Entry = struct {
        address: Compact = .{},
        object: ?*Object = null,
    };

    pub fn deinit(self: *PeerCache) void {
        for (&self.entries) |*entry| py.clear(&entry.object);
    }

    /// The tuple for an internet address, a new reference. None where the kernel gave no address: the
    /// socket is of another type than its object says.
    pub fn tuple(self: *PeerCache, address: *const Address) py.Error!*Object {
        const place = placeOf(address.bytes());
        const entry = &self.entries[place];
        if (entry.object) |object| {
            if (std.mem.eql(u8, entry.address.storage[0..entry.address.len], address.bytes())) return py.newRef(object);
        }
        const made = (try address_.toObject(address)) orelse return py.newNone();
        if (entry.address.set(address)) {
            py.replace(&entry.object, py.newRef(made));
            self.by_object[placeOfObject(made)] = place + 1;
        }
        return made;
    }

    /// The address of a tuple that `tuple` gave.
    pub fn find(self: *const PeerCache, object: *const Object) ?Address {
        const place = self.by_object[placeOfObject(object)];
        if (place == 0) return null;
        const entry = &self.entries[place - 1];
        if (entry.object != object) return null;
        return entry.address.get();
    }

    fn placeOf(bytes: []const u8) u16 {
        var hash: u64 = 0;
        var rest = bytes;
        while (rest.len >= 4) : (rest = rest[4..]) {
            hash = (hash ^ std.mem.readInt(u32, rest[0..4], .little)) *% 0x9e3779b97f4a7c15;
        }
        return @intCast(hash >> (64 - place_bits));
    }

    fn placeOfObject(object: *const Object) u16 {
        const hash = (@as(u64, @intFromPtr(object)) >> 4) *% 0x9e3779b97f4a7c15;
        return @intCast(hash >> (64 - place_bits));
    }
};
