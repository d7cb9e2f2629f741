//! How our types are described to the interpreter.

const c = @import("c.zig");

const flags = c.Py_TPFLAGS_DEFAULT | c.Py_TPFLAGS_HAVE_GC;

/// A type that Python code can neither make objects nor subclasses of. `slots` is a struct of pointers whose
/// fields have the slots' names.
pub fn final(comptime name: [:0]const u8, comptime size: usize, comptime slots: anytype) c.PyType_Spec {
    return spec(name, size, flags | c.Py_TPFLAGS_DISALLOW_INSTANTIATION, slots);
}

/// A type for subclasses.
pub fn base(comptime name: [:0]const u8, comptime size: usize, comptime slots: anytype) c.PyType_Spec {
    return spec(name, size, flags | c.Py_TPFLAGS_BASETYPE, slots);
}

fn spec(comptime name: [:0]const u8, comptime size: usize, comptime type_flags: c_uint, comptime slots: anytype) c.PyType_Spec {
    const Made = struct {
        const field_names = @typeInfo(@TypeOf(slots)).@"struct".field_names;

        const all: [field_names.len + 1]c.PyType_Slot = made: {
            var list: [field_names.len + 1]c.PyType_Slot = @splat(.{});
            for (field_names, 0..) |field_name, i| {
                list[i] = .{ .slot = @field(c, "Py_" ++ field_name), .pfunc = @ptrCast(@field(slots, field_name)) };
            }
            break :made list;
        };
    };
    return .{ .name = name, .basicsize = size, .flags = type_flags, .slots = &Made.all };
}

/// `tp_members` of a type whose objects have attributes of the program's and weak references, in the fields `dict`
/// and `weakrefs`.
pub fn dictAndWeakrefs(comptime Layout: type, comptime Fields: type) [3]c.PyMemberDef {
    return .{
        .{ .name = "__dictoffset__", .type = c.T_PYSSIZET, .offset = Layout.offset + @offsetOf(Fields, "dict"), .flags = c.READONLY },
        .{ .name = "__weaklistoffset__", .type = c.T_PYSSIZET, .offset = Layout.offset + @offsetOf(Fields, "weakrefs"), .flags = c.READONLY },
        .{},
    };
}

/// Goes into the `tp_getset` of such a type: attributes work without it, but vars() and whatever lists them ask for it.
pub const dict_property: c.PyGetSetDef = .{
    .name = "__dict__",
    .get = &c.PyObject_GenericGetDict,
    .set = &c.PyObject_GenericSetDict,
};
