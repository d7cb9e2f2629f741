//! Thin Linux system calls for the benchmark programs.
//!
//! A load generator that hits an unexpected error has no result to save, so anything that is not part of normal
//! non-blocking life (would block, peer closed) ends the process with a message and status 1.

const std = @import("std");
const linux = std.os.linux;

pub const fd_t = linux.fd_t;

/// What one non-blocking read or write did.
pub const Transfer = union(enum) { bytes: usize, blocked, closed };

pub fn fatal(comptime format: []const u8, arguments: anytype) noreturn {
    std.debug.print(format ++ "\n", arguments);
    linux.exit_group(1);
}

/// The value of a system call that is not allowed to fail.
pub fn must(rc: usize, what: []const u8) usize {
    const code = linux.errno(rc);
    if (code != .SUCCESS) fatal("{s}: {t}", .{ what, code });
    return rc;
}

/// Ends this process when its parent ends, so that no server or load generator outlives a benchmark.
pub fn dieWithParent() void {
    _ = must(linux.prctl(@backingInt(linux.PR.SET_PDEATHSIG), linux_sigkill, 0, 0, 0), "prctl");
}

const linux_sigkill = 9;

pub fn nowNs() u64 {
    var time: linux.timespec = undefined;
    _ = must(linux.clock_gettime(.MONOTONIC, &time), "clock_gettime");
    return timeNs(time);
}

/// CPU time of all threads of another process. The kernel encodes a process clock as (~pid << 3) | 2; unlike
/// /proc/PID/stat (10 ms ticks) it is exact to the nanosecond and counts threads that have ended.
pub fn processCpuNs(pid: i32) u64 {
    const clock: i32 = (~pid << 3) | 2;
    var time: linux.timespec = undefined;
    const rc = linux.syscall2(.clock_gettime, @as(u32, @bitCast(clock)), @intFromPtr(&time));
    _ = must(rc, "clock_gettime of the server");
    return timeNs(time);
}

pub const CpuTicks = struct { user: u64 = 0, system: u64 = 0 };

/// CPU time of a process in clock ticks, apart for user space and kernel: fields 14 and 15 of /proc/PID/stat.
pub fn processTicks(pid: i32) CpuTicks {
    var path_buffer: [32]u8 = undefined;
    const path = std.fmt.bufPrintSentinel(&path_buffer, "/proc/{d}/stat", .{pid}, 0) catch unreachable;
    const fd: fd_t = @intCast(must(linux.open(path, .{ .CLOEXEC = true }, 0), "open of the server's stat"));
    defer close(fd);
    var buffer: [1024]u8 = undefined;
    const text = buffer[0..must(linux.read(fd, &buffer, buffer.len), "read of the server's stat")];
    // The name in field 2 may hold spaces: count fields from the bracket that ends it.
    const name_end = std.mem.findScalarLast(u8, text, ')') orelse fatal("unexpected {s}", .{path});
    var fields = std.mem.tokenizeScalar(u8, text[name_end + 1 ..], ' ');
    for (3..14) |_| _ = fields.next();
    return .{ .user = parseTicks(fields.next()), .system = parseTicks(fields.next()) };
}

fn parseTicks(field: ?[]const u8) u64 {
    return std.fmt.parseInt(u64, field orelse "", 10) catch fatal("unexpected stat field", .{});
}

fn timeNs(time: linux.timespec) u64 {
    return @as(u64, @intCast(time.sec)) * std.time.ns_per_s + @as(u64, @intCast(time.nsec));
}

pub const Address = union(enum) {
    tcp: linux.sockaddr.in,
    unix: linux.sockaddr.un,

    pub fn loopback(port: u16, last_byte: u8) Address {
        const bytes = [4]u8{ 127, 0, 0, last_byte };
        return .{ .tcp = .{ .port = std.mem.nativeToBig(u16, port), .addr = @bitCast(bytes) } };
    }

    pub fn unixPath(path: []const u8) Address {
        var address: linux.sockaddr.un = .{ .path = @splat(0) };
        if (path.len >= address.path.len) fatal("socket path too long: {s}", .{path});
        @memcpy(address.path[0..path.len], path);
        return .{ .unix = address };
    }

    pub fn family(address: *const Address) u32 {
        return switch (address.*) {
            .tcp => linux.AF.INET,
            .unix => linux.AF.UNIX,
        };
    }

    pub fn pointer(address: *const Address) *const linux.sockaddr {
        return switch (address.*) {
            inline else => |*value| @ptrCast(value),
        };
    }

    pub fn length(address: *const Address) linux.socklen_t {
        return switch (address.*) {
            inline else => |*value| @sizeOf(@TypeOf(value.*)),
        };
    }
};

pub fn newSocket(family: u32, kind: u32) fd_t {
    const flags = kind | linux.SOCK.NONBLOCK | linux.SOCK.CLOEXEC;
    return @intCast(must(linux.socket(family, flags, 0), "socket"));
}

pub fn setOption(fd: fd_t, level: i32, option: u32, value: c_int) void {
    const bytes = std.mem.asBytes(&value);
    _ = must(linux.setsockopt(fd, level, option, bytes, bytes.len), "setsockopt");
}

pub fn setNoDelay(fd: fd_t) void {
    setOption(fd, linux.IPPROTO.TCP, linux.TCP.NODELAY, 1);
}

pub fn listenOn(address: *const Address) fd_t {
    const fd = newSocket(address.family(), linux.SOCK.STREAM);
    if (address.* == .tcp) setOption(fd, linux.SOL.SOCKET, linux.SO.REUSEADDR, 1);
    _ = must(linux.bind(fd, address.pointer(), address.length()), "bind");
    _ = must(linux.listen(fd, 4096), "listen");
    return fd;
}

pub fn boundPort(fd: fd_t) u16 {
    var address: linux.sockaddr.in = undefined;
    var length: linux.socklen_t = @sizeOf(linux.sockaddr.in);
    _ = must(linux.getsockname(fd, @ptrCast(&address), &length), "getsockname");
    return std.mem.bigToNative(u16, address.port);
}

pub fn read(fd: fd_t, buffer: []u8) Transfer {
    const rc = linux.recvfrom(fd, buffer.ptr, buffer.len, 0, null, null);
    return switch (linux.errno(rc)) {
        .SUCCESS => if (rc == 0) .closed else .{ .bytes = rc },
        .AGAIN, .INTR => .blocked,
        .CONNRESET, .PIPE => .closed,
        else => |code| fatal("recv: {t}", .{code}),
    };
}

pub fn write(fd: fd_t, bytes: []const u8) Transfer {
    const rc = linux.sendto(fd, bytes.ptr, bytes.len, linux.MSG.NOSIGNAL, null, 0);
    return switch (linux.errno(rc)) {
        .SUCCESS => .{ .bytes = rc },
        .AGAIN, .INTR => .blocked,
        .CONNRESET, .PIPE => .closed,
        else => |code| fatal("send: {t}", .{code}),
    };
}

pub fn close(fd: fd_t) void {
    _ = must(linux.close(fd), "close");
}

/// Blocks until one byte arrives on standard input; false at its end. The parent uses it to step this process.
pub fn waitForParent() bool {
    var byte: [1]u8 = undefined;
    while (true) {
        const rc = linux.read(0, &byte, 1);
        switch (linux.errno(rc)) {
            .SUCCESS => return rc == 1,
            .INTR => {},
            else => return false,
        }
    }
}

/// One line of JSON (or any text) to standard output.
pub fn printLine(comptime format: []const u8, arguments: anytype) void {
    var buffer: [2048]u8 = undefined;
    const line = std.fmt.bufPrint(&buffer, format ++ "\n", arguments) catch unreachable;
    var sent: usize = 0;
    while (sent < line.len) sent += must(linux.write(1, line.ptr + sent, line.len - sent), "write");
}
