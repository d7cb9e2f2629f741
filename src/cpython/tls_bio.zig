//! Where OpenSSL gets ciphertext from and puts it: a BIO over two plain buffers of ours.
//!
//! The input is lent for the length of a call, mostly a part of the loop's read buffer, and nothing
//! is copied but into OpenSSL's own record buffer. The output grows in a buffer from a pool of the
//! loop, goes to the kernel in one piece and returns to the pool: an idle connection has none.
//!
//! A Channel belongs to its connection and to the loop's thread. The handshake runs with the GIL
//! released, so nothing here touches Python. A BIO can outlive its Channel, because programs can
//! keep the SSLObject; `detach` cuts it off.

const std = @import("std");
const openssl = @import("openssl.zig");

const gpa = std.heap.c_allocator;
const Bio = openssl.Bio;

pub const WriteFn = *const fn (*Bio, [*]const u8, usize, *usize) callconv(.c) c_int;
pub const ReadFn = *const fn (*Bio, [*]u8, usize, *usize) callconv(.c) c_int;
pub const CtrlFn = *const fn (*Bio, c_int, c_long, ?*anyopaque) callconv(.c) c_long;

pub const Channel = struct {
    /// Ciphertext that OpenSSL has not taken yet. Borrowed.
    in: []const u8 = &.{},
    /// Ciphertext that has not been sent yet. From `pool` if there is one.
    out: std.ArrayList(u8) = .empty,
    pool: ?*Pool = null,

    pub fn deinit(self: *Channel) void {
        self.out.deinit(gpa);
        self.* = .{};
    }

    fn append(self: *Channel, bytes: []const u8) std.mem.Allocator.Error!void {
        if (self.out.capacity == 0) if (self.pool) |pool| {
            self.out = pool.take();
        };
        try self.out.appendSlice(gpa, bytes);
    }
};

/// Output buffers between uses, a few for all connections of a loop.
pub const Pool = struct {
    free: [free_count_max]std.ArrayList(u8) = @splat(.empty),

    const free_count_max = 2;
    /// A burst's buffers are not kept.
    const capacity_kept_max = 512 * 1024;

    fn take(self: *Pool) std.ArrayList(u8) {
        for (&self.free) |*slot| if (slot.capacity > 0) {
            const buffer = slot.*;
            slot.* = .empty;
            return buffer;
        };
        return .empty;
    }

    /// Takes the buffer over.
    pub fn give(self: *Pool, buffer: std.ArrayList(u8)) void {
        var given = buffer;
        given.clearRetainingCapacity();
        if (given.capacity <= capacity_kept_max) {
            for (&self.free) |*slot| if (slot.capacity == 0) {
                slot.* = given;
                return;
            };
        }
        given.deinit(gpa);
    }

    pub fn deinit(self: *Pool) void {
        for (&self.free) |*slot| slot.clearAndFree(gpa);
    }
};

/// What the callbacks need. They are told nothing but the BIO, so this is the process's: there is
/// one OpenSSL behind `_ssl`, and a second one is refused.
const Functions = struct {
    get_data: *const fn (*Bio) callconv(.c) ?*anyopaque,
    set_flags: *const fn (*Bio, c_int) callconv(.c) void,
    clear_flags: *const fn (*Bio, c_int) callconv(.c) void,
};

var functions: Functions = undefined;
/// 0 empty, 1 being filled, 2 filled.
var installed: std.atomic.Value(u8) = .init(0);

/// False if the process already uses another OpenSSL's functions.
pub fn install(table: *const openssl.Table) bool {
    if (installed.cmpxchgStrong(0, 1, .acquire, .acquire) == null) {
        functions = .{ .get_data = table.BIO_get_data, .set_flags = table.BIO_set_flags, .clear_flags = table.BIO_clear_flags };
        installed.store(2, .release);
    }
    while (installed.load(.acquire) != 2) std.atomic.spinLoopHint();
    return functions.get_data == table.BIO_get_data and functions.set_flags == table.BIO_set_flags;
}

const flag_read = 0x01;
const flag_should_retry = 0x08;
const flags_retry_all = 0x0f;
const type_source_sink = 0x0400;
const ctrl_pending = 10;
const ctrl_flush = 11;

fn channelOf(bio: *Bio) ?*Channel {
    return @ptrCast(@alignCast(functions.get_data(bio)));
}

fn read(bio: *Bio, target: [*]u8, size: usize, count: *usize) callconv(.c) c_int {
    functions.clear_flags(bio, flags_retry_all);
    count.* = 0;
    const channel = channelOf(bio) orelse return -1;
    if (channel.in.len == 0) {
        functions.set_flags(bio, flag_read | flag_should_retry);
        return -1;
    }
    const taken = @min(size, channel.in.len);
    @memcpy(target[0..taken], channel.in[0..taken]);
    channel.in = channel.in[taken..];
    count.* = taken;
    return 1;
}

fn write(bio: *Bio, source: [*]const u8, size: usize, count: *usize) callconv(.c) c_int {
    functions.clear_flags(bio, flags_retry_all);
    count.* = 0;
    const channel = channelOf(bio) orelse return -1;
    channel.append(source[0..size]) catch return -1;
    count.* = size;
    return 1;
}

fn ctrl(bio: *Bio, command: c_int, _: c_long, _: ?*anyopaque) callconv(.c) c_long {
    return switch (command) {
        ctrl_flush => 1,
        ctrl_pending => if (channelOf(bio)) |channel| @intCast(channel.in.len) else 0,
        else => 0,
    };
}

/// Kept for as long as the process lives: a BIO can outlive everything else of ours.
pub fn newMethod(table: *const openssl.Table) ?*openssl.BioMethod {
    const method = table.BIO_meth_new(type_source_sink, "zloop") orelse return null;
    _ = table.BIO_meth_set_write_ex(method, write);
    _ = table.BIO_meth_set_read_ex(method, read);
    _ = table.BIO_meth_set_ctrl(method, ctrl);
    return method;
}

/// Makes `channel` both ends of `ssl`. The caller gets a reference to the BIO, for `detach`.
pub fn attach(table: *const openssl.Table, method: *openssl.BioMethod, ssl: *openssl.Ssl, channel: *Channel) ?*Bio {
    const bio = table.BIO_new(method) orelse return null;
    table.BIO_set_data(bio, channel);
    table.BIO_set_init(bio, 1);
    _ = table.BIO_up_ref(bio);
    // Takes one reference for both directions and frees the BIOs that were there.
    table.SSL_set_bio(ssl, bio, bio);
    return bio;
}

pub fn detach(table: *const openssl.Table, bio: *Bio) void {
    table.BIO_set_data(bio, null);
    _ = table.BIO_free(bio);
}
