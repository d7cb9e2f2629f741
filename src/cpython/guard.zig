//! Who may touch a loop's native state when there is no GIL: whoever is inside the loop's critical section.
//!
//! With a GIL native code runs alone until it calls Python. Here the same holds for the code of one loop: every
//! method, property and slot of the loop, its handles and its transports runs inside a critical section of the loop
//! object, which `heap_type.zig` puts around each. The interpreter suspends a section while its thread waits for
//! anything (a lock, a system call, another section) and resumes it afterwards. So another thread can get in
//! wherever code calls Python, and nowhere else, which is the rule that all code here follows anyway.
//!
//! The run of a loop is one long call inside the section. It leaves the section around callbacks (`leave`), so that
//! other threads need not wait until one has ended. What other threads may call while the loop computes
//! (`call_soon_threadsafe`, `is_running`, …) takes no section: see `Guard.open`.
//!
//! Builds with a GIL have none of this.

const c = @import("c.zig");
const config = @import("config");
const py = @import("py.zig");

const Object = py.Object;

pub const enabled = config.gil_disabled;

/// How a type's objects are guarded.
pub const Guard = struct {
    /// The loop object that an object belongs to; null while it is being made.
    loop_of: fn (*Object) ?*Object,
    /// Methods, properties and slots that take no section: they touch single words or are safe by other means.
    open: []const []const u8 = &.{},
};

/// Of a type whose own functions touch nothing of a loop's.
pub const none: Guard = .{ .loop_of = noLoop };

fn noLoop(_: *Object) ?*Object {
    return null;
}

/// Of a type whose fields have a `loop`.
pub fn byLoop(comptime Layout: type) Guard {
    const Find = struct {
        fn loopOf(object: *Object) ?*Object {
            const field = &Layout.of(object).loop;
            // Zero until the object has been made.
            if (@as(*const usize, @ptrCast(field)).* == 0) return null;
            return field.*.object();
        }
    };
    return .{ .loop_of = Find.loopOf };
}

/// `PyCriticalSection`, on the stack of whoever is inside. Sections of a thread form a list, the latest first.
pub const Section = extern struct {
    /// The next outer section; its low bits are the interpreter's marks.
    outer: usize = 0,
    /// Null if the section was not entered, because this thread was inside already.
    mutex: ?*u8 = null,

    pub inline fn enter(self: *Section, loop: *Object) void {
        if (innermost(loop) != null) return;
        c.PyCriticalSection_Begin(self, loop);
    }

    pub inline fn exit(self: *Section) void {
        if (self.mutex != null) c.PyCriticalSection_End(self);
    }
};

/// PyThreadState.critical_section, see `layout.zig`.
const innermost_offset = if (config.py_minor >= 15) 200 else 176;

/// This thread's latest section if it is the loop's. The latest is the only one that is sure to be held.
inline fn innermost(loop: *Object) ?*Section {
    const thread: [*]const u8 = @ptrCast(c.PyThreadState_Get());
    const latest = @as(*const usize, @ptrCast(@alignCast(thread + innermost_offset))).*;
    if (latest == 0 or latest & 3 != 0) return null;
    const section: *Section = @ptrFromInt(latest);
    return if (section.mutex == &loop.ob_mutex) section else null;
}

/// The section that a thread has left for the time of a callback.
pub const Left = struct {
    section: ?*Section,

    pub inline fn comeBack(self: Left, loop: *Object) void {
        if (self.section) |section| c.PyCriticalSection_Begin(section, loop);
    }
};

pub inline fn leave(loop: *Object) Left {
    const section = innermost(loop);
    if (section) |left| c.PyCriticalSection_End(left);
    return .{ .section = section };
}

/// Whether the interpreter keeps its sections where this file looks for them.
pub fn layoutIsKnown() py.Error!bool {
    const object = try py.check(c.PyList_New(0));
    defer py.decref(object);
    var section: Section = .{};
    c.PyCriticalSection_Begin(&section, object);
    const found = innermost(object);
    c.PyCriticalSection_End(&section);
    return found == &section and innermost(object) == null;
}
