//! The core's errors as Python exceptions.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");

/// Sets the OSError of `errno`, in the subclass Python gives it (ConnectionResetError, …).
pub fn errno(code: core.sys.Errno) py.Error {
    std.c._errno().* = @intCast(@backingInt(code));
    _ = c.PyErr_SetFromErrno(c.PyExc_OSError);
    return error.Python;
}

/// What the core's loop and watches can fail with.
pub fn fromCore(err: anyerror) py.Error {
    return switch (err) {
        error.Python => error.Python,
        error.OutOfMemory, error.SystemResources => py.noMemory(),
        error.BadDescriptor => errno(.BADF),
        error.NotPollable => errno(.PERM),
        error.ProcessFdQuotaExceeded => errno(.MFILE),
        error.SystemFdQuotaExceeded => errno(.NFILE),
        error.Occupied => errno(.EXIST),
        error.Closed => py.raise(c.PyExc_RuntimeError, closed_message),
        error.Forked => py.raise(c.PyExc_RuntimeError, forked_message),
        else => py.raiseFormat(c.PyExc_OSError, "event loop: unexpected system error (%s)", .{@errorName(err).ptr}),
    };
}

pub const closed_message = "Event loop is closed";
pub const forked_message = "this event loop belongs to the parent process: a fork()ed child must make a new one";
