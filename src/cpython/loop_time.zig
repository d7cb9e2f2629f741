//! The clock that a loop's timers go by: the system's, read natively, or the program's own.
//!
//! A subclass may override `time()`, and a test may put a function in its place on one loop or on the
//! class. asyncio schedules and fires by whatever `self.time()` returns, so virtual clocks work; here a
//! flag says whether that method has to be asked, and a loop with the usual clock pays for looking at it.
//! Loop's thread.

const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const loop_type = @import("loop_type.zig");

const Object = py.Object;
const LoopFields = loop_type.Fields;

/// Whose `time()` a loop has.
pub const Clock = packed struct {
    of_class: bool = false,
    of_instance: bool = false,

    pub inline fn isOverridden(self: Clock) bool {
        return @as(u2, @bitCast(self)) != 0;
    }
};

/// Looks whether the class has a `time()` of its own: when a loop is made and at the start of each run.
pub fn lookAtClass(loop: *LoopFields) py.Error!void {
    const t: *Object = @ptrCast(py.typeOf(loop.object()));
    const found = try py.getAttr(t, loop.state.name(.time));
    defer py.decref(found);
    loop.clock.of_class = found != loop.state.loop_time;
}

/// `tp_setattro`: notices a `time` that is put on this very loop, or taken away again.
pub fn setAttribute(object: *Object, name: *Object, value: ?*Object) callconv(.c) c_int {
    const result = c.PyObject_GenericSetAttr(object, name, value);
    const loop = loop_type.of(object);
    if (result == 0 and py.isInstance(name, &c.PyUnicode_Type) and c.PyUnicode_CompareWithASCIIString(name, "time") == 0) {
        loop.clock.of_instance = value != null;
    }
    return result;
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
