//! The module's state: types, interned names and the objects of asyncio that hot paths need.
//!
//! One per module instance, so one per interpreter: nothing of zloop is process-global.

const std = @import("std");
const c = @import("c.zig");
const config = @import("config");
const py = @import("py.zig");

const Object = py.Object;

/// Attribute and method names, interned once.
pub const Name = enum {
    Future,
    None,
    Task,
    __func__,
    _accept_failed,
    _accept_tls,
    _attach,
    _buffer,
    _callback_failed,
    _check_callback,
    _check_handshake_timeout,
    _check_shutdown_timeout,
    _connection_failed,
    _detach,
    _eof,
    _extract_stack,
    _limit,
    _method_failed,
    _msg_callback,
    _paused,
    _restore_mode,
    _resumed,
    _run,
    _selector,
    _slow_callback,
    _show_socket,
    _sslobj,
    _stream_reader_wr,
    _transport,
    _waiter,
    _wakeup_waiter,
    buffer_updated,
    call_exception_handler,
    call_later,
    call_soon,
    cancel,
    cancelled,
    cipher,
    close,
    compression,
    connection_lost,
    connection_made,
    context,
    create_task,
    data_received,
    datagram_received,
    debug,
    detach,
    do_handshake,
    done,
    eager_start,
    eof_received,
    error_received,
    exception,
    feed_data,
    fileno,
    get_buffer,
    get_extra_info,
    getpeercert,
    gettimeout,
    getpeername,
    getsockname,
    is_closing,
    loop,
    message,
    monotonic,
    name,
    pause_reading,
    pause_writing,
    peercert,
    peername,
    pipe,
    proto,
    protocol,
    read,
    resume_reading,
    resume_writing,
    server_hostname,
    server_side,
    recvfrom,
    select,
    send,
    sendto,
    set_exception,
    set_name,
    set_result,
    setblocking,
    shutdown,
    socket,
    sockname,
    ssl_object,
    sslcontext,
    time,
    transport,
    unwrap,
    warning,
    wrap_bio,
    write,
};

pub const State = struct {
    names: std.EnumArray(Name, *Object),

    loop_type: *c.PyTypeObject,
    handle_type: *c.PyTypeObject,
    /// Before 3.14 `handle_type`.
    threadsafe_handle_type: *c.PyTypeObject,
    timer_handle_type: *c.PyTypeObject,
    stream_transport_type: *c.PyTypeObject,
    read_pipe_type: *c.PyTypeObject,
    write_pipe_type: *c.PyTypeObject,
    tls_transport_type: *c.PyTypeObject,
    datagram_transport_type: *c.PyTypeObject,
    fd_watch_type: *c.PyTypeObject,
    listener_type: *c.PyTypeObject,
    socket_waiter_type: *c.PyTypeObject,

    // From asyncio and socket.
    logger: *Object,
    futures_module: *Object,
    tasks_module: *Object,
    /// As they were at import.
    future_type: *Object,
    task_type: *Object,
    /// None before 3.12.
    eager_task_factory: *Object,
    no_arguments: *Object,
    loop_kwnames: *Object,
    name_loop_kwnames: *Object,
    /// The loop class of asyncio's that ours extends, as all of these as they were at import.
    selector_loop_class: *Object,
    handle_class: *Object,
    /// See `loop_patched.zig`.
    handle_run_code: *Object,
    create_task_code: *Object,
    asyncio_time: *Object,
    time_module: *Object,
    /// Its dict. The module can lose it before we go.
    time_dict: *Object,
    /// `time_dict` may be used: from its import until our module is cleared.
    knows_time: bool,
    /// Since 3.12; -1 for none. See `loop_time.zig`.
    time_watcher: c_int,
    /// asyncio.Transport, and its method as it was at import.
    transport_class: *Object,
    transport_get_extra_info: *Object,
    /// The native base's `time()`, to know it from an override.
    loop_time: *Object,
    context_kwnames: *Object,
    cancelled_error: *Object,
    invalid_state_error: *Object,
    buffered_protocol: *Object,
    stream_reader_type: *Object,
    stream_reader_protocol_type: *Object,
    /// What protocols inherit that `StreamWriter.drain()` waits for.
    flow_control_mixin: *Object,
    /// The methods whose work `stream_reader.zig` does, as they were at import.
    protocol_data_received: *Object,
    reader_feed_data: *Object,
    reader_wakeup_waiter: *Object,
    socket_type: *Object,
    /// `_socket.socket`, the base of all of Python's sockets.
    socket_base: *Object,
    /// Whether a socket object keeps its number where `socketNumber` looks for it: tried out with the first one.
    socket_layout: enum(u8) { untried, known, unknown },
    socket_kwnames: *Object,
    transport_socket_type: *Object,
    sendfile_mode: *Object,
    sendfile_fallback: *Object,
    timeout_error: *Object,
    /// 3.12.0 and later hand the transport to `Server._attach` (3.13), earlier ones nothing.
    server_attach_takes_transport: bool,
    /// See `handle_context.zig`.
    shares_contexts: bool,
    /// See `eval_breaker.zig`.
    knows_requests: bool,
    empty_context_map: ?*anyopaque,

    // From ssl, null until the first TLS connection; see `openssl.zig`.
    openssl: @import("openssl.zig").Availability,
    ssl_object_type: *Object,
    ssl_socket_type: *c.PyTypeObject,
    ssl_error: *Object,
    ssl_certificate_error: *Object,
    ssl_want_read_error: *Object,
    ssl_syscall_error: *Object,
    ssl_unused_bio: *Object,
    ssl_unused_bio_out: *Object,
    ssl_handshake_timeout: *Object,
    ssl_shutdown_timeout: *Object,
    wrap_bio_kwnames: *Object,

    pub fn of(module: *Object) *State {
        return @ptrCast(@alignCast(c.PyModule_GetState(module).?));
    }

    /// The state behind a method's `self`, for types without subclasses.
    pub fn ofType(object: *Object) *State {
        return @ptrCast(@alignCast(c.PyType_GetModuleState(py.typeOf(object)).?));
    }

    /// Where a socket object of Python's, or of a class derived from it, keeps its descriptor's number: in the first
    /// word behind the header, -1 once it is closed. Null for other objects.
    pub fn socketNumber(self: *State, sock: *Object) ?*const c_int {
        if (self.socket_layout == .unknown or !py.isInstance(sock, @ptrCast(self.socket_base))) return null;
        const bytes: [*]const u8 = @ptrCast(sock);
        const number: *const c_int = @ptrCast(@alignCast(bytes + @sizeOf(c.PyObject)));
        if (self.socket_layout == .untried) self.socket_layout = if (isNumberOf(sock, number)) .known else .unknown;
        return if (self.socket_layout == .known) number else null;
    }

    fn isNumberOf(sock: *Object, number: *const c_int) bool {
        const fd = c.PyObject_AsFileDescriptor(sock);
        if (fd < 0) c.PyErr_Clear();
        return fd >= 0 and fd == number.*;
    }

    pub inline fn name(self: *const State, comptime which: Name) *Object {
        return self.names.get(which);
    }

    /// Calls `f` on every object and type the state holds, names apart. Before initialisation has
    /// finished the fields not yet set are null, which the zeroed memory of a new module makes true.
    pub fn each(self: *State, context: anytype, comptime f: fn (@TypeOf(context), *?*Object) error{Stop}!void) error{Stop}!void {
        inline for (@typeInfo(State).@"struct".field_names, @typeInfo(State).@"struct".field_types) |field, T| {
            if (T == *Object or T == *c.PyTypeObject) try f(context, @ptrCast(&@field(self, field)));
        }
    }
};

/// Strings form no cycles, and finalizers that run after the module was cleared still use them: they
/// go with the module itself.
pub fn freeNames(state: *State) void {
    const names: *[std.enums.values(Name).len]?*Object = @ptrCast(&state.names.values);
    for (names) |*reference| py.clear(reference);
}

pub fn importAttribute(module: [*:0]const u8, attribute: [*:0]const u8) py.Error!*Object {
    const imported = try py.check(c.PyImport_ImportModule(module));
    defer py.decref(imported);
    return py.check(c.PyObject_GetAttrString(imported, attribute));
}

/// Names and asyncio's objects; the types are made by `module.zig`.
pub fn init(state: *State) py.Error!void {
    inline for (comptime std.enums.values(Name)) |which| {
        state.names.set(which, try py.check(c.PyUnicode_InternFromString(@tagName(which))));
    }
    state.logger = try importAttribute("asyncio.log", "logger");
    state.futures_module = try py.check(c.PyImport_ImportModule("asyncio.futures"));
    state.tasks_module = try py.check(c.PyImport_ImportModule("asyncio.tasks"));
    state.future_type = try importAttribute("asyncio.futures", "Future");
    state.task_type = try importAttribute("asyncio.tasks", "Task");
    state.eager_task_factory = if (config.py_minor >= 12) try importAttribute("asyncio", "eager_task_factory") else py.newNone();
    state.no_arguments = try py.newTuple(.{});
    state.context_kwnames = try py.newTuple(.{state.name(.context)});
    state.cancelled_error = try importAttribute("asyncio", "CancelledError");
    state.invalid_state_error = try importAttribute("asyncio", "InvalidStateError");
    state.loop_kwnames = try py.newTuple(.{state.name(.loop)});
    state.name_loop_kwnames = try py.newTuple(.{ state.name(.name), state.name(.loop) });
    state.selector_loop_class = try importAttribute("asyncio", "SelectorEventLoop");
    state.handle_class = try importAttribute("asyncio", "Handle");
    try @import("loop_patched.zig").remember(state);
    state.asyncio_time = try py.getAttr(state.selector_loop_class, state.name(.time));
    state.time_module = try py.check(c.PyImport_ImportModule("time"));
    state.time_dict = py.newRef(c.PyModule_GetDict(state.time_module));
    try @import("loop_time.zig").watchModule(state);
    state.transport_class = try importAttribute("asyncio", "Transport");
    state.transport_get_extra_info = try py.getAttr(state.transport_class, state.name(.get_extra_info));
    state.buffered_protocol = try importAttribute("asyncio", "BufferedProtocol");
    state.stream_reader_type = try importAttribute("asyncio", "StreamReader");
    state.flow_control_mixin = try importAttribute("asyncio.streams", "FlowControlMixin");
    state.stream_reader_protocol_type = try importAttribute("asyncio", "StreamReaderProtocol");
    state.protocol_data_received = try py.check(c.PyObject_GetAttrString(state.stream_reader_protocol_type, "data_received"));
    state.reader_feed_data = try py.check(c.PyObject_GetAttrString(state.stream_reader_type, "feed_data"));
    state.reader_wakeup_waiter = try py.check(c.PyObject_GetAttrString(state.stream_reader_type, "_wakeup_waiter"));
    state.socket_type = try importAttribute("socket", "socket");
    state.socket_base = try importAttribute("_socket", "socket");
    state.socket_layout = .untried;
    state.socket_kwnames = try py.newTuple(.{state.name(.fileno)});
    state.transport_socket_type = try importAttribute("asyncio.trsock", "TransportSocket");
    const modes = try importAttribute("asyncio.constants", "_SendfileMode");
    defer py.decref(modes);
    state.sendfile_mode = try py.check(c.PyObject_GetAttrString(modes, "TRY_NATIVE"));
    state.sendfile_fallback = try py.check(c.PyObject_GetAttrString(modes, "FALLBACK"));
    state.timeout_error = try importAttribute("asyncio", "TimeoutError");
    state.openssl = .{};
    state.shares_contexts = try @import("handle_context.zig").layoutIsKnown();
    state.knows_requests = @import("eval_breaker.zig").layoutIsKnown();
    state.empty_context_map = if (state.shares_contexts) try @import("handle_context.zig").emptyMap() else null;
    state.server_attach_takes_transport = try attachTakesTransport();
}

fn attachTakesTransport() py.Error!bool {
    const server = try importAttribute("asyncio.base_events", "Server");
    defer py.decref(server);
    const attach = try py.check(c.PyObject_GetAttrString(server, "_attach"));
    defer py.decref(attach);
    const code = try py.check(c.PyObject_GetAttrString(attach, "__code__"));
    defer py.decref(code);
    const count = try py.check(c.PyObject_GetAttrString(code, "co_argcount"));
    defer py.decref(count);
    return c.PyLong_AsLong(count) > 1;
}
