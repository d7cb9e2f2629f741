//! Listener: a listening socket that accepts for a server.
//!
//! The descriptor belongs to the server's socket object. Connections become transports at once, for
//! TLS with a SSLTransport on top; without the direct engine TLS takes asyncio's accept path.

const std = @import("std");
const config = @import("config");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const args = @import("args.zig");
const guard = @import("guard.zig");
const heap_type = @import("heap_type.zig");
const loop_fds = @import("loop_fds.zig");
const loop_type = @import("loop_type.zig");
const raise = @import("raise.zig");
const openssl = @import("openssl.zig");
const sock_operation = @import("sock_operation.zig");
const stream = @import("stream.zig");
const stream_close = @import("stream_close.zig");
const tls = @import("tls.zig");
const Source = @import("source.zig").Source;

const Object = py.Object;
const LoopFields = loop_type.Fields;

/// Connections accepted in one turn: enough to drain a burst, few enough to let others run.
const accept_count_max = 128;

/// A poll that reports so many events is followed by a turn so long that one system call more is nothing.
const crowd_event_count = 32;

/// How many connections to accept in one turn. Finding out that none is left costs the kernel as much as accepting
/// one, so it is left to the next poll to tell: a single connection is accepted alone, and while each poll in a row
/// brings more the number doubles. In a crowd the turns are long, and polls that have no room for all events leave the
/// listener out: there all that wait are accepted, or new connections would starve.
const Batch = struct {
    size: u32 = 1,
    /// The poll that brought the last one, and whether it may have left some.
    poll_count: u32 = 0,
    was_filled: bool = false,

    /// Whether the poll before the last had something to accept, too.
    fn isInARow(self: *const Batch, loop: *const LoopFields) bool {
        return loop.core.poll_count -% self.poll_count == 1;
    }

    fn begin(self: *Batch, loop: *const LoopFields, size_max: u32) void {
        self.size = if (loop.core.event_count >= crowd_event_count)
            size_max
        else if (self.isInARow(loop) and self.was_filled)
            @min(2 * self.size, size_max)
        else
            1;
        self.poll_count = loop.core.poll_count;
        self.was_filled = true;
    }
};

const Fields = struct {
    source: Source,
    loop: *LoopFields,
    protocol_factory: ?*Object,
    sock: ?*Object,
    /// None for plain connections.
    ssl: ?*Object,
    /// asyncio.Server or None.
    server: ?*Object,
    /// The arguments of `_start_serving`, to begin again after a pause.
    serving_args: ?*Object,
    /// Each connection begins in a copy of it. Nothing is run in it.
    context: ?*Object,
    backlog: u32,
    batch: Batch,
    /// The listener's own address if every connection shares it: not a wildcard.
    own_name: ?core.sys.Address,
    is_tcp: bool,
    /// Every connection in the kernel's queue came after the listener got TCP_NODELAY, and has it from there.
    inherits_no_delay: bool,

    fn ofSource(source: *Source) *Fields {
        return @alignCast(@fieldParentPtr("source", source));
    }
};

const Layout = py.Layout(Fields, @sizeOf(c.PyObject));

const parameters = [_][:0]const u8{
    "protocol_factory", "sock", "sslcontext", "server", "backlog", "ssl_handshake_timeout", "ssl_shutdown_timeout",
} ++ if (config.py_minor >= 15) [_][:0]const u8{"context"} else [_][:0]const u8{};
const signature = "_start_serving($self, protocol_factory, sock, sslcontext=None, server=None, backlog=100, ssl_handshake_timeout=None, ssl_shutdown_timeout=None" ++
    (if (config.py_minor >= 15) ", context=None" else "") ++ ")\n--\n\nAccepts connections on a listening socket.";
pub const method = py.Method.keywords("_start_serving", startServing, signature);

fn startServing(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const loop = loop_type.of(object);
    try loop.checkUsable();
    const slots_given = try args.parse("_start_serving", &parameters, .{ .required = 2 }, argv, names);
    const sock = slots_given[1].?;
    const fd = try loop_fds.descriptor(sock);
    const backlog = if (args.given(slots_given[4])) |given| c.PyLong_AsLong(given) else 100;
    if (backlog == -1 and c.PyErr_Occurred() != null) return error.Python;

    const made = try py.check(c.PyType_GenericAlloc(loop.state.listener_type, 0));
    defer py.decref(made);
    const self = Layout.of(made);
    py.incref(loop.object());
    self.* = .{
        .source = .{ .watch = .{ .fd = fd }, .vtable = &vtable, .object = made },
        .loop = loop,
        .protocol_factory = py.newRef(slots_given[0].?),
        .sock = py.newRef(sock),
        .ssl = if (args.given(slots_given[2])) |ssl| py.newRef(ssl) else null,
        .server = if (args.given(slots_given[3])) |server| py.newRef(server) else null,
        .serving_args = null,
        .context = null,
        .backlog = @intCast(std.math.clamp(backlog, 1, accept_count_max)),
        .batch = .{},
        .own_name = null,
        .is_tcp = false,
        .inherits_no_delay = false,
    };
    self.batch.poll_count = loop.core.poll_count;
    const context_given = if (config.py_minor >= 15) args.given(slots_given[7]) else null;
    if (context_given) |context| try py.checkContext(context);
    self.context = if (context_given) |context| py.newRef(context) else try py.check(c.PyContext_CopyCurrent());
    self.serving_args = try servingArgs(&slots_given);
    var own: core.sys.Address = undefined;
    if (core.sys.localAddress(fd, &own) == null) {
        self.is_tcp = own.family() == std.c.AF.INET or own.family() == std.c.AF.INET6;
        if (!isWildcard(&own)) self.own_name = own;
    }
    // Connections that come from now on inherit the option on Linux: one call instead of one each.
    if (self.is_tcp) core.sys.setNoDelay(fd);
    try self.source.arm(loop, .{ .read = true });
    return py.newNone();
}

fn servingArgs(given: []const ?*Object) py.Error!*Object {
    const tuple = try py.check(c.PyTuple_New(@intCast(given.len)));
    for (given, 0..) |value, i| _ = c.PyTuple_SetItem(tuple, @intCast(i), py.newRef(value orelse py.none()));
    return tuple;
}

fn isWildcard(own: *const core.sys.Address) bool {
    const bytes = own.bytes();
    return switch (own.family()) {
        std.c.AF.INET => std.mem.allEqual(u8, bytes[@offsetOf(std.c.sockaddr.in, "addr")..][0..4], 0),
        std.c.AF.INET6 => std.mem.allEqual(u8, bytes[@offsetOf(std.c.sockaddr.in6, "addr")..][0..16], 0),
        else => false,
    };
}

fn ready(source: *Source, _: core.reactor.Readiness) py.Error!void {
    const self: *Fields = .ofSource(source);
    if (!try stillOwns(self)) return;
    // A poll in between that had nothing to accept found the queue empty, unless it had no room for the listener.
    const is_crowd = self.loop.core.event_count >= crowd_event_count;
    if (!self.batch.isInARow(self.loop) and !is_crowd) self.inherits_no_delay = true;
    self.batch.begin(self.loop, self.backlog);
    for (0..self.batch.size) |_| {
        // A protocol factory or connection_made can close the server.
        if (self.source.watch.armed.isNone()) return;
        var peer: core.sys.Address = undefined;
        switch (core.sys.accept(self.source.watch.fd, &peer)) {
            .done => |fd| try take(self, @intCast(fd), &peer),
            .would_block => {
                self.batch.was_filled = false;
                self.inherits_no_delay = true;
                return;
            },
            .failed => |code| switch (code) {
                // The peer gave up while it waited.
                .CONNABORTED => return,
                else => return acceptFailed(self, code),
            },
        }
    }
}

/// Whether the socket still has the number: a program that closed it without a word may have given the number
/// to another listener, whose connections are not ours.
fn stillOwns(self: *Fields) py.Error!bool {
    const sock = py.newRef(self.sock.?);
    defer py.decref(sock);
    const fd = sock_operation.fileno(self.loop, sock) catch {
        if (py.isExit()) return error.Python;
        c.PyErr_Clear();
        return false;
    };
    if (fd == self.source.watch.fd) return true;
    self.source.disarm(self.loop, .none);
    return false;
}

/// Out of descriptors or memory: asyncio reports it and tries again after a second.
fn acceptFailed(self: *Fields, code: core.sys.Errno) py.Error!void {
    const out_of_resources = switch (code) {
        .MFILE, .NFILE, .NOBUFS, .NOMEM => true,
        else => false,
    };
    if (out_of_resources) self.source.disarm(self.loop, .none);
    raise.errno(code) catch {};
    const exception = py.takeException();
    defer py.decref(exception);
    const context = try py.check(c.PyContext_Copy(self.context.?));
    defer py.decref(context);
    return py.inContext(context, reportFailure, .{ self, exception, out_of_resources });
}

fn reportFailure(self: *Fields, exception: *Object, out_of_resources: bool) py.Error!void {
    py.decref(try py.callMethod(self.loop.object(), self.loop.state.name(._accept_failed), .{
        exception, self.serving_args.?, py.boolBorrowed(out_of_resources),
    }));
}

/// Owns `fd`, as the functions below do.
fn take(self: *Fields, fd: core.sys.fd_t, peer: *const core.sys.Address) py.Error!void {
    const context = c.PyContext_Copy(self.context.?) orelse {
        core.sys.close(fd);
        return error.Python;
    };
    defer py.decref(context);
    return py.inContext(context, accepted, .{ self, fd, peer, context });
}

/// Runs in `context`, the connection's own: what the protocol factory sets in it is for this connection alone.
fn accepted(self: *Fields, fd: core.sys.fd_t, peer: *const core.sys.Address, context: *Object) py.Error!void {
    const result = if (self.ssl == null) acceptPlain(self, fd, peer, context) else acceptTls(self, fd, peer, context);
    result catch {
        if (py.isExit()) return error.Python;
        const exception = py.takeException();
        defer py.decref(exception);
        // As in asyncio, the trouble of one connection is shown in debug mode only.
        if (!self.loop.debug) return;
        py.decref(try py.callMethod(self.loop.object(), self.loop.state.name(._connection_failed), .{exception}));
    };
}

fn acceptPlain(self: *Fields, fd: core.sys.fd_t, peer: *const core.sys.Address, context: *Object) py.Error!void {
    const made = transport: {
        errdefer core.sys.close(fd);
        setNoDelay(self, fd);
        const protocol = try py.check(c.PyObject_CallNoArgs(self.protocol_factory.?));
        defer py.decref(protocol);
        break :transport try stream.create(self.loop, protocol, .{ .fd = fd, .context = context, .server = self.server });
    };
    defer py.decref(made);
    try startAccepted(self, made, peer);
}

/// A connection that waited in the queue before its listener got the option lacks it.
fn setNoDelay(self: *const Fields, fd: core.sys.fd_t) void {
    const inherits = self.inherits_no_delay and @import("builtin").os.tag == .linux;
    if (self.is_tcp and !inherits) core.sys.setNoDelay(fd);
}

fn startAccepted(self: *Fields, made: *Object, peer: *const core.sys.Address) py.Error!void {
    const transport = stream.of(made);
    if (!transport.peer_name.set(peer)) try stream.setPeerName(transport, peer);
    if (self.own_name) |*own| _ = transport.own_name.set(own);
    // Behind what is queued, as in asyncio: a program that just cancels all its tasks meets none that
    // connection_made() started a moment ago and that would end before its first step.
    try stream_close.queueStep(transport);
}

/// A SSLTransport over a StreamTransport, without socket object, task or future; null if the direct
/// engine cannot serve the context.
fn makeDirect(self: *Fields, fd: core.sys.fd_t, context: *Object) py.Error!?*Object {
    const state = self.loop.state;
    const handshake_timeout = timeoutGiven(self, 5);
    const shutdown_timeout = timeoutGiven(self, 6);
    inline for (.{ handshake_timeout, shutdown_timeout }) |timeout| if (timeout) |given| {
        const seconds = c.PyFloat_AsDouble(given);
        if (seconds == -1 and c.PyErr_Occurred() != null) return error.Python;
        // asyncio's constructor has the words for it.
        if (!(seconds > 0)) return null;
    };
    // The factory runs only when its protocol is sure to be used.
    if ((try openssl.get(state)) == null) return null;
    const upper = (try tls.create(self.loop, .{
        .protocol = py.none(),
        .sslcontext = self.ssl.?,
        .server_side = true,
        .accepted = true,
        .handshake_timeout = handshake_timeout orelse state.ssl_handshake_timeout,
        .shutdown_timeout = shutdown_timeout orelse state.ssl_shutdown_timeout,
    })) orelse return null;
    defer py.decref(upper);
    errdefer tls.of(upper).closed = true;
    const protocol = try py.check(c.PyObject_CallNoArgs(self.protocol_factory.?));
    defer py.decref(protocol);
    try tls.setProtocolFields(tls.of(upper), protocol);
    setNoDelay(self, fd);
    return try stream.create(self.loop, upper, .{ .fd = fd, .context = context, .server = self.server });
}

fn timeoutGiven(self: *Fields, index: usize) ?*Object {
    return args.given(py.tupleItemBorrowed(self.serving_args.?, index));
}

fn acceptTls(self: *Fields, fd: core.sys.fd_t, peer: *const core.sys.Address, context: *Object) py.Error!void {
    if (self.loop.tls_native) {
        const direct = made: {
            errdefer core.sys.close(fd);
            break :made try makeDirect(self, fd, context);
        };
        if (direct) |made| {
            defer py.decref(made);
            return startAccepted(self, made, peer);
        }
    }
    // asyncio's own way from here: a socket object, a task, a handshake.
    const number = py.newInt(fd) catch |err| {
        core.sys.close(fd);
        return err;
    };
    defer py.decref(number);
    py.decref(try py.callMethod(self.loop.object(), self.loop.state.name(._accept_tls), .{ number, self.serving_args.?, context }));
}

fn unusedStep(_: *Source) py.Error!void {
    unreachable;
}

fn contextsOf(source: *Source) [2]?*Object {
    return .{ Fields.ofSource(source).context, null };
}

const vtable: Source.VTable = .{ .ready = ready, .step = unusedStep, .contexts = contextsOf, .is_transport = false };

const references = .{ "protocol_factory", "sock", "ssl", "server", "serving_args", "context" };

fn dealloc(object: *Object) callconv(.c) void {
    const t: *Object = @ptrCast(py.typeOf(object));
    c.PyObject_GC_UnTrack(object);
    _ = clearFields(object);
    py.decref(Layout.of(object).loop.object());
    c.PyObject_GC_Del(object);
    py.decref(t);
}

fn traverseFields(object: *Object, visitor: py.Visitor) error{Stop}!void {
    const self = Layout.of(object);
    try visitor.object(self.loop.object());
    inline for (references) |field| try visitor.object(@field(self, field));
}

fn clearFields(object: *Object) callconv(.c) c_int {
    const self = Layout.of(object);
    inline for (references) |field| py.clear(&@field(self, field));
    return 0;
}

pub const spec = heap_type.final("zloop._engine.Listener", Layout.size, guard.byLoop(Layout), .{
    .tp_dealloc = &dealloc,
    .tp_traverse = py.traverse(traverseFields),
    .tp_clear = &clearFields,
});
