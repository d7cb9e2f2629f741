//! The clock that a loop's timers go by: the system's, read natively, or the program's own.
//!
//! A subclass may override `time()`, a test may put a function in its place on one loop or on a class, and tools
//! that move clocks (freezegun) replace `time.monotonic`, which asyncio's `time()` looks up in its module at each call.
//! asyncio schedules and fires by whatever `self.time()` returns, so virtual clocks work; here flags say whether that
//! method has to be asked, and a loop with the usual clock pays for looking at them.
//!
//! Of changes in module time the interpreter tells: by a dict's version before 3.12, by a watcher since.
//! Loop's thread, but for the count of changes.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const config = @import("config");
const py = @import("py.zig");
const loop_type = @import("loop_type.zig");
const State = @import("state.zig").State;

const Object = py.Object;
const LoopFields = loop_type.Fields;

/// Whose `time()` a loop has.
pub const Clock = struct {
    /// What was seen of `changesNow`.
    seen_changes: Changes = unseen,
    flags: Flags = .{},

    const Flags = packed struct {
        of_class: bool = false,
        of_instance: bool = false,
        /// asyncio's own class has another `time()` than at import.
        of_asyncio: bool = false,
        /// `time.monotonic` is not the interpreter's.
        of_module: bool = false,
    };
};

/// What watchers count, in a word that any machine adds to at once, or the version that a dict has.
const Changes = if (watchable) usize else u64;

const unseen = std.math.maxInt(Changes);

/// Whether `self.time()` has to be asked.
pub inline fn isOverridden(loop: *LoopFields) bool {
    lookAtModule(loop);
    return @as(u4, @bitCast(loop.clock.flags)) != 0;
}

/// Whether the native base's `time()` has to ask asyncio's.
pub inline fn isAsyncios(loop: *LoopFields) bool {
    lookAtModule(loop);
    return loop.clock.flags.of_asyncio or loop.clock.flags.of_module;
}

inline fn lookAtModule(loop: *LoopFields) void {
    const changes = changesNow(loop.state);
    if (changes != loop.clock.seen_changes) look(loop, changes);
}

fn look(loop: *LoopFields, changes: Changes) void {
    @branchHint(.cold);
    loop.clock.seen_changes = changes;
    loop.clock.flags.of_module = !isInterpreters(loop.state);
}

const watchable = config.py_minor >= 12;

/// Of the process: each interpreter has its own module, and looks at it again when any of them has changed.
var changes_seen_by_watchers: std.atomic.Value(Changes) = .init(0);

/// PyDictObject.ma_version_tag, before 3.12.
const version_offset = @offsetOf(extern struct { head: c.PyObject, used: isize, version: u64 }, "version");

inline fn changesNow(state: *const State) Changes {
    if (comptime !watchable) {
        if (!state.knows_time) return 0;
        const bytes: [*]const u8 = @ptrCast(state.time_dict);
        return @as(*const u64, @ptrCast(@alignCast(bytes + version_offset))).*;
    }
    // All watchers may be taken: then each look is at the dict.
    if (state.time_watcher < 0) _ = changes_seen_by_watchers.fetchAdd(1, .monotonic);
    return changes_seen_by_watchers.load(.monotonic);
}

fn noteChange(_: c_int, _: *Object, _: ?*Object, _: ?*Object) callconv(.c) c_int {
    _ = changes_seen_by_watchers.fetchAdd(1, .monotonic);
    return 0;
}

pub fn watchModule(state: *State) py.Error!void {
    state.time_watcher = -1;
    state.knows_time = true;
    if (comptime !watchable) return;
    state.time_watcher = c.PyDict_AddWatcher(&noteChange);
    if (state.time_watcher < 0) return c.PyErr_Clear();
    try py.checkInt(c.PyDict_Watch(state.time_watcher, state.time_dict));
}

/// When our own module goes, before its objects do.
pub fn unwatchModule(state: *State) void {
    if (!state.knows_time) return;
    state.knows_time = false;
    if (comptime !watchable) return;
    if (state.time_watcher < 0) return;
    const saved: py.Saved = .save();
    defer saved.restore();
    if (c.PyDict_Unwatch(state.time_watcher, state.time_dict) < 0) c.PyErr_Clear();
    if (c.PyDict_ClearWatcher(state.time_watcher) < 0) c.PyErr_Clear();
    state.time_watcher = -1;
}

fn isInterpreters(state: *State) bool {
    if (!state.knows_time) return true;
    const found = c.PyDict_GetItemWithError(state.time_dict, state.name(.monotonic)) orelse {
        c.PyErr_Clear();
        return false;
    };
    return isMonotonic(state, found);
}

/// Told by what it is, not by identity: a tool can have replaced it before zloop was imported.
fn isMonotonic(state: *State, function: *Object) bool {
    if (!py.isExact(function, &c.PyCFunction_Type) or c.PyCFunction_GetSelf(function) != state.time_module) return false;
    const method: *const *const c.PyMethodDef = @ptrCast(@alignCast(@as([*]const u8, @ptrCast(function)) + @sizeOf(c.PyObject)));
    return std.mem.eql(u8, std.mem.span(method.*.ml_name orelse return false), "monotonic");
}

/// Looks whether the classes have a `time()` of their own: when a loop is made and at the start of each run.
pub fn lookAtClass(loop: *LoopFields) py.Error!void {
    const name = loop.state.name(.time);
    const own = try py.getAttr(@ptrCast(py.typeOf(loop.object())), name);
    defer py.decref(own);
    loop.clock.flags.of_class = own != loop.state.loop_time;
    const asyncios = try py.getAttr(loop.state.selector_loop_class, name);
    defer py.decref(asyncios);
    loop.clock.flags.of_asyncio = asyncios != loop.state.asyncio_time;
}

/// `tp_setattro`: notices a `time` that is put on this very loop, or taken away again, and another class.
/// The interpreter's own `time.monotonic` is what a loop goes by anyway.
pub fn setAttribute(object: *Object, name: *Object, value: ?*Object) callconv(.c) c_int {
    const result = c.PyObject_GenericSetAttr(object, name, value);
    if (result < 0 or !py.isInstance(name, &c.PyUnicode_Type)) return result;
    const loop = loop_type.of(object);
    if (c.PyUnicode_CompareWithASCIIString(name, "time") == 0) {
        loop.clock.flags.of_instance = if (value) |function| !isMonotonic(loop.state, function) else false;
    } else if (c.PyUnicode_CompareWithASCIIString(name, "__class__") == 0) {
        return py.returnedInt(lookAtClass(loop));
    }
    return result;
}

/// `time()` of the native base.
pub fn time(object: *Object) py.Error!*Object {
    const loop = loop_type.of(object);
    if (!isAsyncios(loop)) return py.newFloat(core.clock.toSeconds(core.clock.nowNs()));
    const asyncios = try py.getAttr(loop.state.selector_loop_class, loop.state.name(.time));
    defer py.decref(asyncios);
    return py.call(asyncios, .{object});
}

/// What `loop.time()` returns, as it is.
fn ask(loop: *LoopFields) py.Error!*Object {
    return py.callMethod(loop.object(), loop.state.name(.time), .{});
}

/// Now, by the overridden clock, as the heap of timers counts.
pub fn nowNs(loop: *LoopFields) py.Error!u64 {
    @branchHint(.cold);
    const now = try ask(loop);
    defer py.decref(now);
    const seconds = c.PyFloat_AsDouble(now);
    if (seconds == -1 and c.PyErr_Occurred() != null) return error.Python;
    // asyncio finds everything due at NaN: nothing compares as later.
    return if (seconds != seconds) core.clock.end_of_time_ns else core.clock.fromSecondsCeil(seconds);
}

/// `self.time() + delay`, by the overridden clock.
pub fn after(loop: *LoopFields, delay: *Object) py.Error!*Object {
    @branchHint(.cold);
    const now = try ask(loop);
    defer py.decref(now);
    return py.check(c.PyNumber_Add(now, delay));
}
