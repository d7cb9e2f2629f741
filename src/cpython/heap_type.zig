//! How our types are described to the interpreter.

const std = @import("std");
const c = @import("c.zig");
const guard_ = @import("guard.zig");

const Guard = guard_.Guard;
const Object = c.PyObject;

const flags = c.Py_TPFLAGS_DEFAULT | c.Py_TPFLAGS_HAVE_GC;

/// A type that Python code can neither make objects nor subclasses of. `slots` is a struct of pointers whose
/// fields have the slots' names.
pub fn final(comptime name: [:0]const u8, comptime size: usize, comptime guard: Guard, comptime slots: anytype) c.PyType_Spec {
    return spec(name, size, flags | c.Py_TPFLAGS_DISALLOW_INSTANTIATION, guard, slots);
}

/// A type for subclasses.
pub fn base(comptime name: [:0]const u8, comptime size: usize, comptime guard: Guard, comptime slots: anytype) c.PyType_Spec {
    return spec(name, size, flags | c.Py_TPFLAGS_BASETYPE, guard, slots);
}

fn spec(comptime name: [:0]const u8, comptime size: usize, comptime type_flags: c_uint, comptime guard: Guard, comptime slots: anytype) c.PyType_Spec {
    const Made = struct {
        const field_names = @typeInfo(@TypeOf(slots)).@"struct".field_names;

        const all: [field_names.len + 1]c.PyType_Slot = made: {
            var list: [field_names.len + 1]c.PyType_Slot = @splat(.{});
            for (field_names, 0..) |field_name, i| {
                list[i] = .{ .slot = @field(c, "Py_" ++ field_name), .pfunc = guarded(guard, field_name, @field(slots, field_name)) };
            }
            break :made list;
        };
    };
    return .{ .name = name, .basicsize = size, .flags = type_flags, .slots = &Made.all };
}

/// The slot as it goes into the type: without a GIL each function runs inside the loop's section.
fn guarded(comptime guard: Guard, comptime slot: []const u8, comptime value: anytype) *const anyopaque {
    @setEvalBranchQuota(100_000);
    if (!guard_.enabled or isOpen(guard, slot)) return @ptrCast(value);
    if (is(slot, "tp_methods")) return @ptrCast(guardedMethods(guard, value));
    if (is(slot, "tp_getset")) return @ptrCast(guardedProperties(guard, value));
    // Can be the end of the loop, or empty the field that leads to it: somebody else has to keep it.
    if (is(slot, "tp_dealloc")) return @ptrCast(&Guarded(guard, void, true).Of(value).run1);
    if (is(slot, "tp_clear")) return @ptrCast(&Guarded(guard, c_int, true).Of(value).run1);
    if (is(slot, "tp_finalize")) return @ptrCast(&Guarded(guard, void, false).Of(value).run1);
    if (is(slot, "tp_repr") or is(slot, "tp_iternext")) return @ptrCast(&Guarded(guard, ?*Object, false).Of(value).run1);
    // The world stands still, there is no object yet, or nothing of it is touched.
    if (is(slot, "tp_traverse") or is(slot, "tp_new") or is(slot, "tp_members") or is(slot, "tp_iter") or is(slot, "am_await")) return @ptrCast(value);
    @compileError("is " ++ slot ++ " to run inside the loop's section?");
}

fn is(comptime name: []const u8, comptime other: []const u8) bool {
    return std.mem.eql(u8, name, other);
}

fn isOpen(comptime guard: Guard, comptime name: []const u8) bool {
    for (guard.open) |open| if (is(name, open)) return true;
    return false;
}

/// Functions that take the object first and give a `Result`.
fn Guarded(comptime guard: Guard, comptime Result: type, comptime keeps_loop: bool) type {
    return struct {
        fn Of(comptime function: anytype) type {
            const f1: *const fn (*Object) callconv(.c) Result = @ptrCast(function);
            const f2: *const fn (*Object, ?*anyopaque) callconv(.c) Result = @ptrCast(function);
            const f3: *const fn (*Object, ?*anyopaque, ?*anyopaque) callconv(.c) Result = @ptrCast(function);
            const f_args: *const fn (*Object, ?*anyopaque, c.Ssize) callconv(.c) Result = @ptrCast(function);
            const f4: *const fn (*Object, ?*anyopaque, c.Ssize, ?*anyopaque) callconv(.c) Result = @ptrCast(function);
            return struct {
                fn run1(object: *Object) callconv(.c) Result {
                    return run(f1, object, .{});
                }
                fn run2(object: *Object, a: ?*anyopaque) callconv(.c) Result {
                    return run(f2, object, .{a});
                }
                fn run3(object: *Object, a: ?*anyopaque, b: ?*anyopaque) callconv(.c) Result {
                    return run(f3, object, .{ a, b });
                }
                fn runArgs(object: *Object, a: ?*anyopaque, count: c.Ssize) callconv(.c) Result {
                    return run(f_args, object, .{ a, count });
                }
                fn run4(object: *Object, a: ?*anyopaque, count: c.Ssize, b: ?*anyopaque) callconv(.c) Result {
                    return run(f4, object, .{ a, count, b });
                }
            };
        }

        inline fn run(comptime function: anytype, object: *Object, arguments: anytype) Result {
            const loop = guard.loop_of(object) orelse return @call(.auto, function, .{object} ++ arguments);
            if (keeps_loop) c.Py_IncRef(loop);
            defer if (keeps_loop) c.Py_DecRef(loop);
            var section: guard_.Section = .{};
            section.enter(loop);
            defer section.exit();
            return @call(.auto, function, .{object} ++ arguments);
        }
    };
}

fn guardedMethods(comptime guard: Guard, comptime methods: [*]const c.PyMethodDef) [*]const c.PyMethodDef {
    const Made = struct {
        const all = made: {
            @setEvalBranchQuota(100_000);
            const count = lengthOf(methods, "ml_name");
            var list: [count + 1]c.PyMethodDef = methods[0 .. count + 1].*;
            for (list[0..count]) |*method| {
                if (isOpen(guard, std.mem.span(method.ml_name.?))) continue;
                const Function = Guarded(guard, ?*Object, false).Of(method.ml_meth.?);
                method.ml_meth = switch (method.ml_flags) {
                    c.METH_NOARGS, c.METH_O => @ptrCast(&Function.run2),
                    c.METH_FASTCALL => @ptrCast(&Function.runArgs),
                    c.METH_FASTCALL | c.METH_KEYWORDS => @ptrCast(&Function.run4),
                    else => @compileError("another way to be called"),
                };
            }
            const final_list = list;
            break :made final_list;
        };
    };
    return &Made.all;
}

fn guardedProperties(comptime guard: Guard, comptime properties: [*]const c.PyGetSetDef) [*]const c.PyGetSetDef {
    const Made = struct {
        const all = made: {
            @setEvalBranchQuota(100_000);
            const count = lengthOf(properties, "name");
            var list: [count + 1]c.PyGetSetDef = properties[0 .. count + 1].*;
            for (list[0..count]) |*property| {
                if (isOpen(guard, std.mem.span(property.name.?))) continue;
                if (property.get) |get| property.get = &Guarded(guard, ?*Object, false).Of(get).run2;
                if (property.set) |set| property.set = @ptrCast(&Guarded(guard, c_int, false).Of(set).run3);
            }
            const final_list = list;
            break :made final_list;
        };
    };
    return &Made.all;
}

fn lengthOf(comptime list: anytype, comptime field: []const u8) usize {
    var count: usize = 0;
    while (@field(list[count], field) != null) count += 1;
    return count;
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
