//! The reactor: readiness of descriptors and a wake-up from other threads.
//!
//! This file is the contract and the choice, made at compile time. A backend answers every
//! declaration below or the build fails; it knows nothing of watches, timers or the host.

const std = @import("std");
const builtin = @import("builtin");
const sys = @import("sys.zig");

pub const fd_t = std.c.fd_t;

pub const Reactor = switch (builtin.os.tag) {
    .linux => if (sys.backend == .native)
        @import("reactor/epoll.zig").Epoll
    else
        @import("reactor/kqueue.zig").Kqueue(@import("reactor/kqueue_emulated.zig").Chosen),
    .macos, .ios, .freebsd, .netbsd, .openbsd, .dragonfly => @import("reactor/kqueue.zig").Kqueue(@import("reactor/kqueue.zig").Kernel),
    else => @compileError("zloop has no reactor for " ++ @tagName(builtin.os.tag)),
};

/// What a descriptor is watched for.
pub const Interest = packed struct(u8) {
    read: bool = false,
    write: bool = false,
    _: u6 = 0,

    pub const none: Interest = .{};

    pub fn isNone(self: Interest) bool {
        return self == none;
    }
};

/// What the kernel says of a descriptor. A hang-up or an error makes it both readable and
/// writable, as in asyncio: the read or write that follows meets the reason.
pub const Readiness = packed struct(u8) {
    read: bool = false,
    write: bool = false,
    _: u6 = 0,

    pub const none: Readiness = .{};

    pub fn merge(a: Readiness, b: Readiness) Readiness {
        return @bitCast(@as(u8, @bitCast(a)) | @as(u8, @bitCast(b)));
    }
};

/// Comes back with each event. The generation tells a late event for a descriptor number that has
/// been closed and reused from one for the present descriptor.
pub const Token = packed struct(u64) {
    fd: i32,
    generation: u32,
};

pub const Event = struct {
    token: Token,
    readiness: Readiness,
};

/// Errors of `set`: what registering a descriptor can run into. `NotPollable` is a regular file or
/// a directory; `BadDescriptor` a closed one. `sys.unexpected` tells of an `Unexpected` one, also below.
pub const SetError = error{ BadDescriptor, NotPollable, SystemResources, Unexpected };
pub const OpenError = error{ ProcessFdQuotaExceeded, SystemFdQuotaExceeded, SystemResources, Unexpected };
pub const WaitError = error{ Interrupted, Unexpected };

/// Compiles only if `Backend` is complete.
pub fn check(comptime Backend: type) void {
    // `open` makes the kernel object and its wake-up; `close` ends both.
    _ = @as(fn () OpenError!Backend, Backend.open);
    _ = @as(fn (*Backend) void, Backend.close);
    // Changes what `token.fd` is watched for. The caller says what it was: no table is kept here.
    _ = @as(fn (*Backend, Token, Interest, Interest) SetError!void, Backend.set);
    // Waits until something is ready, `timeout_ns` has passed (never less; null: for ever) or
    // `wake` was called, which is reported by no event. Host lock not held.
    _ = @as(fn (*Backend, []Event, ?u64) WaitError![]Event, Backend.wait);
    // Ends a wait, from any thread or signal handler.
    _ = @as(fn (*Backend) void, Backend.wake);
    // Forgets every descriptor, those that can no longer be named too; wake-ups go on working.
    _ = @as(fn (*Backend) OpenError!void, Backend.renew);
    // The kernel object, for a program that nests loops in one another.
    _ = @as(fn (*const Backend) fd_t, Backend.fileno);
}

comptime {
    check(Reactor);
}
