//! Load over TCP, Unix sockets and TLS. One thread, level-triggered epoll.
//!
//! Closed loop: every connection sends a request, waits for the whole response, and goes on. Open loop: requests are
//! due at a fixed rate, whatever the server does, and a latency counts from the time at which its request was due. A
//! server that stalls then shows the wait of every request that it kept waiting, and not of one.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");
const tls = @import("tls.zig");
const response = @import("response.zig");
const Stream = @import("stream.zig").Stream;
const Poller = @import("epoll.zig").Poller;
const Window = @import("window.zig").Window;

pub const Plan = struct {
    address: sys.Address,
    endpoint: ?tls.Endpoint,
    request: []const u8,
    response: response.Kind,
    /// The first response of each connection must equal the request.
    is_echo: bool,
    connections: usize,
    /// A fresh connection for each request (connection rate).
    reconnect: bool = false,
    /// Requests a second of all connections together in an open loop; 0 for a closed loop.
    rate_per_s: u64 = 0,
    /// The first connections send this in a closed loop, and their latencies are not recorded.
    other_request: []const u8 = "",
    others: usize = 0,
    /// Pause between a response and the next request on the same connection; 0 for none.
    interval_ns: u64 = 0,
    /// Bytes per write of one extra connection that writes as fast as the server takes; 0 for none.
    flood_bytes: usize = 0,
};

const read_buffer_bytes = 256 * 1024;
const source_addresses = 200;
/// <linux/in.h>: choose the source port at connect(), so that ports are unique per destination only.
const ip_bind_address_no_port = 24;
const out_and_in = linux.EPOLL.IN | linux.EPOLL.OUT;

const Connection = struct {
    stream: Stream,
    state: enum { connecting, handshaking, exchanging, pausing },
    interest: u32,
    sent: usize = 0,
    meter: response.Meter,
    started_ns: u64 = 0,
    due_ns: u64 = 0,
    /// Open loop: requests that are due, the one on its way apart, and the number of the next in the schedule.
    waiting: u64 = 0,
    next: u64 = 0,
    /// Bytes of the first response compared so far; null when it has been checked or needs no check.
    verified: ?usize,
    has_answered: bool = false,
};

pub const Load = struct {
    plan: Plan,
    window: *Window,
    gpa: std.mem.Allocator,
    poller: Poller,
    connections: []Connection,
    opened: usize = 0,
    answered: usize = 0,
    sources_used: usize = 0,
    flood: ?Flood = null,
    /// Indices of pausing connections. Every pause is equally long, so order of entry is order of due time.
    pausing: std.Deque(usize) = .empty,
    schedule: ?Schedule = null,
    read_buffer: [read_buffer_bytes]u8 = undefined,

    pub fn create(gpa: std.mem.Allocator, plan: Plan, window: *Window) *Load {
        const load = gpa.create(Load) catch sys.fatal("out of memory", .{});
        const connections = gpa.alloc(Connection, plan.connections) catch sys.fatal("out of memory", .{});
        load.* = .{ .plan = plan, .window = window, .gpa = gpa, .poller = .init(), .connections = connections };
        return load;
    }

    pub fn run(load: *Load) void {
        load.openUpTo(load.plan.connections);
        if (load.plan.flood_bytes > 0) load.startFlood();
        load.window.rampedUp(sys.nowNs());
        if (load.plan.rate_per_s > 0) load.startSchedule();
        while (load.window.phase != .done) {
            load.turn();
            const was_warming = load.window.phase == .warming;
            load.window.advance(sys.nowNs());
            if (was_warming and load.window.phase == .measuring) load.forgetFlood();
        }
    }

    /// Opens connections until there are `total`, one exchange on each, and returns when all have answered.
    pub fn openUpTo(load: *Load, total: usize) void {
        while (load.opened < total) : (load.opened += 1) load.open(load.opened);
        while (load.answered < total) load.turn();
    }

    fn turn(load: *Load) void {
        for (load.poller.wait(load.timeoutNs())) |event| {
            if (event.data.ptr == flood_index) {
                load.flood.?.serve(event.events);
            } else {
                load.serve(event.data.ptr);
            }
            if (load.window.phase == .done) return;
        }
        if (load.plan.interval_ns > 0) load.resumeDue();
        if (load.schedule != null) load.sendDue();
    }

    /// What a connection sends.
    fn requestOf(load: *const Load, index: usize) []const u8 {
        return if (index < load.plan.others) load.plan.other_request else load.plan.request;
    }

    fn isMeasured(load: *const Load, index: usize) bool {
        return index >= load.plan.others;
    }

    fn open(load: *Load, index: usize) void {
        const address = &load.plan.address;
        const fd = sys.newSocket(address.family(), linux.SOCK.STREAM);
        if (address.* == .tcp) {
            sys.setNoDelay(fd);
            load.spreadSource(fd);
        }
        const session = if (load.plan.endpoint) |*endpoint| tls.Session.create(load.gpa, endpoint, fd) else null;
        const connection = &load.connections[index];
        const seen = load.plan.reconnect and load.opened > index and connection.has_answered;
        connection.* = .{
            .stream = .{ .fd = fd, .session = session },
            .state = .connecting,
            .interest = out_and_in,
            .meter = .{ .kind = load.plan.response },
            .started_ns = sys.nowNs(),
            .verified = if (load.plan.is_echo and !seen) 0 else null,
            .has_answered = seen,
        };
        while (true) {
            const rc = linux.connect(fd, address.pointer(), address.length());
            switch (linux.errno(rc)) {
                .SUCCESS, .INPROGRESS => break,
                // A Unix socket's backlog is full: the server gets the core until it has accepted some.
                .AGAIN => _ = linux.sched_yield(),
                else => |code| sys.fatal("connect: {t}", .{code}),
            }
        }
        load.poller.add(fd, connection.interest, index);
    }

    /// A closed connection keeps its port in TIME_WAIT. Many loopback source addresses give as many port ranges.
    fn spreadSource(load: *Load, fd: sys.fd_t) void {
        if (!load.plan.reconnect) return;
        const source: sys.Address = .loopback(0, @intCast(2 + load.sources_used % source_addresses));
        load.sources_used += 1;
        sys.setOption(fd, linux.IPPROTO.IP, ip_bind_address_no_port, 1);
        _ = sys.must(linux.bind(fd, source.pointer(), source.length()), "bind to a loopback source");
    }

    fn serve(load: *Load, index: usize) void {
        const connection = &load.connections[index];
        load.progress(index, connection) catch sys.fatal("the server closed connection {d}", .{index});
    }

    fn progress(load: *Load, index: usize, connection: *Connection) error{Closed}!void {
        if (connection.state == .connecting) {
            connection.state = if (connection.stream.session == null) .exchanging else .handshaking;
            if (connection.state == .exchanging) load.startRequest(connection);
        }
        if (connection.state == .handshaking) {
            if (!try connection.stream.session.?.handshake()) return load.setInterest(index, connection);
            connection.state = .exchanging;
            load.startRequest(connection);
        }
        if (connection.state == .exchanging) {
            try load.send(index, connection);
            if (try load.receive(connection)) return load.complete(index, connection);
        }
        load.setInterest(index, connection);
    }

    /// A connection's first request counts from its connect when each request has its own connection.
    fn startRequest(load: *Load, connection: *Connection) void {
        if (!load.plan.reconnect) connection.started_ns = sys.nowNs();
        connection.sent = 0;
        connection.meter.start();
    }

    fn send(load: *Load, index: usize, connection: *Connection) error{Closed}!void {
        if (connection.stream.flush() == .closed) return error.Closed;
        const request = load.requestOf(index);
        while (connection.sent < request.len) {
            switch (connection.stream.write(request[connection.sent..])) {
                .bytes => |count| connection.sent += count,
                .blocked => return,
                .closed => return error.Closed,
            }
        }
    }

    /// True when the response is complete. At most one read a turn, unless bytes wait in user space.
    fn receive(load: *Load, connection: *Connection) error{Closed}!bool {
        while (true) {
            switch (connection.stream.read(&load.read_buffer)) {
                .bytes => |count| {
                    const bytes = load.read_buffer[0..count];
                    load.verify(connection, bytes);
                    if (connection.meter.feed(bytes)) return true;
                },
                .blocked => return false,
                .closed => return error.Closed,
            }
            if (!connection.stream.hasBuffered()) return false;
        }
    }

    fn verify(load: *Load, connection: *Connection, bytes: []const u8) void {
        const start = connection.verified orelse return;
        const end = start + bytes.len;
        if (end > load.plan.request.len or !std.mem.eql(u8, bytes, load.plan.request[start..end]))
            sys.fatal("the echo differs from the request", .{});
        connection.verified = if (end == load.plan.request.len) null else end;
    }

    fn complete(load: *Load, index: usize, connection: *Connection) void {
        const now_ns = sys.nowNs();
        if (load.isMeasured(index)) load.window.record(now_ns, now_ns - connection.started_ns);
        if (!connection.has_answered) {
            connection.has_answered = true;
            load.answered += 1;
        }
        if (load.window.phase == .done) return;
        if (load.plan.reconnect) {
            connection.stream.close();
            return load.open(index);
        }
        if (load.plan.interval_ns > 0) {
            connection.state = .pausing;
            connection.due_ns = now_ns + load.plan.interval_ns;
            load.pausing.pushBack(load.gpa, index) catch sys.fatal("out of memory", .{});
            return load.setInterest(index, connection);
        }
        if (load.isScheduled(index)) {
            connection.state = .pausing;
            if (connection.waiting > 0) return load.sendScheduled(index);
            return load.setInterest(index, connection);
        }
        load.begin(index);
    }

    fn begin(load: *Load, index: usize) void {
        const connection = &load.connections[index];
        connection.state = .exchanging;
        load.startRequest(connection);
        load.send(index, connection) catch sys.fatal("the server closed connection {d}", .{index});
        load.setInterest(index, connection);
    }

    fn isScheduled(load: *const Load, index: usize) bool {
        return load.schedule != null and load.isMeasured(index);
    }

    /// Requests are due one after the other, in turn on each measured connection. Connections whose last request of
    /// the opening is still on its way take their first one from the schedule when it is over.
    fn startSchedule(load: *Load) void {
        const measured = load.connections[load.plan.others..];
        load.schedule = .{ .start_ns = sys.nowNs(), .rate_per_s = load.plan.rate_per_s };
        for (measured, 0..) |*connection, number| connection.next = number;
    }

    fn sendDue(load: *Load) void {
        const schedule = &load.schedule.?;
        const measured_count = load.connections.len - load.plan.others;
        const now_ns = sys.nowNs();
        while (schedule.dueNs(schedule.next) <= now_ns) : (schedule.next += 1) {
            const index = load.plan.others + schedule.next % measured_count;
            load.connections[index].waiting += 1;
            if (load.connections[index].state == .pausing) load.sendScheduled(index);
        }
    }

    fn sendScheduled(load: *Load, index: usize) void {
        const connection = &load.connections[index];
        const due_ns = load.schedule.?.dueNs(connection.next);
        connection.waiting -= 1;
        connection.next += load.connections.len - load.plan.others;
        load.begin(index);
        connection.started_ns = due_ns;
    }

    fn setInterest(load: *Load, index: usize, connection: *Connection) void {
        const is_sending = connection.state == .exchanging and connection.sent < load.requestOf(index).len;
        const wants_out = is_sending or connection.stream.hasUnsent();
        const interest: u32 = if (wants_out) out_and_in else linux.EPOLL.IN;
        if (interest == connection.interest) return;
        connection.interest = interest;
        load.poller.modify(connection.stream.fd, interest, index);
    }

    fn timeoutNs(load: *Load) ?u64 {
        if (load.schedule) |*schedule| return schedule.dueNs(schedule.next) -| sys.nowNs();
        const first = load.pausing.front() orelse return null;
        return load.connections[first].due_ns -| sys.nowNs();
    }

    fn resumeDue(load: *Load) void {
        const now_ns = sys.nowNs();
        while (load.pausing.front()) |index| {
            const connection = &load.connections[index];
            if (connection.due_ns > now_ns) return;
            _ = load.pausing.popFront();
            load.begin(index);
        }
    }

    fn startFlood(load: *Load) void {
        const fd = sys.newSocket(load.plan.address.family(), linux.SOCK.STREAM);
        const rc = linux.connect(fd, load.plan.address.pointer(), load.plan.address.length());
        if (linux.errno(rc) != .INPROGRESS) _ = sys.must(rc, "connect");
        const chunk = load.gpa.alloc(u8, load.plan.flood_bytes) catch sys.fatal("out of memory", .{});
        @memset(chunk, 'f');
        load.flood = .{ .fd = fd, .chunk = chunk };
        load.poller.add(fd, out_and_in, flood_index);
    }

    fn forgetFlood(load: *Load) void {
        if (load.flood) |*flood| flood.received_bytes = 0;
    }
};

/// When the requests of an open loop are due.
const Schedule = struct {
    start_ns: u64,
    rate_per_s: u64,
    /// The number of the first that is not due yet.
    next: u64 = 0,

    fn dueNs(schedule: *const Schedule, number: u64) u64 {
        const offset_ns = @as(u128, number) * std.time.ns_per_s / schedule.rate_per_s;
        return schedule.start_ns + @as(u64, @intCast(offset_ns));
    }
};

test "a schedule keeps its rate over any time" {
    const schedule: Schedule = .{ .start_ns = 5, .rate_per_s = 30_000 };
    try std.testing.expectEqual(5, schedule.dueNs(0));
    try std.testing.expectEqual(5 + std.time.ns_per_s, schedule.dueNs(30_000));
    try std.testing.expectEqual(5 + 3600 * std.time.ns_per_s, schedule.dueNs(30_000 * 3600));
}

const flood_index = std.math.maxInt(usize);

/// Writes without waiting for answers and throws the answers away; one write and one read a turn, so that the
/// pinging connections of the same process are not delayed by their own load generator.
pub const Flood = struct {
    fd: sys.fd_t,
    chunk: []u8,
    received_bytes: u64 = 0,

    fn serve(flood: *Flood, events: u32) void {
        if (events & linux.EPOLL.OUT != 0) _ = expectOpen(sys.write(flood.fd, flood.chunk));
        if (events & linux.EPOLL.IN != 0) flood.received_bytes += expectOpen(sys.read(flood.fd, flood.chunk));
    }
};

fn expectOpen(transfer: sys.Transfer) usize {
    return switch (transfer) {
        .bytes => |count| count,
        .blocked => 0,
        .closed => sys.fatal("the server closed the flooding connection", .{}),
    };
}
