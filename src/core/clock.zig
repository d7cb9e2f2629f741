//! The loop's clock: monotonic nanoseconds, the same clock as Python's `time.monotonic()`.
//! Any thread may read it.

const std = @import("std");
const builtin = @import("builtin");

pub const ns_per_us: u64 = 1_000;
pub const ns_per_ms: u64 = 1_000_000;
pub const ns_per_s: u64 = 1_000_000_000;

/// The last instant that still converts exactly to the kernel's signed seconds: about 292 years.
/// Deadlines beyond it (`call_later(float("inf"))`) are clamped here.
pub const end_of_time_ns: u64 = std.math.maxInt(i64);

/// CPython reads `mach_absolute_time` on macOS, which stops during sleep as CLOCK_UPTIME_RAW does;
/// everywhere else it reads CLOCK_MONOTONIC.
const clock_id: std.c.clockid_t = if (builtin.os.tag.isDarwin()) .UPTIME_RAW else .MONOTONIC;

pub fn nowNs() u64 {
    var ts: std.c.timespec = undefined;
    // Fails only for a bad clock id or address, both fixed here.
    std.debug.assert(std.c.clock_gettime(clock_id, &ts) == 0);
    return @as(u64, @intCast(ts.sec)) * ns_per_s + @as(u64, @intCast(ts.nsec));
}

/// The conversion CPython does, so that equal instants give equal floats.
pub fn toSeconds(ns: u64) f64 {
    return @as(f64, @floatFromInt(ns)) / 1e9;
}

/// The first nanosecond at which `toSeconds(now) >= seconds`: a timer set for `seconds` that fires
/// then is never early as the program sees time. NaN is the caller's mistake.
pub fn fromSecondsCeil(seconds: f64) u64 {
    std.debug.assert(!std.math.isNan(seconds));
    if (seconds <= 0) return 0;
    const ns_float = @ceil(seconds * 1e9);
    if (ns_float >= @as(f64, @floatFromInt(end_of_time_ns))) return end_of_time_ns;
    var ns: u64 = @intFromFloat(ns_float);
    // The product can round down to the integer below the instant; each step is one nanosecond
    // and doubles resolve one nanosecond for the first 104 days of uptime, coarser after that.
    while (toSeconds(ns) < seconds) ns += 1;
    return ns;
}

test "the clock moves forward" {
    const a = nowNs();
    const b = nowNs();
    try std.testing.expect(b >= a);
    try std.testing.expect(a > 0);
}

test "a deadline is never before the float it came from" {
    var prng = std.Random.DefaultPrng.init(7);
    const random = prng.random();
    for (0..100_000) |_| {
        const seconds = random.float(f64) * std.math.pow(f64, 10, random.float(f64) * 8);
        const ns = fromSecondsCeil(seconds);
        try std.testing.expect(toSeconds(ns) >= seconds);
        try std.testing.expect(toSeconds(ns) - seconds < 1e-6);
    }
}

test "extreme deadlines are clamped" {
    try std.testing.expectEqual(@as(u64, 0), fromSecondsCeil(-5));
    try std.testing.expectEqual(end_of_time_ns, fromSecondsCeil(std.math.inf(f64)));
    try std.testing.expectEqual(end_of_time_ns, fromSecondsCeil(1e300));
}
