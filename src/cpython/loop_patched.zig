//! Functions of asyncio's that tools put theirs in the place of, where the engine does without calling them:
//! `Handle._run` (aiodebug, ddtrace) and the loop's `create_task`. Looked at when a loop is made and at the start of
//! each run; until then, and for all other programs, nothing is paid for them.
//!
//! A function counts as changed by its code: tools put another function there, or another code into the same function.

const c = @import("c.zig");
const py = @import("py.zig");
const loop_type = @import("loop_type.zig");
const State = @import("state.zig").State;

const Object = py.Object;

/// What a loop has seen.
pub const Patched = struct {
    /// What handles are run by; null for asyncio's own, whose work the engine does.
    handle_run: ?*Object = null,
    create_task: bool = false,
};

pub fn look(loop: *loop_type.Fields) py.Error!void {
    const state = loop.state;
    const run = try py.getAttr(state.handle_class, state.name(._run));
    defer py.decref(run);
    py.replace(&loop.patched.handle_run, if (codeOf(run) == state.handle_run_code) null else py.newRef(run));
    const create_task = try py.getAttr(state.selector_loop_class, state.name(.create_task));
    defer py.decref(create_task);
    loop.patched.create_task = codeOf(create_task) != state.create_task_code;
}

/// At import: their codes, or None for one that a tool has changed by then.
pub fn remember(state: *State) py.Error!void {
    state.handle_run_code = try codeAtImport(state.handle_class, "_run", "cancel");
    state.create_task_code = try codeAtImport(state.selector_loop_class, "create_task", "create_future");
}

fn codeAtImport(class: *Object, function_name: [*:0]const u8, neighbour_name: [*:0]const u8) py.Error!*Object {
    const function = try py.check(c.PyObject_GetAttrString(class, function_name));
    defer py.decref(function);
    const neighbour = try py.check(c.PyObject_GetAttrString(class, neighbour_name));
    defer py.decref(neighbour);
    const code = codeOf(function) orelse return py.newNone();
    const other = codeOf(neighbour) orelse return py.newNone();
    const file = try py.check(c.PyObject_GetAttrString(code, "co_filename"));
    defer py.decref(file);
    const other_file = try py.check(c.PyObject_GetAttrString(other, "co_filename"));
    defer py.decref(other_file);
    const same_file = c.PyObject_RichCompareBool(file, other_file, c.Py_EQ);
    if (same_file < 0) return error.Python;
    // ddtrace, which changes the code only, leaves a note on the function.
    const notes = try py.check(c.PyObject_GetAttrString(function, "__dict__"));
    defer py.decref(notes);
    return if (same_file == 1 and c.PyObject_Size(notes) == 0) py.newRef(code) else py.newNone();
}

/// Borrowed; null for what is no function in Python.
fn codeOf(function: *Object) ?*Object {
    return if (py.isExact(function, &c.PyFunction_Type)) c.PyFunction_GetCode(function) else null;
}
