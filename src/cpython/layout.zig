//! What is assumed about the interpreter's objects, checked against the running one at import.
//!
//! A Python that lays them out differently gets an ImportError that says so, never a crash.

const std = @import("std");
const c = @import("c.zig");
const py = @import("py.zig");

const Object = py.Object;

pub fn check() py.Error!void {
    try checkBytes();
    try checkBase("asyncio", "TimerHandle", @import("handle.zig").base_size);
    try checkBase("asyncio", "Transport", @import("stream.zig").base_size);
}

/// The header's size and the place of a bytes object's length and content.
fn checkBytes() py.Error!void {
    const probe = "zloop: layout of bytes";
    const object = try py.newBytes(probe);
    defer py.decref(object);
    const size_matches = @as(*c.PyVarObject, @ptrCast(object)).ob_size == probe.len;
    if (!size_matches or !std.mem.eql(u8, py.bytesOf(object), probe) or !py.isExact(object, &c.PyBytes_Type)) {
        return py.raise(c.PyExc_ImportError, "zloop was built for another layout of Python objects than this interpreter has");
    }
}

fn checkBase(module: [*:0]const u8, name: [*:0]const u8, expected: usize) py.Error!void {
    const imported = try py.check(c.PyImport_ImportModule(module));
    defer py.decref(imported);
    const base = try py.check(c.PyObject_GetAttrString(imported, name));
    defer py.decref(base);
    const size_object = try py.check(c.PyObject_GetAttrString(base, "__basicsize__"));
    defer py.decref(size_object);
    const size = c.PyLong_AsSsize_t(size_object);
    if (size < 0) return error.Python;
    if (size > expected) {
        return py.raiseFormat(c.PyExc_ImportError, "zloop does not know this Python's %s.%s: %zd bytes instead of %zd", .{
            module, name, size, @as(c.Ssize, @intCast(expected)),
        });
    }
}
