//! create_future and create_task. Futures and tasks are asyncio's own; this is the shortest way to
//! them.

const c = @import("c.zig");
const py = @import("py.zig");
const loop_type = @import("loop_type.zig");
const State = @import("state.zig").State;

const Object = py.Object;
const LoopFields = loop_type.Fields;

/// Keyword arguments of one call; more take the ordinary way.
const keyword_count_max = 6;

/// Looked up at each call, as asyncio does: programs replace these classes.
fn classOf(module: *Object, name: *Object) py.Error!*Object {
    return py.getAttr(module, name);
}

pub fn newFuture(loop: *LoopFields) py.Error!*Object {
    const state = loop.state;
    const class = try classOf(state.futures_module, state.name(.Future));
    defer py.decref(class);
    const stack = [_]?*Object{ null, loop.object() };
    return py.check(c.PyObject_Vectorcall(class, stack[1..].ptr, py.arguments_offset, state.loop_kwnames));
}

fn createFuture(object: *Object) py.Error!*Object {
    return newFuture(loop_type.of(object));
}

fn createTask(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const loop = loop_type.of(object);
    const keyword_count = if (names) |n| py.tupleSize(n) else 0;
    const plain = loop.task_factory == null and !loop.debug and argv.len == 1 + keyword_count and keyword_count <= keyword_count_max;
    if (!plain) return inherited(loop, argv, names);
    try loop.checkClosed();
    const state = loop.state;
    const class = try classOf(state.tasks_module, state.name(.Task));
    defer py.decref(class);
    const all_names = if (names) |n| try withLoop(state, n) else py.newRef(state.loop_kwnames);
    defer py.decref(all_names);
    var stack: [keyword_count_max + 3]?*Object = undefined;
    stack[0] = null;
    for (argv, 1..) |arg, i| stack[i] = arg;
    stack[argv.len + 1] = object;
    return py.check(c.PyObject_Vectorcall(class, stack[1..].ptr, 1 | py.arguments_offset, all_names));
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
    return py.check(c.PyObject_Vectorcall(loop.state.inherited_create_task, stack.ptr, stack.len - keyword_count, names));
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
