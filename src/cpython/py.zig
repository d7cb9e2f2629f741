//! References, calls and the one error.
//!
//! `error.Python` means "an exception is set"; nothing else does. Names say who owns what comes
//! back: a plain call returns a new reference, `…Borrowed` does not.

const std = @import("std");
const c = @import("c.zig");
const config = @import("config");

pub const Object = c.PyObject;
pub const Error = error{Python};

/// Reference counts are plain memory only in release builds with a GIL. Debug builds count totals
/// and free-threaded builds count per thread, both inside the interpreter.
const inline_refcounts = !config.gil_disabled and !config.py_debug;
const has_immortals = config.py_minor >= 12;

/// Since 3.12 the low 32 bits count.
inline fn refcount32(object: *Object) *i32 {
    if (comptime @sizeOf(usize) == 4) return @ptrCast(&object.ob_refcnt);
    const words: *[2]i32 = @ptrCast(&object.ob_refcnt);
    return &words[if (@import("builtin").cpu.arch.endian() == .little) 0 else 1];
}

/// On 64 bits a negative count marks an immortal object. On 32 bits 3.12 and 3.13 have one value for them, and later
/// versions all from the next one on; an ordinary count gets nowhere near.
inline fn isImmortal(count: i32) bool {
    if (comptime @sizeOf(usize) == 8) return count < 0;
    return if (comptime config.py_minor < 14) count == (1 << 30) - 1 else count >= 1 << 30;
}

pub inline fn incref(object: *Object) void {
    if (comptime !inline_refcounts) return c.Py_IncRef(object);
    if (comptime has_immortals) {
        const count = refcount32(object);
        if (!isImmortal(count.*)) count.* +%= 1;
    } else {
        object.ob_refcnt += 1;
    }
}

pub inline fn decref(object: *Object) void {
    if (comptime !inline_refcounts) return c.Py_DecRef(object);
    if (comptime has_immortals) {
        const count = refcount32(object);
        if (isImmortal(count.*)) return;
        count.* -= 1;
        if (count.* == 0) c._Py_Dealloc(object);
    } else {
        object.ob_refcnt -= 1;
        if (object.ob_refcnt == 0) c._Py_Dealloc(object);
    }
}

pub inline fn newRef(object: *Object) *Object {
    incref(object);
    return object;
}

pub inline fn xdecref(object: ?*Object) void {
    if (object) |o| decref(o);
}

/// Empties the field first: releasing can run any Python code, which must find it empty.
pub inline fn clear(field: *?*Object) void {
    const object = field.*;
    field.* = null;
    if (object) |o| decref(o);
}

/// Puts a new reference in the field, then releases what was there.
pub inline fn replace(field: *?*Object, object: ?*Object) void {
    const before = field.*;
    field.* = object;
    if (before) |o| decref(o);
}

/// Whether this reference is the only one. Always false where counts are not plain memory.
pub inline fn isUnique(object: *Object) bool {
    if (comptime config.gil_disabled) return false;
    if (comptime has_immortals) return refcount32(object).* == 1;
    return object.ob_refcnt == 1;
}

/// How many references there are. Of an object that other threads use it can be out of date at once.
pub inline fn refcount(object: *Object) usize {
    if (comptime config.gil_disabled) {
        // The owner's references, and those of other threads above two bits of flags.
        const local: isize = @atomicLoad(u32, &object.ob_ref_local, .monotonic);
        const shared = @atomicLoad(isize, &object.ob_ref_shared, .monotonic) >> 2;
        return @intCast(@max(local + shared, 0));
    }
    if (comptime has_immortals) return @as(u32, @bitCast(refcount32(object).*));
    return @intCast(object.ob_refcnt);
}

/// A recycled object comes back to life with one reference.
pub inline fn revive(object: *Object) void {
    comptime std.debug.assert(inline_refcounts);
    object.ob_refcnt = 1;
}

/// The object is never freed, and nobody counts references to it any more.
pub fn makeImmortal(object: *Object) void {
    comptime std.debug.assert(config.gil_disabled);
    object.ob_ref_local = std.math.maxInt(u32);
    object.ob_ref_shared = 0;
}

/// Objects can be kept on a free list only where one thread at a time frees them and nobody counts.
pub const can_recycle = inline_refcounts;

pub inline fn typeOf(object: *const Object) *c.PyTypeObject {
    return object.ob_type;
}

pub inline fn isExact(object: *const Object, t: *const c.PyTypeObject) bool {
    return object.ob_type == t;
}

pub inline fn isInstance(object: *const Object, t: *c.PyTypeObject) bool {
    return object.ob_type == t or c.PyType_IsSubtype(object.ob_type, t) != 0;
}

pub inline fn none() *Object {
    return &c._Py_NoneStruct;
}

pub inline fn newNone() *Object {
    return newRef(&c._Py_NoneStruct);
}

pub inline fn newBool(value: bool) *Object {
    return newRef(if (value) &c._Py_TrueStruct else &c._Py_FalseStruct);
}

pub inline fn boolBorrowed(value: bool) *Object {
    return if (value) &c._Py_TrueStruct else &c._Py_FalseStruct;
}

/// A result that is null exactly when an exception is set.
pub inline fn check(result: ?*Object) Error!*Object {
    return result orelse error.Python;
}

pub inline fn checkInt(result: c_int) Error!void {
    if (result < 0) return error.Python;
}

/// `PY_VECTORCALL_ARGUMENTS_OFFSET`: the callee may use the slot before the arguments.
pub const arguments_offset: usize = @as(usize, 1) << (@bitSizeOf(usize) - 1);

pub inline fn call(callable: *Object, args: anytype) Error!*Object {
    const count = args.len;
    var stack: [count + 1]?*Object = undefined;
    stack[0] = null;
    inline for (args, 0..) |arg, i| stack[i + 1] = arg;
    return check(c.PyObject_Vectorcall(callable, stack[1..].ptr, count | arguments_offset, null));
}

pub inline fn callMethod(object: *Object, name: *Object, args: anytype) Error!*Object {
    const count = args.len;
    var stack: [count + 2]?*Object = undefined;
    stack[0] = null;
    stack[1] = object;
    inline for (args, 0..) |arg, i| stack[i + 2] = arg;
    return check(c.PyObject_VectorcallMethod(name, stack[1..].ptr, (count + 1) | arguments_offset, null));
}

pub fn getAttr(object: *Object, name: *Object) Error!*Object {
    return check(c.PyObject_GetAttr(object, name));
}

pub fn setAttr(object: *Object, name: *Object, value: *Object) Error!void {
    return checkInt(c.PyObject_SetAttr(object, name, value));
}

pub fn isTrue(object: *Object) Error!bool {
    const result = c.PyObject_IsTrue(object);
    if (result < 0) return error.Python;
    return result != 0;
}

pub fn raise(exception: *Object, message: [*:0]const u8) Error {
    c.PyErr_SetString(exception, message);
    return error.Python;
}

pub fn raiseFormat(exception: *Object, format: [*:0]const u8, args: anytype) Error {
    _ = @call(.auto, c.PyErr_Format, .{ exception, format } ++ args);
    return error.Python;
}

pub fn noMemory() Error {
    _ = c.PyErr_NoMemory();
    return error.Python;
}

pub fn matches(exception: *Object) bool {
    return c.PyErr_ExceptionMatches(exception) != 0;
}

/// Exceptions that leave `run_forever` wherever they are raised.
pub fn isExit() bool {
    return matches(c.PyExc_SystemExit) or matches(c.PyExc_KeyboardInterrupt);
}

/// The exception that is set, taken out: normalised, with its traceback.
pub fn takeException() *Object {
    var kind: ?*Object = null;
    var value: ?*Object = null;
    var traceback: ?*Object = null;
    c.PyErr_Fetch(&kind, &value, &traceback);
    c.PyErr_NormalizeException(&kind, &value, &traceback);
    if (value == null) {
        // A mistake of the engine's: `error.Python` without an exception must not end the process.
        c.PyErr_SetString(c.PyExc_SystemError, "zloop: an error without an exception");
        c.PyErr_Fetch(&kind, &value, &traceback);
        c.PyErr_NormalizeException(&kind, &value, &traceback);
    }
    if (traceback) |tb| {
        _ = c.PyException_SetTraceback(value.?, tb);
        decref(tb);
    }
    xdecref(kind);
    return value.?;
}

/// Sets `exception` (borrowed) as it is, traceback included.
pub fn restoreException(exception: *Object) void {
    c.PyErr_SetObject(@ptrCast(typeOf(exception)), exception);
}

/// Keeps a set exception safe across clean-up that may call Python.
pub const Saved = struct {
    kind: ?*Object = null,
    value: ?*Object = null,
    traceback: ?*Object = null,

    pub fn save() Saved {
        var saved: Saved = .{};
        c.PyErr_Fetch(&saved.kind, &saved.value, &saved.traceback);
        return saved;
    }

    /// If nothing was saved, an exception that has been set since stays set.
    pub fn restore(saved: Saved) void {
        if (saved.kind == null) return;
        c.PyErr_Restore(saved.kind, saved.value, saved.traceback);
    }
};

pub fn checkContext(given: *Object) Error!void {
    if (isExact(given, &c.PyContext_Type)) return;
    return raiseFormat(c.PyExc_TypeError, "a contextvars.Context was expected, got %R", .{given});
}

/// Calls `function` with `context` entered. An exception that it raises stays set.
pub inline fn inContext(given: *Object, comptime function: anytype, arguments: anytype) Error!void {
    const context = newRef(given);
    defer decref(context);
    try checkInt(c.PyContext_Enter(context));
    @call(.auto, function, arguments) catch |err| {
        const saved: Saved = .save();
        _ = c.PyContext_Exit(context);
        saved.restore();
        return err;
    };
    return checkInt(c.PyContext_Exit(context));
}

pub fn newBytes(bytes: []const u8) Error!*Object {
    return check(c.PyBytes_FromStringAndSize(bytes.ptr, @intCast(bytes.len)));
}

/// The memory of an exact bytes object.
pub inline fn bytesOf(object: *Object) []u8 {
    const bytes: *c.PyBytesObject = @ptrCast(@alignCast(object));
    const data: [*]u8 = @ptrCast(&bytes.ob_sval);
    return data[0..@intCast(bytes.ob_base.ob_size)];
}

pub fn newInt(value: anytype) Error!*Object {
    return check(c.PyLong_FromSsize_t(@intCast(value)));
}

pub fn newFloat(value: f64) Error!*Object {
    return check(c.PyFloat_FromDouble(value));
}

pub fn newTuple(items: anytype) Error!*Object {
    return check(@call(.auto, c.PyTuple_Pack, .{@as(c.Ssize, items.len)} ++ items));
}

pub inline fn tupleSize(tuple: *Object) usize {
    return @intCast(@as(*c.PyVarObject, @ptrCast(tuple)).ob_size);
}

/// The items follow the header; since 3.14 with a cached hash between them.
const tuple_items_offset = @sizeOf(c.PyVarObject) + if (config.py_minor >= 14) @sizeOf(isize) else 0;

pub inline fn tupleItemBorrowed(tuple: *Object, index: usize) *Object {
    const bytes: [*]u8 = @ptrCast(tuple);
    const items: [*]*Object = @ptrCast(@alignCast(bytes + tuple_items_offset));
    std.debug.assert(index < tupleSize(tuple));
    return items[index];
}

/// Runs a function that can raise as a slot or method: null says that it raised.
pub inline fn returned(result: Error!*Object) ?*Object {
    return result catch null;
}

pub inline fn returnedNone(result: Error!void) ?*Object {
    result catch return null;
    return newNone();
}

pub inline fn returnedInt(result: Error!void) c_int {
    result catch return -1;
    return 0;
}

/// Where a type's own fields lie in its objects. Types of ours that extend a Python class begin
/// behind the base's fields, whose size is checked at import.
pub fn Layout(comptime Fields: type, comptime base_size: usize) type {
    return struct {
        pub const offset = std.mem.alignForward(usize, base_size, @alignOf(Fields));
        pub const size = offset + @sizeOf(Fields);

        pub inline fn of(object: *const Object) *Fields {
            const bytes: [*]u8 = @ptrCast(@constCast(object));
            return @ptrCast(@alignCast(bytes + offset));
        }

        pub inline fn objectOf(fields: *const Fields) *Object {
            const bytes: [*]u8 = @ptrCast(@constCast(fields));
            return @ptrCast(@alignCast(bytes - offset));
        }
    };
}

pub const Method = struct {
    pub fn noArgs(comptime name: [:0]const u8, comptime f: fn (*Object) Error!*Object, comptime doc: ?[:0]const u8) c.PyMethodDef {
        const Wrapper = struct {
            fn run(self: *Object, _: ?*Object) callconv(.c) ?*Object {
                return returned(f(self));
            }
        };
        return .{ .ml_name = name, .ml_meth = @ptrCast(&Wrapper.run), .ml_flags = c.METH_NOARGS, .ml_doc = if (doc) |d| d.ptr else null };
    }

    pub fn oneArg(comptime name: [:0]const u8, comptime f: fn (*Object, *Object) Error!*Object, comptime doc: ?[:0]const u8) c.PyMethodDef {
        const Wrapper = struct {
            fn run(self: *Object, arg: *Object) callconv(.c) ?*Object {
                return returned(f(self, arg));
            }
        };
        return .{ .ml_name = name, .ml_meth = @ptrCast(&Wrapper.run), .ml_flags = c.METH_O, .ml_doc = if (doc) |d| d.ptr else null };
    }

    pub fn args(comptime name: [:0]const u8, comptime f: fn (*Object, []const *Object) Error!*Object, comptime doc: ?[:0]const u8) c.PyMethodDef {
        const Wrapper = struct {
            fn run(self: *Object, argv: [*]const *Object, count: c.Ssize) callconv(.c) ?*Object {
                return returned(f(self, argv[0..@intCast(count)]));
            }
        };
        return .{ .ml_name = name, .ml_meth = @ptrCast(&Wrapper.run), .ml_flags = c.METH_FASTCALL, .ml_doc = if (doc) |d| d.ptr else null };
    }

    pub fn keywords(comptime name: [:0]const u8, comptime f: fn (*Object, []const *Object, ?*Object) Error!*Object, comptime doc: ?[:0]const u8) c.PyMethodDef {
        const Wrapper = struct {
            fn run(self: *Object, argv: [*]const *Object, count: c.Ssize, names: ?*Object) callconv(.c) ?*Object {
                // Keyword values follow the positional ones.
                const total: usize = @as(usize, @intCast(count)) + if (names) |n| tupleSize(n) else 0;
                return returned(f(self, argv[0..total], names));
            }
        };
        return .{
            .ml_name = name,
            .ml_meth = @ptrCast(&Wrapper.run),
            .ml_flags = c.METH_FASTCALL | c.METH_KEYWORDS,
            .ml_doc = if (doc) |d| d.ptr else null,
        };
    }
};

pub fn getter(comptime name: [:0]const u8, comptime get: fn (*Object) Error!*Object) c.PyGetSetDef {
    return property(name, get, null);
}

/// `set` gets null for `del`.
pub fn property(
    comptime name: [:0]const u8,
    comptime get: fn (*Object) Error!*Object,
    comptime set: ?fn (*Object, ?*Object) Error!void,
) c.PyGetSetDef {
    const Wrapper = struct {
        fn runGet(self: *Object, _: ?*anyopaque) callconv(.c) ?*Object {
            return returned(get(self));
        }
        fn runSet(self: *Object, value: ?*Object, _: ?*anyopaque) callconv(.c) c_int {
            return returnedInt(set.?(self, value));
        }
    };
    return .{ .name = name, .get = Wrapper.runGet, .set = if (set != null) Wrapper.runSet else null };
}

/// Visits the references of a traverse function.
pub const Visitor = struct {
    visit: c.visitproc,
    arg: ?*anyopaque,

    /// The type of a heap type's object is one of its references.
    pub fn object(self: Visitor, reference: ?*Object) error{Stop}!void {
        if (reference) |r| if (self.visit(r, self.arg) != 0) {
            return error.Stop;
        };
    }
};

pub fn traverse(comptime f: fn (*Object, Visitor) error{Stop}!void) *const anyopaque {
    const Wrapper = struct {
        fn run(self: *Object, visit: c.visitproc, arg: ?*anyopaque) callconv(.c) c_int {
            const visitor: Visitor = .{ .visit = visit, .arg = arg };
            visitor.object(@ptrCast(typeOf(self))) catch return 1;
            f(self, visitor) catch return 1;
            return 0;
        }
    };
    return @ptrCast(&Wrapper.run);
}
