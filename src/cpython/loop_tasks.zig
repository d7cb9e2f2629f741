//! create_future and create_task. Futures and tasks are asyncio's own; this is the shortest way to
//! them.
//!
//! asyncio's types in C take their arguments as a tuple and a dict. The dicts, {"loop": loop} and the one of
//! eager tasks, are made once for a run and go when it ends: they refer to the loop that keeps them.

const c = @import("c.zig");
const config = @import("config");
const guard = @import("guard.zig");
const py = @import("py.zig");
const loop_type = @import("loop_type.zig");
const State = @import("state.zig").State;

const Object = py.Object;
const LoopFields = loop_type.Fields;

/// Keyword arguments of one call; more take the ordinary way.
const keyword_count_max = 6;

/// Looked up at each call, as asyncio does: programs replace these classes.
fn classOf(module: *Object, name: *Object) py.Error!*Object {
    if (c.PyDict_GetItemWithError(c.PyModule_GetDict(module), name)) |class| return py.newRef(class);
    c.PyErr_Clear();
    return py.getAttr(module, name);
}

/// A loop's dicts of keyword arguments.
pub const Keywords = struct {
    plain: ?*Object = null,
    eager: ?*Object = null,

    pub fn drop(self: *Keywords) void {
        py.clear(&self.plain);
        py.clear(&self.eager);
    }

    /// A new reference, for the call can end the run; null outside of one, and without a GIL in another thread.
    inline fn get(loop: *LoopFields, comptime kind: enum { plain, eager }) py.Error!?*Object {
        if (comptime config.gil_disabled) if (loop.isForeignThread()) return null;
        const field = &@field(loop.task_keywords, @tagName(kind));
        if (field.* == null) {
            if (loop.thread_id == 0) return null;
            py.replace(field, try make(loop, kind == .eager));
        }
        return py.newRef(field.*.?);
    }

    fn make(loop: *LoopFields, eager: bool) py.Error!*Object {
        const made = try py.check(c.PyDict_New());
        errdefer py.decref(made);
        try py.checkInt(c.PyDict_SetItem(made, loop.state.name(.loop), loop.object()));
        if (eager) try py.checkInt(c.PyDict_SetItem(made, loop.state.name(.eager_start), py.boolBorrowed(true)));
        return made;
    }
};

pub fn newFuture(loop: *LoopFields) py.Error!*Object {
    const state = loop.state;
    const class = try classOf(state.futures_module, state.name(.Future));
    defer py.decref(class);
    if (class == state.future_type) if (try Keywords.get(loop, .plain)) |keywords| {
        defer py.decref(keywords);
        return py.check(c.PyObject_Call(class, state.no_arguments, keywords));
    };
    const stack = [_]?*Object{ null, loop.object() };
    return py.check(c.PyObject_Vectorcall(class, stack[1..].ptr, py.arguments_offset, state.loop_kwnames));
}

fn createFuture(object: *Object) py.Error!*Object {
    return newFuture(loop_type.of(object));
}

/// create_task() takes no section: an eager task runs in it.
inline fn takeFactory(loop: *LoopFields) ?*Object {
    if (comptime !guard.enabled) return py.newRef(loop.task_factory orelse return null);
    var section: guard.Section = .{};
    section.enter(loop.object());
    defer section.exit();
    return py.newRef(loop.task_factory orelse return null);
}

fn createTask(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const loop = loop_type.of(object);
    const keyword_count = if (names) |n| py.tupleSize(n) else 0;
    if (argv.len != 1 + keyword_count or keyword_count > keyword_count_max) return inherited(loop, argv, names);
    const coroutine_only = areDefaults(loop.state, argv[1..], names);
    const factory_may_get_keywords = config.py_minor >= 14 and keyword_count > 0;
    const is_known = !loop.patched.create_task;
    if (is_known) if (takeFactory(loop)) |factory| {
        defer py.decref(factory);
        return if (coroutine_only and !factory_may_get_keywords) byFactory(loop, factory, argv[0]) else inherited(loop, argv, names);
    };
    if (loop.debug or !is_known) return inherited(loop, argv, names);
    try loop.checkClosed();
    const state = loop.state;
    const class = try classOf(state.tasks_module, state.name(.Task));
    defer py.decref(class);
    if (coroutine_only and class == state.task_type) if (try Keywords.get(loop, .plain)) |keywords| {
        return makeTask(state, argv[0], keywords);
    };
    const all_names = if (names) |n| try withLoop(state, n) else py.newRef(state.loop_kwnames);
    defer py.decref(all_names);
    var stack: [keyword_count_max + 3]?*Object = undefined;
    stack[0] = null;
    for (argv, 1..) |arg, i| stack[i] = arg;
    stack[argv.len + 1] = object;
    return py.check(c.PyObject_Vectorcall(class, stack[1..].ptr, 1 | py.arguments_offset, all_names));
}

/// Takes the reference to `keywords` over.
fn makeTask(state: *State, coroutine: *Object, keywords: *Object) py.Error!*Object {
    defer py.decref(keywords);
    const arguments = try py.newTuple(.{coroutine});
    defer py.decref(arguments);
    return py.check(c.PyObject_Call(state.task_type, arguments, keywords));
}

/// Whether the keywords say what leaving them out says; asyncio.TaskGroup passes them on like that.
fn areDefaults(state: *State, values: []const *Object, names: ?*Object) bool {
    for (values, 0..) |value, i| {
        const name = py.tupleItemBorrowed(names.?, @intCast(i));
        const known = name == state.name(.name) or (config.py_minor >= 11 and name == state.name(.context));
        if (!known or value != py.none()) return false;
    }
    return true;
}

/// What the inherited method does with a coroutine and nothing else. Since 3.14 factories get the keywords as
/// they are, so there the inherited one is asked as soon as there are any.
fn byFactory(loop: *LoopFields, factory: *Object, coroutine: *Object) py.Error!*Object {
    try loop.checkClosed();
    const state = loop.state;
    const task = try callFactory(loop, factory, coroutine);
    errdefer py.decref(task);
    // 3.13 gives the name in any case, earlier ones only if there is one.
    if (comptime config.py_minor == 13) {
        const name = if (@as(*Object, @ptrCast(py.typeOf(task))) == state.task_type) state.name(.None) else py.none();
        py.decref(try py.callMethod(task, state.name(.set_name), .{name}));
    }
    return task;
}

fn callFactory(loop: *LoopFields, factory: *Object, coroutine: *Object) py.Error!*Object {
    const state = loop.state;
    // asyncio's own is a function in Python that does this.
    if (factory == state.eager_task_factory) if (try Keywords.get(loop, .eager)) |keywords| {
        return makeTask(state, coroutine, keywords);
    };
    const stack = [_]?*Object{ null, loop.object(), coroutine };
    return py.check(c.PyObject_Vectorcall(factory, stack[1..].ptr, 2 | py.arguments_offset, null));
}

/// `names` with "loop" behind them.
fn withLoop(state: *State, names: *Object) py.Error!*Object {
    const count = py.tupleSize(names);
    if (count == 1 and py.tupleItemBorrowed(names, 0) == state.name(.name)) return py.newRef(state.name_loop_kwnames);
    const all = try py.check(c.PyTuple_New(@intCast(count + 1)));
    for (0..count) |i| _ = c.PyTuple_SetItem(all, @intCast(i), py.newRef(py.tupleItemBorrowed(names, i)));
    _ = c.PyTuple_SetItem(all, @intCast(count), py.newRef(state.name(.loop)));
    return all;
}

/// asyncio's own method: task factories, debug mode, and its errors for bad arguments.
fn inherited(loop: *LoopFields, argv: []const *Object, names: ?*Object) py.Error!*Object {
    var few: [keyword_count_max + 2]?*Object = undefined;
    const stack = if (argv.len < few.len) few[0 .. argv.len + 1] else loop_type.gpa.alloc(?*Object, argv.len + 1) catch return py.noMemory();
    defer if (stack.ptr != &few) loop_type.gpa.free(stack);
    stack[0] = loop.object();
    for (argv, stack[1..]) |arg, *place| place.* = arg;
    const keyword_count = if (names) |n| py.tupleSize(n) else 0;
    const state = loop.state;
    const function = try py.getAttr(state.selector_loop_class, state.name(.create_task));
    defer py.decref(function);
    return py.check(c.PyObject_Vectorcall(function, stack.ptr, stack.len - keyword_count, names));
}

fn getTaskFactory(object: *Object) py.Error!*Object {
    return py.newRef(loop_type.of(object).task_factory orelse py.none());
}

fn setTaskFactory(object: *Object, value: ?*Object) py.Error!void {
    const kept = if (value) |v| (if (v == py.none()) null else py.newRef(v)) else null;
    py.replace(&loop_type.of(object).task_factory, kept);
}

pub const properties = [_]c.PyGetSetDef{
    py.property("_task_factory", getTaskFactory, setTaskFactory),
};

/// The signature is the one of the running version's own method; of 3.13, whose patch releases differ, the last.
const create_task_doc = if (@import("config").py_minor >= 14)
    "create_task($self, coro, **kwargs)\n--\n\nasyncio.loop.create_task()."
else if (@import("config").py_minor == 13)
    "create_task($self, coro, *, name=None, context=None, **kwargs)\n--\n\nasyncio.loop.create_task()."
else if (@import("config").py_minor >= 11)
    "create_task($self, coro, *, name=None, context=None)\n--\n\nasyncio.loop.create_task()."
else
    "create_task($self, coro, *, name=None)\n--\n\nasyncio.loop.create_task().";

pub const methods = [_]c.PyMethodDef{
    py.Method.noArgs("create_future", createFuture, "create_future($self)\n--\n\nasyncio.loop.create_future()."),
    py.Method.keywords("create_task", createTask, create_task_doc),
};
