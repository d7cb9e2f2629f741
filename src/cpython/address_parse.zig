//! Socket addresses from what Python programs give: only those that can be read without asking
//! anybody. Everything else (names, unusual families, mistakes) is Python's own socket code's, which
//! knows the rules and the messages.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");

const Object = py.Object;
const Address = core.sys.Address;
const sc = std.c;

extern fn inet_pton(family: c_int, source: [*:0]const u8, destination: *anyopaque) c_int;

/// Null without an exception for an address that has to go the long way.
pub fn fromObject(family: sc.sa_family_t, object: *Object) ?Address {
    return switch (family) {
        sc.AF.INET => inet(object),
        sc.AF.INET6 => inet6(object),
        sc.AF.UNIX => unix(object),
        else => null,
    };
}

fn inet(object: *Object) ?Address {
    if (!isTuple(object, 2, 2)) return null;
    var parsed: sc.sockaddr.in = .{
        .port = std.mem.nativeToBig(u16, number(u16, py.tupleItemBorrowed(object, 1)) orelse return null),
        .addr = 0,
    };
    const host = text(py.tupleItemBorrowed(object, 0)) orelse return null;
    if (inet_pton(sc.AF.INET, host, &parsed.addr) != 1) return null;
    return copied(std.mem.asBytes(&parsed));
}

fn inet6(object: *Object) ?Address {
    if (!isTuple(object, 2, 4)) return null;
    const size = py.tupleSize(object);
    const flow = if (size > 2) number(u20, py.tupleItemBorrowed(object, 2)) orelse return null else 0;
    var parsed: sc.sockaddr.in6 = .{
        .port = std.mem.nativeToBig(u16, number(u16, py.tupleItemBorrowed(object, 1)) orelse return null),
        .flowinfo = std.mem.nativeToBig(u32, flow),
        .addr = undefined,
        .scope_id = if (size > 3) number(u32, py.tupleItemBorrowed(object, 3)) orelse return null else 0,
    };
    const host = text(py.tupleItemBorrowed(object, 0)) orelse return null;
    if (inet_pton(sc.AF.INET6, host, &parsed.addr) != 1) return null;
    return copied(std.mem.asBytes(&parsed));
}

/// A path counts its final zero byte; an abstract name (first byte 0) ends by its length alone.
fn unix(object: *Object) ?Address {
    if (comptime !core.sys.is_linux) return null;
    const encoded = if (py.isExact(object, &c.PyBytes_Type))
        py.newRef(object)
    else if (py.isExact(object, &c.PyUnicode_Type))
        c.PyUnicode_EncodeFSDefault(object) orelse {
            c.PyErr_Clear();
            return null;
        }
    else
        return null;
    defer py.decref(encoded);
    const name = py.bytesOf(encoded);
    var parsed: sc.sockaddr.un = .{ .path = @splat(0) };
    if (name.len >= parsed.path.len) return null;
    @memcpy(parsed.path[0..name.len], name);
    const is_path = name.len > 0 and name[0] != 0;
    const len = @offsetOf(sc.sockaddr.un, "path") + name.len + @intFromBool(is_path);
    return copied(std.mem.asBytes(&parsed)[0..len]);
}

fn isTuple(object: *Object, size_min: usize, size_max: usize) bool {
    if (!py.isExact(object, &c.PyTuple_Type)) return false;
    const size = py.tupleSize(object);
    return size >= size_min and size <= size_max;
}

fn number(comptime T: type, object: *Object) ?T {
    if (!py.isExact(object, &c.PyLong_Type)) return null;
    const value = c.PyLong_AsLong(object);
    if (value == -1 and c.PyErr_Occurred() != null) {
        c.PyErr_Clear();
        return null;
    }
    return std.math.cast(T, value);
}

/// The characters of a str without zero bytes, borrowed from it.
fn text(object: *Object) ?[*:0]const u8 {
    if (!py.isExact(object, &c.PyUnicode_Type)) return null;
    var len: c.Ssize = 0;
    const characters = c.PyUnicode_AsUTF8AndSize(object, &len) orelse {
        c.PyErr_Clear();
        return null;
    };
    const bytes = characters[0..@intCast(len)];
    if (std.mem.findScalar(u8, bytes, 0) != null) return null;
    return @ptrCast(characters);
}

fn copied(bytes: []const u8) Address {
    var address: Address = .{ .len = @intCast(bytes.len) };
    @memcpy(std.mem.asBytes(&address.storage)[0..bytes.len], bytes);
    return address;
}
