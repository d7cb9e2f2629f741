//! Handle and TimerHandle: one scheduled callback each.
//!
//! Both extend asyncio's classes of the same name and share one layout, which begins behind the
//! fields of the larger base. Callback arguments lie in the object itself, where vectorcall can
//! take them; more than `args_inline_max` go into a tuple. Freed handles wait on a list of their
//! loop, so the common case allocates nothing.
//!
//! Ownership: a queued handle holds its loop, callback, arguments and context; all but the loop go
//! when it is cancelled or has been freed. Only the loop's thread runs or cancels handles.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const config = @import("config");
const py = @import("py.zig");
const args_ = @import("args.zig");
const loop_type = @import("loop_type.zig");
const State = @import("state.zig").State;

const Object = py.Object;
const LoopFields = loop_type.Fields;

/// The basic size of asyncio.TimerHandle: its slots behind the object header, before 3.12 with the
/// list of weak references. `layout.zig` checks it against the running interpreter.
pub const base_size = @sizeOf(c.PyObject) + 8 * @as(usize, if (config.py_minor >= 12) 9 else 10);

const args_inline_max = 3;

pub const Fields = struct {
    /// A strong reference to the loop's object.
    loop: *LoopFields,
    callback: ?*Object,
    context: ?*Object,
    args: [args_inline_max]?*Object,
    /// All arguments, if there are more than fit inline.
    args_tuple: ?*Object,
    args_count: u32,
    cancelled: bool,
    /// Set for a TimerHandle that has been in the heap and not run or cancelled since.
    scheduled: bool,
    timer: core.Timer,
    when: f64,
    /// `call_at` keeps what it was given unless that was a float.
    when_object: ?*Object,
    source_traceback: ?*Object,
    repr: ?*Object,
};

pub fn ofTimer(timer: *core.Timer) *Fields {
    return @alignCast(@fieldParentPtr("timer", timer));
}

pub const Layout = py.Layout(Fields, base_size);
pub const of = Layout.of;

/// Freed handles of one type, linked through their callback field.
pub const FreeList = struct {
    first: ?*Object = null,
    count: u32 = 0,

    const count_max = 512;

    inline fn pop(self: *FreeList) ?*Object {
        const object = self.first orelse return null;
        self.first = of(object).callback;
        self.count -= 1;
        return object;
    }

    inline fn push(self: *FreeList, object: *Object) bool {
        if (self.count >= count_max) return false;
        of(object).callback = self.first;
        self.first = object;
        self.count += 1;
        return true;
    }

    pub fn deinit(self: *FreeList) void {
        while (self.pop()) |object| {
            const t: *Object = @ptrCast(py.typeOf(object));
            c.PyObject_GC_Del(object);
            py.decref(t);
        }
    }
};

pub const Kind = enum { soon, timer };

/// A new handle. `context` null means a copy of the current one.
pub inline fn create(loop: *LoopFields, comptime kind: Kind, parsed: args_.Callback) py.Error!*Object {
    const context = if (parsed.context) |given| py.newRef(given) else try py.check(c.PyContext_CopyCurrent());
    const recycled = if (comptime py.can_recycle) switch (kind) {
        .soon => loop.free_handles.pop(),
        .timer => loop.free_timer_handles.pop(),
    } else null;
    const object = recycled orelse allocate(loop, kind) catch |err| {
        py.decref(context);
        return err;
    };
    if (recycled != null) py.revive(object);
    const self = of(object);
    py.incref(loop.object());
    self.loop = loop;
    self.callback = py.newRef(parsed.callback);
    self.context = context;
    self.args_count = @intCast(parsed.args.len);
    self.args_tuple = null;
    self.cancelled = false;
    self.scheduled = false;
    self.when_object = null;
    self.source_traceback = null;
    self.repr = null;
    if (parsed.args.len <= args_inline_max) {
        for (parsed.args, 0..) |arg, i| self.args[i] = py.newRef(arg);
    } else {
        self.args_tuple = tupleOf(parsed.args) catch |err| {
            self.args_count = 0;
            c.PyObject_GC_Track(object);
            py.decref(object);
            return err;
        };
    }
    c.PyObject_GC_Track(object);
    return object;
}

fn allocate(loop: *LoopFields, comptime kind: Kind) py.Error!*Object {
    const t = switch (kind) {
        .soon => loop.state.handle_type,
        .timer => loop.state.timer_handle_type,
    };
    const object = try py.check(c._PyObject_GC_New(t));
    // The base's own fields stay null for ever: ours stand in front of them.
    const bytes: [*]u8 = @ptrCast(object);
    @memset(bytes[@sizeOf(c.PyObject)..Layout.offset], 0);
    of(object).timer = .{};
    return object;
}

fn tupleOf(items: []const *Object) py.Error!*Object {
    const tuple = try py.check(c.PyTuple_New(@intCast(items.len)));
    for (items, 0..) |item, i| _ = c.PyTuple_SetItem(tuple, @intCast(i), py.newRef(item));
    return tuple;
}

/// Calls the callback in its context. The caller holds a reference to the handle.
pub inline fn call(object: *Object) py.Error!void {
    const self = of(object);
    const callback = self.callback orelse return;
    // cancel() from inside the callback empties the fields: keep what is being called.
    const context = py.newRef(self.context.?);
    defer py.decref(context);
    py.incref(callback);
    defer py.decref(callback);
    try py.checkInt(c.PyContext_Enter(context));
    const result = if (self.args_tuple) |tuple| result: {
        py.incref(tuple);
        defer py.decref(tuple);
        break :result c.PyObject_Call(callback, tuple, null);
    } else result: {
        const count = self.args_count;
        var stack: [args_inline_max + 1]?*Object = undefined;
        for (self.args[0..count], 1..) |arg, i| stack[i] = py.newRef(arg.?);
        defer for (stack[1..][0..count]) |arg| py.decref(arg.?);
        const offset: usize = @as(usize, 1) << (@bitSizeOf(usize) - 1);
        break :result c.PyObject_Vectorcall(callback, stack[1..].ptr, count | offset, null);
    };
    const exited = c.PyContext_Exit(context);
    const value = result orelse return error.Python;
    py.decref(value);
    try py.checkInt(exited);
}

/// Drops callback and arguments. Re-entrant: each field is empty before its reference goes.
fn release(self: *Fields) void {
    py.clear(&self.callback);
    const count = if (self.args_tuple == null) self.args_count else 0;
    self.args_count = 0;
    py.clear(&self.args_tuple);
    for (self.args[0..count]) |*arg| py.clear(arg);
}

fn cancel(object: *Object) py.Error!*Object {
    const self = of(object);
    if (self.cancelled) return py.newNone();
    self.cancelled = true;
    if (self.loop.debug) py.replace(&self.repr, try py.check(c.PyObject_Repr(object)));
    const was_set = self.timer.isSet();
    // The heap lets go before anything else can run; its reference is dropped last.
    if (was_set) self.loop.core.timers.remove(self.loop.core.gpa, &self.timer);
    self.scheduled = false;
    release(self);
    if (was_set) py.decref(object);
    return py.newNone();
}

fn dealloc(object: *Object) callconv(.c) void {
    const self = of(object);
    c.PyObject_GC_UnTrack(object);
    c.PyObject_ClearWeakRefs(object);
    release(self);
    py.clear(&self.context);
    py.clear(&self.when_object);
    py.clear(&self.source_traceback);
    py.clear(&self.repr);
    const loop = self.loop;
    const state = loop.state;
    const recycled = if (comptime py.can_recycle)
        (if (py.isExact(object, state.handle_type)) loop.free_handles.push(object) else loop.free_timer_handles.push(object))
    else
        false;
    if (!recycled) {
        const t: *Object = @ptrCast(py.typeOf(object));
        c.PyObject_GC_Del(object);
        py.decref(t);
    }
    // Last: this can be the loop's end, which empties the list the handle now waits on.
    py.decref(loop.object());
}

fn traverseFields(object: *Object, visitor: py.Visitor) error{Stop}!void {
    const self = of(object);
    try visitor.object(self.loop.object());
    try visitor.object(self.callback);
    try visitor.object(self.context);
    try visitor.object(self.args_tuple);
    if (self.args_tuple == null) for (self.args[0..self.args_count]) |arg| try visitor.object(arg);
    try visitor.object(self.when_object);
    try visitor.object(self.source_traceback);
    try visitor.object(self.repr);
}

fn clearFields(object: *Object) callconv(.c) c_int {
    const self = of(object);
    release(self);
    py.clear(&self.context);
    py.clear(&self.source_traceback);
    py.clear(&self.repr);
    return 0;
}

fn orNone(reference: ?*Object) *Object {
    return py.newRef(reference orelse py.none());
}

fn getCallback(object: *Object) py.Error!*Object {
    return orNone(of(object).callback);
}

fn getArgs(object: *Object) py.Error!*Object {
    const self = of(object);
    if (self.cancelled) return py.newNone();
    if (self.args_tuple) |tuple| return py.newRef(tuple);
    var items: [args_inline_max]*Object = undefined;
    for (self.args[0..self.args_count], 0..) |arg, i| items[i] = arg.?;
    return tupleOf(items[0..self.args_count]);
}

fn getContext(object: *Object) py.Error!*Object {
    return orNone(of(object).context);
}

fn getLoop(object: *Object) py.Error!*Object {
    return py.newRef(of(object).loop.object());
}

fn getCancelled(object: *Object) py.Error!*Object {
    return py.newBool(of(object).cancelled);
}

fn getSourceTraceback(object: *Object) py.Error!*Object {
    return orNone(of(object).source_traceback);
}

fn setSourceTraceback(object: *Object, value: ?*Object) py.Error!void {
    const kept = if (value) |v| (if (v == py.none()) null else py.newRef(v)) else null;
    py.replace(&of(object).source_traceback, kept);
}

fn getRepr(object: *Object) py.Error!*Object {
    return orNone(of(object).repr);
}

fn getScheduled(object: *Object) py.Error!*Object {
    return py.newBool(of(object).scheduled);
}

fn getWhen(object: *Object) py.Error!*Object {
    const self = of(object);
    if (self.when_object) |when| return py.newRef(when);
    return py.newFloat(self.when);
}

const methods = [_]c.PyMethodDef{
    py.Method.noArgs("cancel", cancel, "cancel($self)\n--\n\nasyncio.Handle.cancel(): the callback will not run."),
    py.Method.noArgs("cancelled", getCancelled, "cancelled($self)\n--\n\nasyncio.Handle.cancelled()."),
    py.Method.noArgs("get_context", getContext, "get_context($self)\n--\n\nasyncio.Handle.get_context()."),
    .{},
};

const timer_methods = [_]c.PyMethodDef{
    py.Method.noArgs("cancel", cancel, "cancel($self)\n--\n\nasyncio.TimerHandle.cancel(): the callback will not run."),
    py.Method.noArgs("cancelled", getCancelled, "cancelled($self)\n--\n\nasyncio.Handle.cancelled()."),
    py.Method.noArgs("get_context", getContext, "get_context($self)\n--\n\nasyncio.Handle.get_context()."),
    py.Method.noArgs("when", getWhen, "when($self)\n--\n\nasyncio.TimerHandle.when(): the time it is due, in seconds of loop.time()."),
    .{},
};

const shared_properties = [_]c.PyGetSetDef{
    py.getter("_callback", getCallback),
    py.getter("_args", getArgs),
    py.getter("_context", getContext),
    py.getter("_loop", getLoop),
    py.getter("_cancelled", getCancelled),
    py.property("_source_traceback", getSourceTraceback, setSourceTraceback),
    py.getter("_repr", getRepr),
};

const properties = shared_properties ++ [_]c.PyGetSetDef{.{}};
const timer_properties = shared_properties ++ [_]c.PyGetSetDef{
    py.getter("_when", getWhen),
    py.getter("_scheduled", getScheduled),
    .{},
};

fn slotsOf(comptime method_table: []const c.PyMethodDef, comptime property_table: []const c.PyGetSetDef) [6]c.PyType_Slot {
    return .{
        .{ .slot = c.Py_tp_dealloc, .pfunc = @ptrCast(&dealloc) },
        .{ .slot = c.Py_tp_traverse, .pfunc = py.traverse(traverseFields) },
        .{ .slot = c.Py_tp_clear, .pfunc = @ptrCast(&clearFields) },
        .{ .slot = c.Py_tp_methods, .pfunc = @ptrCast(method_table.ptr) },
        .{ .slot = c.Py_tp_getset, .pfunc = @ptrCast(property_table.ptr) },
        .{},
    };
}

const flags = c.Py_TPFLAGS_DEFAULT | c.Py_TPFLAGS_HAVE_GC | c.Py_TPFLAGS_DISALLOW_INSTANTIATION;
const slots = slotsOf(&methods, &properties);
const timer_slots = slotsOf(&timer_methods, &timer_properties);

pub const spec: c.PyType_Spec = .{ .name = "zloop._engine.Handle", .basicsize = Layout.size, .flags = flags, .slots = &slots };
pub const timer_spec: c.PyType_Spec = .{ .name = "zloop._engine.TimerHandle", .basicsize = Layout.size, .flags = flags, .slots = &timer_slots };
