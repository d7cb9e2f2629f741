//! Debug mode's way of running work: names what runs and reports what runs too long.

const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const handle = @import("handle.zig");
const LoopFields = @import("loop_type.zig").Fields;
const Work = @import("work.zig").Work;

pub fn run(loop: *LoopFields, work: Work) py.Error!void {
    const object = py.newRef(work.object());
    defer py.decref(object);
    const is_handle = work.kind() == .handle;
    if (is_handle) py.replace(&loop.current_handle, py.newRef(object));
    const start_ns = core.clock.nowNs();
    const result = loop.runPlain(work);
    const elapsed_ns = core.clock.nowNs() - start_ns;
    py.clear(&loop.current_handle);
    // The report needs to say what the callback was.
    defer if (is_handle) handle.afterCall(object);
    try result;
    const seconds = try py.newFloat(core.clock.toSeconds(elapsed_ns));
    defer py.decref(seconds);
    py.decref(try py.callMethod(loop.object(), loop.state.name(._slow_callback), .{ object, seconds }));
}

/// `logger.debug(format, object)` in debug mode.
pub fn log(loop: *LoopFields, comptime format: [:0]const u8, object: *py.Object) py.Error!void {
    if (!loop.debug) return;
    const text = try py.check(c.PyUnicode_FromString(format));
    defer py.decref(text);
    py.decref(try py.callMethod(loop.state.logger, loop.state.name(.debug), .{ text, object }));
}
