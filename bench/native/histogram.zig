//! Latency histogram: 64 linear steps inside each power of two, so a percentile is right to 1.6 %.

const std = @import("std");

pub const Histogram = struct {
    counts: [bucket_count]u64 = @splat(0),
    total: u64 = 0,
    max_ns: u64 = 0,

    const step_bits = 6;
    const steps = 1 << step_bits;
    const bucket_count = (64 - step_bits + 1) * steps;

    pub fn record(histogram: *Histogram, latency_ns: u64) void {
        histogram.counts[bucketOf(latency_ns)] += 1;
        histogram.total += 1;
        histogram.max_ns = @max(histogram.max_ns, latency_ns);
    }

    pub fn reset(histogram: *Histogram) void {
        histogram.* = .{};
    }

    /// Upper edge of the bucket that holds the given share of all records, in microseconds.
    pub fn percentileUs(histogram: *const Histogram, percent: f64) f64 {
        if (histogram.total == 0) return 0;
        const wanted = percent / 100 * @as(f64, @floatFromInt(histogram.total));
        var seen: u64 = 0;
        for (histogram.counts, 0..) |count, bucket| {
            seen += count;
            if (count > 0 and @as(f64, @floatFromInt(seen)) >= wanted) {
                return @as(f64, @floatFromInt(@min(upperEdgeOf(bucket), histogram.max_ns))) / 1000;
            }
        }
        unreachable;
    }

    fn bucketOf(value: u64) usize {
        if (value < steps) return @intCast(value);
        const shift: u6 = @intCast(63 - @clz(value) - step_bits);
        return (@as(usize, shift) + 1) * steps + @as(usize, @intCast((value >> shift) - steps));
    }

    fn upperEdgeOf(bucket: usize) u64 {
        if (bucket < steps) return bucket;
        const shift: u6 = @intCast(bucket / steps - 1);
        return (@as(u64, bucket % steps + steps) << shift) + ((@as(u64, 1) << shift) - 1);
    }
};

test "a bucket holds its value and is at most 1.6 % wide" {
    const values = [_]u64{ 0, 1, 63, 64, 65, 127, 128, 1000, 4096, 999_999, 1 << 40, std.math.maxInt(u64) };
    for (values) |value| {
        const bucket = Histogram.bucketOf(value);
        const upper = Histogram.upperEdgeOf(bucket);
        try std.testing.expect(upper >= value);
        try std.testing.expect(upper - value <= value / 64);
        try std.testing.expect(bucket == 0 or Histogram.upperEdgeOf(bucket - 1) < value);
    }
}

test "percentiles of 1 to 100 microseconds" {
    var histogram: Histogram = .{};
    for (1..101) |us| histogram.record(us * 1000);
    try std.testing.expectApproxEqRel(50.0, histogram.percentileUs(50), 0.016);
    try std.testing.expectApproxEqRel(99.0, histogram.percentileUs(99), 0.016);
    try std.testing.expectEqual(100.0, histogram.percentileUs(100));
}
