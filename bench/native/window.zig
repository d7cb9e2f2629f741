//! The measured part of a run: a warm-up, then a time or a number of requests, with the server's CPU time read at
//! both edges so that start-up and tear-down are in neither.

const std = @import("std");
const sys = @import("sys.zig");
const Histogram = @import("histogram.zig").Histogram;

pub const Window = struct {
    /// Process whose CPU time is charged to the requests; 0 when nobody's is.
    watch_pid: i32,
    warmup_ns: u64,
    duration_ns: u64,
    /// With a count the run ends after that many requests instead of after a time.
    count_max: u64,
    phase: enum { ramping, warming, measuring, done } = .ramping,
    edge_ns: u64 = 0,
    cpu_before_ns: u64 = 0,
    ticks_before: sys.CpuTicks = .{},
    elapsed_ns: u64 = 0,
    cpu_ns: u64 = 0,
    /// Share of `cpu_ns` spent outside the kernel, from 10 ms ticks: good to a few per cent over a second.
    user_share: f64 = 0,
    requests: u64 = 0,
    histogram: Histogram = .{},

    /// All connections are up: the warm-up starts.
    pub fn rampedUp(window: *Window, now_ns: u64) void {
        std.debug.assert(window.phase == .ramping);
        window.phase = .warming;
        window.edge_ns = now_ns;
        window.advance(now_ns);
    }

    pub fn record(window: *Window, now_ns: u64, latency_ns: u64) void {
        if (window.phase != .measuring) return;
        window.requests += 1;
        window.histogram.record(latency_ns);
        if (window.requests == window.count_max) window.finish(now_ns);
    }

    /// Moves to the next phase when its time has come; called once a turn.
    pub fn advance(window: *Window, now_ns: u64) void {
        switch (window.phase) {
            .warming => if (now_ns - window.edge_ns >= window.warmup_ns) {
                window.phase = .measuring;
                window.ticks_before = window.serverTicks();
                window.cpu_before_ns = window.serverCpuNs();
                window.edge_ns = sys.nowNs();
            },
            .measuring => if (window.count_max == 0 and now_ns - window.edge_ns >= window.duration_ns) {
                window.finish(now_ns);
            },
            .ramping, .done => {},
        }
    }

    fn finish(window: *Window, now_ns: u64) void {
        window.phase = .done;
        window.elapsed_ns = now_ns - window.edge_ns;
        window.cpu_ns = window.serverCpuNs() - window.cpu_before_ns;
        const ticks = window.serverTicks();
        const user: f64 = @floatFromInt(ticks.user - window.ticks_before.user);
        const system: f64 = @floatFromInt(ticks.system - window.ticks_before.system);
        window.user_share = if (user + system > 0) user / (user + system) else 0;
    }

    fn serverCpuNs(window: *const Window) u64 {
        return if (window.watch_pid == 0) 0 else sys.processCpuNs(window.watch_pid);
    }

    fn serverTicks(window: *const Window) sys.CpuTicks {
        return if (window.watch_pid == 0) .{} else sys.processTicks(window.watch_pid);
    }

    /// `extra` goes into the JSON object as it is: empty, or fields with a leading comma.
    pub fn print(window: *const Window, extra: []const u8) void {
        const seconds = @as(f64, @floatFromInt(window.elapsed_ns)) / std.time.ns_per_s;
        const requests: f64 = @floatFromInt(window.requests);
        const cpu_us = @as(f64, @floatFromInt(window.cpu_ns)) / std.time.ns_per_us;
        sys.printLine(
            "{{\"requests\": {d}, \"seconds\": {d:.6}, \"rate\": {d:.1}, \"cpu_us\": {d:.4}, \"user_share\": {d:.3}, " ++
                "\"p50_us\": {d:.2}, \"p99_us\": {d:.2}, \"p999_us\": {d:.2}, \"max_us\": {d:.2}{s}}}",
            .{
                window.requests,
                seconds,
                if (seconds > 0) requests / seconds else 0,
                if (requests > 0) cpu_us / requests else 0,
                window.user_share,
                window.histogram.percentileUs(50),
                window.histogram.percentileUs(99),
                window.histogram.percentileUs(99.9),
                @as(f64, @floatFromInt(window.histogram.max_ns)) / std.time.ns_per_us,
                extra,
            },
        );
    }
};
