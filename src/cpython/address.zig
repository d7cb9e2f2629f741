//! Socket addresses as Python gives them: what `socket.getpeername()` returns for the family.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");

const Object = py.Object;
const Address = core.sys.Address;
const sc = std.c;

extern fn inet_ntop(family: c_int, source: *const anyopaque, destination: [*]u8, size: sc.socklen_t) ?[*:0]const u8;

/// Families other than IPv4, IPv6 and Unix give null: Python's own socket object knows them.
pub fn toObject(address: *const Address) py.Error!?*Object {
    return switch (address.family()) {
        sc.AF.INET => try inet(@ptrCast(@alignCast(&address.storage))),
        sc.AF.INET6 => try inet6(@ptrCast(@alignCast(&address.storage))),
        sc.AF.UNIX => try unix(address),
        else => null,
    };
}

fn inet(address: *const sc.sockaddr.in) py.Error!*Object {
    const host = try text(sc.AF.INET, &address.addr);
    defer py.decref(host);
    const port = try py.newInt(std.mem.bigToNative(u16, address.port));
    defer py.decref(port);
    return py.newTuple(.{ host, port });
}

fn inet6(address: *const sc.sockaddr.in6) py.Error!*Object {
    const host = try text(sc.AF.INET6, &address.addr);
    defer py.decref(host);
    const port = try py.newInt(std.mem.bigToNative(u16, address.port));
    defer py.decref(port);
    const flow = try py.newInt(std.mem.bigToNative(u32, address.flowinfo));
    defer py.decref(flow);
    const scope = try py.newInt(address.scope_id);
    defer py.decref(scope);
    return py.newTuple(.{ host, port, flow, scope });
}

fn text(family: c_int, source: *const anyopaque) py.Error!*Object {
    var buffer: [64]u8 = undefined;
    const result = inet_ntop(family, source, &buffer, buffer.len).?;
    return py.check(c.PyUnicode_FromString(result));
}

/// A name in the file system is a str, an abstract name (first byte 0, Linux) bytes.
fn unix(address: *const Address) py.Error!*Object {
    const path_offset = @offsetOf(sc.sockaddr.un, "path");
    if (address.len <= path_offset) return py.check(c.PyUnicode_FromString(""));
    const path = address.bytes()[path_offset..];
    if (path[0] == 0 and @import("builtin").os.tag == .linux) return py.newBytes(path);
    const end = std.mem.findScalar(u8, path, 0) orelse path.len;
    return py.check(c.PyUnicode_DecodeFSDefaultAndSize(path.ptr, @intCast(end)));
}

/// An address in the little space that a connection can spare until somebody asks for it.
pub const Compact = struct {
    len: u8 = 0,
    storage: [@sizeOf(sc.sockaddr.in6)]u8 = undefined,

    /// False if the address is longer than any internet address: keep the Python object instead.
    pub fn set(self: *Compact, address: *const Address) bool {
        if (address.len > self.storage.len) return false;
        self.len = @intCast(address.len);
        @memcpy(self.storage[0..self.len], address.bytes());
        return true;
    }

    pub fn get(self: *const Compact) ?Address {
        if (self.len == 0) return null;
        var address: Address = .{ .len = self.len };
        @memcpy(std.mem.asBytes(&address.storage)[0..self.len], self.storage[0..self.len]);
        return address;
    }
};
