//! One read from a descriptor, as a bytes object.
//!
//! Reads land in the loop's shared buffer, which takes as much at once as asyncio does, and leave as
//! bytes objects of their exact size, so an idle connection holds no memory. When much has come, the
//! next read goes straight into a bytes object of a size to match: large data is copied once only.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const LoopFields = @import("loop_type.zig").Fields;

/// What a connection is expected to bring at once. Most messages fit, and copying this much costs
/// less than the allocation that would avoid it.
pub const size_min = 16 * 1024;
/// The largest read: asyncio's `max_size`.
pub const size_max = 256 * 1024;

/// What the C library is taught to keep. On 32 bits it learns from no block of more than 512 KiB, its own words
/// included.
const lesson_size = 2 * size_max - 4096;
/// From this size on a read goes straight into a bytes object.
const direct_from = 64 * 1024;

pub const Result = union(enum) {
    /// A new reference; never empty.
    bytes: *py.Object,
    /// Nothing to deliver: would block, failed, or 0 bytes, the end of the stream.
    none: core.sys.Outcome,
};

/// `size` is the connection's own, `size_min` at first.
pub fn read(
    loop: *LoopFields,
    size: *u32,
    fd: core.sys.fd_t,
    comptime readFn: fn (core.sys.fd_t, []u8) core.sys.Outcome,
) py.Error!Result {
    if (size.* >= direct_from) return readDirect(size, fd, readFn);
    const buffer = try loop.readBuffer();
    const outcome = readFn(fd, buffer);
    if (outcome != .done or outcome.done == 0) return .{ .none = outcome };
    if (outcome.done >= size.*) grow(size, outcome.done);
    return .{ .bytes = try py.newBytes(buffer[0..outcome.done]) };
}

/// For a peer that has filled what was expected, with `count` bytes at once.
fn grow(size: *u32, count: usize) void {
    const before = size.*;
    size.* = @min(@max(2 * before, std.math.ceilPowerOfTwoAssert(u32, @intCast(count))), size_max);
    if (before < direct_from and size.* >= direct_from) core.sys.expectBlocksOf(lesson_size);
}

fn readDirect(
    size: *u32,
    fd: core.sys.fd_t,
    comptime readFn: fn (core.sys.fd_t, []u8) core.sys.Outcome,
) py.Error!Result {
    var data: ?*py.Object = try py.check(c.PyBytes_FromStringAndSize(null, @intCast(size.*)));
    const outcome = readFn(fd, py.bytesOf(data.?));
    if (outcome != .done or outcome.done == 0) {
        py.decref(data.?);
        return .{ .none = outcome };
    }
    if (outcome.done == size.*) {
        grow(size, outcome.done);
        return .{ .bytes = data.? };
    }
    if (outcome.done < size.* / 4) size.* = @max(size.* / 2, size_min);
    if (c._PyBytes_Resize(&data, @intCast(outcome.done)) < 0) return error.Python;
    return .{ .bytes = data.? };
}
