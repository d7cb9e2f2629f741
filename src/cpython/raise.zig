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
        else => unexpected(core.sys.unexpected.call, core.sys.unexpected.errno),
    };
}

extern "c" fn strerror(code: c_int) [*:0]const u8;

/// As `errno`, for a call that no program knows of: the message names it.
fn unexpected(call: [:0]const u8, code: core.sys.Errno) py.Error {
    const reason = strerror(@intCast(@backingInt(code)));
    const message = try py.check(c.PyUnicode_FromFormat("event loop: %s: %s", call.ptr, reason));
    defer py.decref(message);
    const number = try py.newInt(@as(usize, @backingInt(code)));
    defer py.decref(number);
    const exception = try py.call(c.PyExc_OSError, .{ number, message });
    defer py.decref(exception);
    c.PyErr_SetObject(@ptrCast(py.typeOf(exception)), exception);
    return error.Python;
}

pub const closed_message = "Event loop is closed";
pub const forked_message = "this event loop belongs to the parent process: a fork()ed child must make a new one";
