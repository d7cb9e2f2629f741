//! What is assumed about the interpreter's objects, checked against the running one at import.
//!
//! A Python that lays them out differently gets an ImportError that says so, never a crash.

const std = @import("std");
const c = @import("c.zig");
const guard = @import("guard.zig");
const py = @import("py.zig");

const Object = py.Object;

const message = "zloop was built for another layout of Python objects than this interpreter has";

pub fn check() py.Error!void {
    try checkBytes();
    try checkTuple();
    if (comptime guard.enabled) if (!try guard.layoutIsKnown()) return py.raise(c.PyExc_ImportError, message);
    const handle = @import("handle.zig");
    try checkBase("asyncio", "TimerHandle", handle.base_size);
    try checkWeakrefs("asyncio", "TimerHandle", handle.weakrefs_offset);
    try checkBase("asyncio", "Transport", @import("stream.zig").base_size);
    try checkBase("asyncio", "ReadTransport", @import("pipe.zig").base_size);
    try checkBase("asyncio", "Transport", @import("pipe.zig").base_size);
    try checkBase("asyncio", "DatagramTransport", @import("datagram.zig").base_size);
}

/// The header's size and the place of a bytes object's length and content.
fn checkBytes() py.Error!void {
    const probe = "zloop: layout of bytes";
    const object = try py.newBytes(probe);
    defer py.decref(object);
    const size_matches = @as(*c.PyVarObject, @ptrCast(object)).ob_size == probe.len;
    if (!size_matches or !std.mem.eql(u8, py.bytesOf(object), probe) or !py.isExact(object, &c.PyBytes_Type)) {
        return py.raise(c.PyExc_ImportError, message);
    }
}

fn checkTuple() py.Error!void {
    const probe = try py.newTuple(.{ py.none(), py.boolBorrowed(true) });
    defer py.decref(probe);
    if (py.tupleSize(probe) != 2 or py.tupleItemBorrowed(probe, 0) != py.none() or py.tupleItemBorrowed(probe, 1) != py.boolBorrowed(true)) {
        return py.raise(c.PyExc_ImportError, message);
    }
}

fn checkBase(module: [*:0]const u8, name: [*:0]const u8, expected: usize) py.Error!void {
    const size = try typeNumber(module, name, "__basicsize__");
    if (size > expected) return unknown(module, name, size, @intCast(expected));
}

fn checkWeakrefs(module: [*:0]const u8, name: [*:0]const u8, expected: isize) py.Error!void {
    const offset = try typeNumber(module, name, "__weakrefoffset__");
    if (offset != expected) return unknown(module, name, offset, expected);
}

fn unknown(module: [*:0]const u8, name: [*:0]const u8, found: isize, expected: isize) py.Error {
    return py.raiseFormat(c.PyExc_ImportError, "zloop does not know this Python's %s.%s: found %zd where %zd was expected", .{
        module, name, found, expected,
    });
}

fn typeNumber(module: [*:0]const u8, name: [*:0]const u8, attribute: [*:0]const u8) py.Error!isize {
    const imported = try py.check(c.PyImport_ImportModule(module));
    defer py.decref(imported);
    const base = try py.check(c.PyObject_GetAttrString(imported, name));
    defer py.decref(base);
    const object = try py.check(c.PyObject_GetAttrString(base, attribute));
    defer py.decref(object);
    const value = c.PyLong_AsSsize_t(object);
    if (value == -1 and c.PyErr_Occurred() != null) return error.Python;
    return value;
}
