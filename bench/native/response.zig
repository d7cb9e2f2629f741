//! Decides when a response is complete: by a fixed length, or by the head of an HTTP/1.1 response.

const std = @import("std");
const sys = @import("sys.zig");

pub const Kind = union(enum) { fixed: usize, http };

pub const Meter = struct {
    kind: Kind,
    /// Bytes of the body still to come; meaningless while an HTTP head is being read.
    remaining: usize = 0,
    in_head: bool = false,
    head: [head_bytes_max]u8 = undefined,
    head_len: usize = 0,

    const head_bytes_max = 4096;
    const head_end = "\r\n\r\n";

    pub fn start(meter: *Meter) void {
        switch (meter.kind) {
            .fixed => |size| meter.remaining = size,
            .http => {
                meter.in_head = true;
                meter.head_len = 0;
            },
        }
    }

    /// True when these bytes complete the response. Bytes beyond its end are a server's bug.
    pub fn feed(meter: *Meter, bytes: []const u8) bool {
        const body = if (meter.in_head) meter.feedHead(bytes) orelse return false else bytes;
        if (body.len > meter.remaining) sys.fatal("the server sent {d} bytes too many", .{body.len - meter.remaining});
        meter.remaining -= body.len;
        return meter.remaining == 0;
    }

    /// The part of `bytes` after the head, or null while the head is incomplete.
    fn feedHead(meter: *Meter, bytes: []const u8) ?[]const u8 {
        const known_len = meter.head_len;
        const taken = @min(bytes.len, head_bytes_max - known_len);
        @memcpy(meter.head[known_len..][0..taken], bytes[0..taken]);
        meter.head_len += taken;
        const searched_from = known_len -| (head_end.len - 1);
        const end = std.mem.findPos(u8, meter.head[0..meter.head_len], searched_from, head_end) orelse {
            if (meter.head_len == head_bytes_max) sys.fatal("HTTP head longer than {d} bytes", .{head_bytes_max});
            return null;
        };
        meter.in_head = false;
        meter.remaining = contentLength(meter.head[0..end]);
        return bytes[end + head_end.len - known_len ..];
    }
};

fn contentLength(head: []const u8) usize {
    if (!std.mem.startsWith(u8, head, "HTTP/1.1 200")) sys.fatal("unexpected response: {s}", .{head[0..@min(head.len, 60)]});
    var lines = std.mem.splitSequence(u8, head, "\r\n");
    while (lines.next()) |line| {
        const colon = std.mem.findScalar(u8, line, ':') orelse continue;
        if (!std.ascii.eqlIgnoreCase(line[0..colon], "content-length")) continue;
        const value = std.mem.trim(u8, line[colon + 1 ..], " ");
        return std.fmt.parseInt(usize, value, 10) catch sys.fatal("bad content-length: {s}", .{value});
    }
    sys.fatal("a response without content-length", .{});
}

test "a head that arrives byte by byte" {
    const text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    var meter: Meter = .{ .kind = .http };
    for (0..2) |_| {
        meter.start();
        for (text, 1..) |_, end| {
            try std.testing.expectEqual(end == text.len, meter.feed(text[end - 1 .. end]));
        }
    }
}

test "a head and body in one piece, and an empty body" {
    var meter: Meter = .{ .kind = .http };
    meter.start();
    try std.testing.expect(meter.feed("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"));
    meter.start();
    try std.testing.expect(meter.feed("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
}

test "a fixed length in pieces" {
    var meter: Meter = .{ .kind = .{ .fixed = 3 } };
    meter.start();
    try std.testing.expect(!meter.feed("ab"));
    try std.testing.expect(meter.feed("c"));
}
