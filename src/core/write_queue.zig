//! Bytes on their way out of a stream: pieces owned by the host, sent with as few system calls as
//! the kernel allows.
//!
//! A piece's bytes stay where they are until they are sent or the queue is cleared; then
//! `Owner.release` is called once for it. Nodes come from a pool shared by all streams of a loop,
//! so a stream that has nothing to send holds no memory.

const std = @import("std");
const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const sys = @import("sys.zig");

/// `Owner` keeps a piece's bytes alive: `fn release(Owner) void`.
pub fn WriteQueue(comptime Owner: type) type {
    return struct {
        const Self = @This();

        first: ?*Node = null,
        last: ?*Node = null,
        /// Bytes not yet sent.
        size: usize = 0,

        /// Few small pieces (a response's head and body) are copied together: the kernel takes one
        /// buffer faster than a list of them.
        const gather_size_max = 4096;

        pub const Node = struct {
            next: ?*Node,
            bytes: []const u8,
            owner: Owner,
        };

        pub const Pool = struct {
            free: ?*Node = null,
            free_count: usize = 0,

            /// Nodes kept after a burst.
            const free_count_max = 256;

            pub fn deinit(pool: *Pool, gpa: Allocator) void {
                while (pool.free) |node| {
                    pool.free = node.next;
                    gpa.destroy(node);
                }
                pool.* = undefined;
            }

            fn create(pool: *Pool, gpa: Allocator) Allocator.Error!*Node {
                const node = pool.free orelse return gpa.create(Node);
                pool.free = node.next;
                pool.free_count -= 1;
                return node;
            }

            fn destroy(pool: *Pool, gpa: Allocator, node: *Node) void {
                if (pool.free_count >= free_count_max) return gpa.destroy(node);
                node.next = pool.free;
                pool.free = node;
                pool.free_count += 1;
            }
        };

        pub fn isEmpty(self: *const Self) bool {
            return self.first == null;
        }

        /// Takes `owner` over, also when it fails.
        pub fn push(self: *Self, pool: *Pool, gpa: Allocator, bytes: []const u8, owner: Owner) Allocator.Error!void {
            assert(bytes.len > 0);
            const node = pool.create(gpa) catch |err| {
                owner.release();
                return err;
            };
            node.* = .{ .next = null, .bytes = bytes, .owner = owner };
            if (self.last) |last| last.next = node else self.first = node;
            self.last = node;
            self.size += bytes.len;
        }

        /// Sends what the kernel takes at once. `writeFn` and `writevFn` are `sys.send`/`sys.sendv`
        /// for sockets, `sys.write`/`sys.writev` for pipes. `done` counts the bytes sent by this
        /// call, 0 for an empty queue; after `would_block` or `failed` what was sent before is gone
        /// from the queue all the same.
        pub fn flush(
            self: *Self,
            pool: *Pool,
            gpa: Allocator,
            fd: sys.fd_t,
            comptime writeFn: fn (sys.fd_t, []const u8) sys.Outcome,
            comptime writevFn: fn (sys.fd_t, []const sys.Iovec) sys.Outcome,
        ) sys.Outcome {
            var sent: usize = 0;
            while (self.first) |first| {
                var wanted = first.bytes.len;
                const result = if (first.next == null) writeFn(fd, first.bytes) else if (self.size <= gather_size_max) result: {
                    var gathered: [gather_size_max]u8 = undefined;
                    wanted = self.gather(&gathered);
                    break :result writeFn(fd, gathered[0..wanted]);
                } else result: {
                    var pieces: [sys.iovec_count_max]sys.Iovec = undefined;
                    var count: usize = 0;
                    wanted = 0;
                    var node: ?*Node = first;
                    while (node) |piece| : (node = piece.next) {
                        if (count == pieces.len) break;
                        pieces[count] = .{ .base = piece.bytes.ptr, .len = piece.bytes.len };
                        wanted += piece.bytes.len;
                        count += 1;
                    }
                    break :result writevFn(fd, pieces[0..count]);
                };
                switch (result) {
                    .done => |count| {
                        sent += count;
                        self.consume(pool, gpa, count);
                        // A short write means the kernel is full: asking again would only say so.
                        if (count < wanted) return .would_block;
                    },
                    else => return result,
                }
            }
            return .{ .done = sent };
        }

        /// Drops `count` bytes from the front: they have gone some other way than by `flush`.
        pub fn consume(self: *Self, pool: *Pool, gpa: Allocator, count: usize) void {
            assert(count <= self.size);
            self.size -= count;
            var left = count;
            while (self.first) |node| {
                if (left < node.bytes.len) {
                    node.bytes = node.bytes[left..];
                    return;
                }
                left -= node.bytes.len;
                self.dropFirst(pool, gpa, node);
            }
            assert(left == 0);
        }

        fn gather(self: *const Self, buffer: *[gather_size_max]u8) usize {
            var length: usize = 0;
            var pieces = self.iterator();
            while (pieces.next()) |piece| {
                @memcpy(buffer[length..][0..piece.bytes.len], piece.bytes);
                length += piece.bytes.len;
            }
            return length;
        }

        pub fn clear(self: *Self, pool: *Pool, gpa: Allocator) void {
            self.size = 0;
            while (self.first) |node| self.dropFirst(pool, gpa, node);
        }

        fn dropFirst(self: *Self, pool: *Pool, gpa: Allocator, node: *Node) void {
            // Unlinked before it is released: releasing can run the host's code, which may come back.
            self.first = node.next;
            if (self.first == null) self.last = null;
            const owner = node.owner;
            pool.destroy(gpa, node);
            owner.release();
        }

        pub const Iterator = struct {
            node: ?*Node,

            pub fn next(self: *Iterator) ?*Node {
                const node = self.node orelse return null;
                self.node = node.next;
                return node;
            }
        };

        pub fn iterator(self: *const Self) Iterator {
            return .{ .node = self.first };
        }
    };
}

const TestOwner = struct {
    released: *usize,

    fn release(self: TestOwner) void {
        self.released.* += 1;
    }
};

/// A kernel that takes what it is told to.
const TestKernel = struct {
    var out: std.ArrayList(u8) = .empty;
    var room: usize = 0;

    fn write(_: sys.fd_t, bytes: []const u8) sys.Outcome {
        return writev(0, &.{.{ .base = bytes.ptr, .len = bytes.len }});
    }

    fn writev(_: sys.fd_t, pieces: []const sys.Iovec) sys.Outcome {
        if (room == 0) return .would_block;
        var count: usize = 0;
        for (pieces) |piece| {
            const part = @min(piece.len, room);
            out.appendSlice(std.testing.allocator, piece.base[0..part]) catch unreachable;
            room -= part;
            count += part;
            if (part < piece.len) break;
        }
        return .{ .done = count };
    }
};

test "every byte leaves once, in order, whatever the kernel takes" {
    const gpa = std.testing.allocator;
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    const random = prng.random();
    const Queue = WriteQueue(TestOwner);
    var pool: Queue.Pool = .{};
    defer pool.deinit(gpa);
    var queue: Queue = .{};
    defer TestKernel.out.deinit(gpa);

    var source: [4096]u8 = undefined;
    random.bytes(&source);
    var expected: std.ArrayList(u8) = .empty;
    defer expected.deinit(gpa);
    var released: usize = 0;
    var pushed: usize = 0;
    for (0..5_000) |_| {
        if (random.boolean()) {
            for (0..random.uintLessThan(usize, 8)) |_| {
                const start = random.uintLessThan(usize, source.len - 1);
                const bytes = source[start..][0 .. 1 + random.uintLessThan(usize, @min(64, source.len - start))];
                try queue.push(&pool, gpa, bytes, .{ .released = &released });
                try expected.appendSlice(gpa, bytes);
                pushed += 1;
            }
        } else {
            TestKernel.room = random.uintLessThan(usize, 300);
            _ = queue.flush(&pool, gpa, 0, TestKernel.write, TestKernel.writev);
        }
        try std.testing.expectEqual(expected.items.len, TestKernel.out.items.len + queue.size);
    }
    TestKernel.room = std.math.maxInt(usize);
    _ = queue.flush(&pool, gpa, 0, TestKernel.write, TestKernel.writev);
    try std.testing.expectEqualSlices(u8, expected.items, TestKernel.out.items);
    try std.testing.expectEqual(pushed, released);
    try std.testing.expect(queue.isEmpty());
}

test "clearing releases every owner" {
    const gpa = std.testing.allocator;
    const Queue = WriteQueue(TestOwner);
    var pool: Queue.Pool = .{};
    defer pool.deinit(gpa);
    var queue: Queue = .{};
    var released: usize = 0;
    for (0..1000) |_| try queue.push(&pool, gpa, "x", .{ .released = &released });
    queue.clear(&pool, gpa);
    try std.testing.expectEqual(@as(usize, 1000), released);
    try std.testing.expectEqual(@as(usize, 0), queue.size);
}
