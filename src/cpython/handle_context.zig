//! The context a handle runs in: the given one, or a copy of the one that was current when it was made.
//!
//! Copies are made late. Handles made one after another in the same context share one copy, which nobody
//! enters, changes or sees. When one of them runs it gets a second copy for its own, and the next takes
//! that over unless something was set in it or somebody keeps it. So a burst of call_soon() costs two
//! contexts instead of one for each handle, and the garbage collector has none of them to look at. What a
//! program can see of a handle's context, in the callback or by get_context(), is the handle's own.
//!
//! Whether two contexts are equal shows in the immutable map they refer to, which is looked at in place.
//! Where it lies, and where a thread keeps its current context, is tried out at import (`layoutIsKnown`):
//! an interpreter that has them elsewhere gets a copy for each handle.
//!
//! Ownership: the loop holds both copies while it has work, and drops them before it waits.

const c = @import("c.zig");
const config = @import("config");
const py = @import("py.zig");
const State = @import("state.zig").State;

const Object = py.Object;

/// PyContext.ctx_vars.
const map_offset = @sizeOf(c.PyObject) + @sizeOf(usize);
/// PyThreadState.context.
const current_offset = switch (config.py_minor) {
    0...10 => 240,
    11 => 224,
    12...14 => 208,
    else => 232,
};

inline fn word(base: *const anyopaque, offset: usize) ?*anyopaque {
    const bytes: [*]const u8 = @ptrCast(base);
    return @as(*const ?*anyopaque, @ptrCast(@alignCast(bytes + offset))).*;
}

/// Null for a context that the garbage collector has emptied.
inline fn mapOf(context: *const anyopaque) ?*anyopaque {
    return word(context, map_offset);
}

/// Null for a thread that has not used contexts yet.
inline fn currentMap() ?*anyopaque {
    return mapOf(word(c.PyThreadState_Get(), current_offset) orelse return null);
}

/// Whether nothing is set in a context; false if that cannot be told.
pub inline fn isEmpty(state: *const State, context: *Object) bool {
    const empty_map = state.empty_context_map orelse return false;
    return py.isExact(context, &c.PyContext_Type) and mapOf(context) == empty_map;
}

/// The map of all contexts without variables, where contexts can be looked into.
pub fn emptyMap() py.Error!?*anyopaque {
    const empty = try py.check(c.PyContext_New());
    defer py.decref(empty);
    const other = try py.check(c.PyContext_New());
    defer py.decref(other);
    return if (mapOf(empty) == mapOf(other)) mapOf(empty) else null;
}

/// The current context itself where it can be had, and a copy where not.
pub inline fn current(state: *const State) py.Error!*Object {
    if (state.shares_contexts) if (word(c.PyThreadState_Get(), current_offset)) |context| return py.newRef(@ptrCast(@alignCast(context)));
    return py.check(c.PyContext_CopyCurrent());
}

pub const Shared = struct {
    /// Whether contexts may be shared at all; of no use where references are not counted in plain memory.
    enabled: bool,
    /// What the latest handles share.
    latest: ?*Object = null,
    /// What they run in, one after another.
    running: ?*Object = null,
    /// The map of the latest copy. Compared only, what it leads to can be gone: a context is shared from
    /// the second handle on.
    seen_map: ?*anyopaque = null,

    /// The loop is about to wait, or its run ends. Values can go with the contexts, and run Python code.
    pub fn drop(self: *Shared) void {
        self.seen_map = null;
        py.clear(&self.latest);
        py.clear(&self.running);
    }
};

pub const Copy = struct { context: *Object, is_shared: bool };

/// A copy of the current context for a new handle.
pub inline fn copyCurrent(shared: *Shared) py.Error!Copy {
    if (shared.latest) |latest| if (currentMap()) |map| if (map == mapOf(latest)) {
        return .{ .context = py.newRef(latest), .is_shared = true };
    };
    const copy = try py.check(c.PyContext_CopyCurrent());
    if (!shared.enabled) return .{ .context = copy, .is_shared = false };
    const seen = shared.seen_map == mapOf(copy);
    shared.seen_map = mapOf(copy);
    if (seen) py.replace(&shared.latest, py.newRef(copy));
    return .{ .context = copy, .is_shared = seen };
}

/// Makes the shared context in the field the handle's own, to run in. Finalizers can run in here, of what was set
/// in the context that goes, before 3.12 also those that the garbage collector finds; one that cancels the handle
/// empties the field.
pub inline fn take(shared: *Shared, field: *?*Object) py.Error!void {
    const context = field.* orelse return;
    // A program can have put anything there, by the slot of asyncio's class.
    const is_context = py.isExact(context, &c.PyContext_Type);
    if (shared.running) |copy| if (is_context and py.isUnique(copy) and mapOf(copy) == mapOf(context)) {
        field.* = py.newRef(copy);
        py.decref(context);
        return;
    };
    try own(field);
    if (field.*) |copy| py.replace(&shared.running, py.newRef(copy));
}

/// Makes the shared context in the field the handle's own. As `take`.
pub fn own(field: *?*Object) py.Error!void {
    const context = py.newRef(field.* orelse return);
    defer py.decref(context);
    const copy = try py.check(c.PyContext_Copy(context));
    if (field.* != context) return py.decref(copy);
    py.replace(field, copy);
}

/// Whether a context's map and a thread's context lie where this file looks for them: a copy has the map of
/// the original and another context has another, and the entered context is the current one.
pub fn layoutIsKnown() py.Error!bool {
    if (comptime config.gil_disabled or @sizeOf(usize) < 8) return false;
    const original = try py.check(c.PyContext_New());
    defer py.decref(original);
    const other = try py.check(c.PyContext_New());
    defer py.decref(other);
    const variable = try py.check(c.PyContextVar_New("zloop: layout of contexts", null));
    defer py.decref(variable);
    const thread = c.PyThreadState_Get();
    const before = word(thread, current_offset);
    try py.checkInt(c.PyContext_Enter(original));
    const during = word(thread, current_offset);
    const token = c.PyContextVar_Set(variable, py.none());
    try py.checkInt(c.PyContext_Exit(original));
    const after = word(thread, current_offset);
    py.decref(try py.check(token));
    if (during != @as(*anyopaque, original) or before == during or after != before) return false;
    const copy = try py.check(c.PyContext_Copy(original));
    defer py.decref(copy);
    const map = word(original, map_offset);
    return map != null and map == word(copy, map_offset) and map != word(other, map_offset);
}
