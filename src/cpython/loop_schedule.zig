//! Scheduling: call_soon, call_soon_threadsafe, call_later, call_at.

const config = @import("config");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const args = @import("args.zig");
const raise = @import("raise.zig");
const handle = @import("handle.zig");
const loop_time = @import("loop_time.zig");
const loop_type = @import("loop_type.zig");
const State = @import("state.zig").State;

const Object = py.Object;
const LoopFields = loop_type.Fields;

fn callSoon(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    return callNextTurn(object, argv, names, .{ .method = "call_soon", .kind = .soon, .any_thread = false });
}

fn callSoonThreadsafe(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    return callNextTurn(object, argv, names, .{ .method = "call_soon_threadsafe", .kind = handle.threadsafe_kind, .any_thread = true });
}

const NextTurn = struct { method: [:0]const u8, kind: handle.Kind, any_thread: bool };

inline fn callNextTurn(object: *Object, argv: []const *Object, names: ?*Object, comptime how: NextTurn) py.Error!*Object {
    const loop = loop_type.of(object);
    const parsed = try args.Callback.parse(how.method, null, argv, names, loop.state.name(.context));
    try loop.checkClosed();
    if (loop.debug) try checkCall(loop, parsed.callback, how.method, !how.any_thread);
    const scheduled = try handle.create(loop, how.kind, parsed);
    errdefer py.decref(scheduled);
    if (loop.debug) try recordSource(loop, scheduled);
    py.incref(scheduled);
    const posted = if (how.any_thread) postFromAnyThread(loop, scheduled) else loop.core.post(.ofHandle(scheduled));
    posted catch |err| {
        py.decref(scheduled);
        return raise.fromCore(err);
    };
    return scheduled;
}

/// With a GIL whoever holds it may touch the queue, which the loop leaves alone while it waits. Without one it is handed
/// over by way of the inbox, for which nobody has to be inside the loop's section.
inline fn postFromAnyThread(loop: *LoopFields, scheduled: *Object) core.PushError!void {
    if (comptime config.gil_disabled) return loop.core.postThreadsafe(.ofHandle(scheduled));
    try loop.core.post(.ofHandle(scheduled));
    loop.core.wake();
}

fn callLater(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const loop = loop_type.of(object);
    const parsed = try args.Callback.parse("call_later", "delay", argv, names, loop.state.name(.context));
    const delay = parsed.leading.?;
    if (delay == py.none()) return py.raise(c.PyExc_TypeError, "delay must not be None");
    if (loop_time.isOverridden(loop)) return callAfter(loop, parsed, delay);
    const seconds = c.PyFloat_AsDouble(delay);
    if (seconds == -1 and c.PyErr_Occurred() != null) return error.Python;
    const when = core.clock.toSeconds(core.clock.nowNs()) + seconds;
    return schedule(loop, parsed, when, null);
}

/// By a `time()` of the program's own.
fn callAfter(loop: *LoopFields, parsed: args.Callback, delay: *Object) py.Error!*Object {
    const due = try loop_time.after(loop, delay);
    defer py.decref(due);
    const when = c.PyFloat_AsDouble(due);
    if (when == -1 and c.PyErr_Occurred() != null) return error.Python;
    return schedule(loop, parsed, when, due);
}

fn callAt(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const loop = loop_type.of(object);
    const parsed = try args.Callback.parse("call_at", "when", argv, names, loop.state.name(.context));
    const given = parsed.leading.?;
    if (given == py.none()) return py.raise(c.PyExc_TypeError, "when cannot be None");
    const when = c.PyFloat_AsDouble(given);
    if (when == -1 and c.PyErr_Occurred() != null) return error.Python;
    return schedule(loop, parsed, when, given);
}

fn schedule(loop: *LoopFields, parsed: args.Callback, when: f64, when_object: ?*Object) py.Error!*Object {
    try loop.checkClosed();
    // asyncio's call_later checks by way of call_at, and names that one.
    if (loop.debug) try checkCall(loop, parsed.callback, "call_at", true);
    const scheduled = try handle.create(loop, .timer, parsed);
    errdefer py.decref(scheduled);
    const fields = handle.timerOf(scheduled);
    fields.when = when;
    if (when_object) |given| fields.when_object = py.newRef(given);
    if (loop.debug) try recordSource(loop, scheduled);
    // asyncio finds a NaN due at once: it compares as not later than anything.
    const deadline_ns = if (when != when) 0 else core.clock.fromSecondsCeil(when);
    loop.core.timers.push(loop.core.gpa, &fields.timer, deadline_ns) catch |err| return raise.fromCore(err);
    // The heap's reference.
    return py.newRef(scheduled);
}

fn wrongThread() py.Error {
    return py.raise(c.PyExc_RuntimeError, "Non-thread-safe operation invoked on an event loop other than the current one");
}

/// Debug mode: the thread and the kind of callback, with asyncio's messages.
fn checkCall(loop: *LoopFields, callback: *Object, comptime method: [:0]const u8, comptime check_thread: bool) py.Error!void {
    @branchHint(.cold);
    if (check_thread and loop.isForeignThread()) return wrongThread();
    const name = try py.check(c.PyUnicode_FromString(method));
    defer py.decref(name);
    py.decref(try py.callMethod(loop.object(), loop.state.name(._check_callback), .{ callback, name }));
}

/// Debug mode: where the handle was made. No Python frame lies between the caller and here.
fn recordSource(loop: *LoopFields, scheduled: *Object) py.Error!void {
    @branchHint(.cold);
    const stack = try py.callMethod(loop.object(), loop.state.name(._extract_stack), .{});
    handle.of(scheduled).source_traceback = stack;
}

pub const methods = [_]c.PyMethodDef{
    py.Method.keywords("call_soon", callSoon, "call_soon($self, callback, *args, context=None)\n--\n\nasyncio.loop.call_soon()."),
    py.Method.keywords("call_soon_threadsafe", callSoonThreadsafe, "call_soon_threadsafe($self, callback, *args, context=None)\n--\n\nasyncio.loop.call_soon_threadsafe()."),
    py.Method.keywords("call_later", callLater, "call_later($self, delay, callback, *args, context=None)\n--\n\nasyncio.loop.call_later(); the delay in seconds."),
    py.Method.keywords("call_at", callAt, "call_at($self, when, callback, *args, context=None)\n--\n\nasyncio.loop.call_at(); the time in seconds of loop.time()."),
};
