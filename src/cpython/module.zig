//! `zloop._engine`: the extension module.
//!
//! Multi-phase initialisation; all state is per module instance, so each interpreter has its own
//! and no lock is shared between them.

const std = @import("std");
const builtin = @import("builtin");
const c = @import("c.zig");
const config = @import("config");
const py = @import("py.zig");
const loop_time = @import("loop_time.zig");
const handle_exclusion = @import("handle_exclusion.zig");
const layout = @import("layout.zig");
const state_ = @import("state.zig");
const State = state_.State;

const Object = py.Object;

/// Read by the core.
pub const zloop_backend: @import("core").sys.Backend = config.backend;

fn makeType(module: *Object, spec: *const c.PyType_Spec, base: ?*Object) py.Error!*c.PyTypeObject {
    const made = try py.check(c.PyType_FromModuleAndSpec(module, spec, base));
    // Every object counts a reference to its type: without a GIL all threads would, in one word. A type lives as long
    // as the module anyway.
    if (comptime config.gil_disabled) py.makeImmortal(made);
    return @ptrCast(made);
}

fn asyncioClasses(asyncio: *Object, comptime names: anytype) py.Error!*Object {
    const tuple = try py.check(c.PyTuple_New(names.len));
    errdefer py.decref(tuple);
    inline for (names, 0..) |name, i| {
        try py.checkInt(c.PyTuple_SetItem(tuple, i, try py.check(c.PyObject_GetAttrString(asyncio, name))));
    }
    return tuple;
}

fn expose(module: *Object, name: [*:0]const u8, t: *c.PyTypeObject) py.Error!void {
    try py.checkInt(c.PyModule_AddObjectRef(module, name, @ptrCast(t)));
}

fn exec(module: *Object) callconv(.c) c_int {
    return py.returnedInt(setUp(module));
}

fn setUp(module: *Object) py.Error!void {
    const state: *State = .of(module);
    try state_.init(state);
    try layout.check();

    const asyncio = try py.check(c.PyImport_ImportModule("asyncio"));
    defer py.decref(asyncio);
    state.loop_type = try makeType(module, &@import("loop_type.zig").spec, null);
    state.loop_time = try py.getAttr(@ptrCast(state.loop_type), state.name(.time));
    state.fd_watch_type = try makeType(module, &@import("fd_watch.zig").spec, null);
    state.socket_waiter_type = try makeType(module, &@import("sock_wait.zig").spec, null);
    state.listener_type = try makeType(module, &@import("listener.zig").spec, null);
    inline for (.{
        .{ "handle_type", "Handle", &@import("handle.zig").spec },
        .{ "timer_handle_type", "TimerHandle", &@import("handle.zig").timer_spec },
        .{ "stream_transport_type", "Transport", &@import("stream.zig").spec },
        .{ "read_pipe_type", "ReadTransport", &@import("pipe_read.zig").spec },
        .{ "write_pipe_type", "Transport", &@import("pipe_write.zig").spec },
        .{ "tls_transport_type", "Transport", &@import("tls.zig").spec },
    }) |row| {
        const base = try py.check(c.PyObject_GetAttrString(asyncio, row[1]));
        defer py.decref(base);
        @field(state, row[0]) = try makeType(module, row[2], base);
    }
    state.threadsafe_handle_type = if (comptime handle_exclusion.enabled) made: {
        const base = try state_.importAttribute("asyncio.events", "_ThreadSafeHandle");
        defer py.decref(base);
        break :made try makeType(module, &@import("handle.zig").threadsafe_spec, base);
    } else @ptrCast(py.newRef(@ptrCast(state.handle_type)));
    // asyncio's own is both, and programs ask for either.
    const both = try asyncioClasses(asyncio, .{ "Transport", "DatagramTransport" });
    defer py.decref(both);
    state.datagram_transport_type = try makeType(module, &@import("datagram.zig").spec, both);
    try expose(module, "Loop", state.loop_type);
    try expose(module, "Handle", state.handle_type);
    if (comptime handle_exclusion.enabled) try expose(module, "ThreadSafeHandle", state.threadsafe_handle_type);
    try expose(module, "TimerHandle", state.timer_handle_type);
    try expose(module, "StreamTransport", state.stream_transport_type);
    try expose(module, "ReadPipeTransport", state.read_pipe_type);
    try expose(module, "WritePipeTransport", state.write_pipe_type);
    try expose(module, "SSLTransport", state.tls_transport_type);
    try expose(module, "DatagramTransport", state.datagram_transport_type);
    try expose(module, "SocketWaiter", state.socket_waiter_type);

    try py.checkInt(c.PyModule_AddObjectRef(module, "shares_contexts", py.boolBorrowed(state.shares_contexts)));
    try py.checkInt(c.PyModule_AddStringConstant(module, "version", config.zloop_version ++ ""));
    try py.checkInt(c.PyModule_AddStringConstant(module, "build_mode", @tagName(builtin.mode)));
    const backend = switch (config.backend) {
        .native => if (builtin.os.tag == .linux) "epoll" else "kqueue",
        else => "kqueue, emulated",
    };
    try py.checkInt(c.PyModule_AddStringConstant(module, "backend", backend));
}

fn afterFork(_: *Object) py.Error!*Object {
    @import("core").process.noteFork();
    handle_exclusion.afterFork();
    return py.newNone();
}

const methods = [_]c.PyMethodDef{
    py.Method.noArgs("_after_fork", afterFork, "_after_fork($module, /)\n--\n\nTo be called in a child after fork(): makes every loop there is the parent's."),
    .{},
};

fn moduleTraverse(module: *Object, visit: c.visitproc, arg: ?*anyopaque) callconv(.c) c_int {
    const Visit = struct {
        fn one(visitor: py.Visitor, reference: *?*Object) error{Stop}!void {
            try visitor.object(reference.*);
        }
    };
    State.of(module).each(py.Visitor{ .visit = visit, .arg = arg }, Visit.one) catch return 1;
    return 0;
}

fn moduleClear(module: *Object) callconv(.c) c_int {
    const Clear = struct {
        fn one(_: void, reference: *?*Object) error{Stop}!void {
            py.clear(reference);
        }
    };
    loop_time.unwatchModule(.of(module));
    State.of(module).each({}, Clear.one) catch unreachable;
    return 0;
}

fn moduleFree(module: ?*anyopaque) callconv(.c) void {
    const object: *Object = @ptrCast(@alignCast(module.?));
    _ = moduleClear(object);
    state_.freeNames(.of(object));
}

const slots_always = [_]c.PyModuleDef_Slot{.{ .slot = c.Py_mod_exec, .value = @ptrCast(&exec) }};
const slots_312 = if (config.py_minor >= 12)
    [_]c.PyModuleDef_Slot{.{ .slot = c.Py_mod_multiple_interpreters, .value = c.Py_MOD_PER_INTERPRETER_GIL_SUPPORTED }}
else
    [_]c.PyModuleDef_Slot{};
const slots_313 = if (config.py_minor >= 13)
    [_]c.PyModuleDef_Slot{.{ .slot = c.Py_mod_gil, .value = c.Py_MOD_GIL_NOT_USED }}
else
    [_]c.PyModuleDef_Slot{};
const module_slots = slots_always ++ slots_312 ++ slots_313 ++ [_]c.PyModuleDef_Slot{.{}};

pub var definition: c.PyModuleDef = .{
    .m_base = std.mem.zeroes(c.PyModuleDef_Base),
    .m_name = "zloop._engine",
    .m_doc = "zloop's engine: the native base of zloop.Loop, its handles and transports.",
    .m_size = @sizeOf(State),
    .m_methods = &methods,
    .m_slots = &module_slots,
    .m_traverse = moduleTraverse,
    .m_clear = moduleClear,
    .m_free = moduleFree,
};

export fn PyInit__engine() ?*Object {
    return c.PyModuleDef_Init(&definition);
}
