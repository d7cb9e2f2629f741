//! The load generator: one thread, compiled, so that the loop under test is what a benchmark measures.
//!
//!     loadgen MODE --port P | --unix PATH [options]
//!
//! Modes: echo, connect (connect, echo, close), http (GET), udp, fairness (pings beside a flood), idle (opens
//! connections and holds them while the parent measures). The result is one line of JSON.

const std = @import("std");
const sys = @import("sys.zig");
const tls = @import("tls.zig");
const load_stream = @import("load_stream.zig");
const load_udp = @import("load_udp.zig");
const Window = @import("window.zig").Window;

const Options = struct {
    port: u16 = 0,
    unix: ?[:0]const u8 = null,
    tls: bool = false,
    connections: usize = 10,
    /// Bytes of a request.
    size: usize = 1024,
    /// Bytes of a response; 0 means an echo.
    response_size: usize = 0,
    path: [:0]const u8 = "/",
    /// A new connection for each request.
    reconnect: bool = false,
    duration_ms: u64 = 1000,
    warmup_ms: u64 = 100,
    count: u64 = 0,
    watch_pid: i32 = 0,
    in_flight: usize = 16,
    interval_us: u64 = 5000,
    flood_size: usize = 65536,
    /// Requests a second of an open loop, all connections together; 0 for a closed loop.
    rate: u64 = 0,
    /// In http mode: so many connections ask for `other_path` in a closed loop and are not measured.
    others: usize = 0,
    other_path: [:0]const u8 = "/",
    /// Connections that idle mode opens before its first report.
    baseline: usize = 0,
};

const Mode = enum { echo, connect, http, udp, fairness, idle };

const gpa = std.heap.c_allocator;

pub fn main(init: std.process.Init.Minimal) void {
    sys.dieWithParent();
    var arguments = std.process.Args.Iterator.init(init.args);
    _ = arguments.skip();
    const mode_name = arguments.next() orelse sys.fatal("usage: loadgen MODE --port P | --unix PATH [options]", .{});
    const mode = std.meta.stringToEnum(Mode, mode_name) orelse sys.fatal("unknown mode {s}", .{mode_name});
    const options = @import("options.zig").parse(Options, &arguments);
    const window = gpa.create(Window) catch sys.fatal("out of memory", .{});
    window.* = .{
        .watch_pid = options.watch_pid,
        .warmup_ns = options.warmup_ms * std.time.ns_per_ms,
        .duration_ns = options.duration_ms * std.time.ns_per_ms,
        .count_max = options.count,
    };
    switch (mode) {
        .udp => runUdp(options, window),
        .idle => runIdle(.create(gpa, planFor(mode, options), window), options),
        .fairness => runFairness(.create(gpa, planFor(mode, options), window)),
        .echo, .connect, .http => {
            load_stream.Load.create(gpa, planFor(mode, options), window).run();
            window.print("");
        },
    }
}

fn planFor(mode: Mode, options: Options) load_stream.Plan {
    const response_size = if (options.response_size == 0) options.size else options.response_size;
    return .{
        .address = if (options.unix) |path| .unixPath(path) else .loopback(options.port, 1),
        .endpoint = if (options.tls) .init(.client) else null,
        .request = if (mode == .http) httpRequest(options.path) else pattern(options.size),
        .response = if (mode == .http) .http else .{ .fixed = response_size },
        .is_echo = mode != .http and options.response_size == 0,
        .connections = options.connections + options.others,
        .rate_per_s = options.rate,
        .others = options.others,
        .other_request = if (options.others > 0) httpRequest(options.other_path) else "",
        .reconnect = mode == .connect or options.reconnect,
        .interval_ns = switch (mode) {
            .fairness => options.interval_us * std.time.ns_per_us,
            .idle => std.time.ns_per_hour,
            else => 0,
        },
        .flood_bytes = if (mode == .fairness) options.flood_size else 0,
    };
}

fn httpRequest(path: []const u8) []const u8 {
    const format = "GET {s} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";
    const buffer = gpa.alloc(u8, format.len + path.len) catch sys.fatal("out of memory", .{});
    return std.fmt.bufPrint(buffer, format, .{path}) catch unreachable;
}

/// A period that is no power of two, so that a shifted or repeated block never looks right.
fn pattern(size: usize) []const u8 {
    const bytes = gpa.alloc(u8, size) catch sys.fatal("out of memory", .{});
    for (bytes, 0..) |*byte, index| byte.* = @intCast(index % 251);
    return bytes;
}

fn runUdp(options: Options, window: *Window) void {
    const lost = load_udp.run(gpa, options.port, options.size, options.in_flight, window);
    var buffer: [64]u8 = undefined;
    window.print(std.fmt.bufPrint(&buffer, ", \"lost\": {d}", .{lost}) catch unreachable);
}

fn runFairness(load: *load_stream.Load) void {
    load.run();
    const seconds = @as(f64, @floatFromInt(load.window.elapsed_ns)) / std.time.ns_per_s;
    const received_bytes = if (load.flood) |flood| flood.received_bytes else 0;
    const megabytes = @as(f64, @floatFromInt(received_bytes)) / 1e6;
    var buffer: [64]u8 = undefined;
    load.window.print(std.fmt.bufPrint(&buffer, ", \"flood_mb_per_s\": {d:.1}", .{megabytes / seconds}) catch unreachable);
}

/// Reports after the baseline and after the rest, and waits for the parent each time.
fn runIdle(load: *load_stream.Load, options: Options) void {
    for ([2]usize{ options.baseline, options.connections }) |total| {
        load.openUpTo(total);
        sys.printLine("{{\"open\": {d}}}", .{total});
        if (!sys.waitForParent()) return;
    }
}
