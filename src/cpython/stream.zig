//! StreamTransport: a connected stream socket, TCP or Unix.
//!
//! One owner per descriptor: the transport, or the Python socket object that it holds. The watch
//! leaves the kernel and the table before the descriptor is closed, and it is closed once.
//!
//! Life: made (`create`) → started (connection_made has been called, reading is armed) → closing
//! (no more reading; queued bytes leave) → lost (connection_lost has been called, descriptor
//! closed). `Steps` are taken from the ready queue, so none of them runs inside another callback.
//!
//! Everything here belongs to the loop's thread.

const config = @import("config");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const address = @import("address.zig");
const debug = @import("debug.zig");
const guard = @import("guard.zig");
const heap_type = @import("heap_type.zig");
const loop_type = @import("loop_type.zig");
const stream_close = @import("stream_close.zig");
const stream_read = @import("stream_read.zig");
const stream_write = @import("stream_write.zig");
const transport = @import("transport.zig");
const Source = @import("source.zig").Source;
const State = @import("state.zig").State;

const Object = py.Object;
const LoopFields = loop_type.Fields;

/// asyncio.Transport: the object header and one slot, `_extra`.
pub const base_size = @sizeOf(c.PyObject) + @sizeOf(usize);

pub const Fields = struct {
    source: Source,
    /// A strong reference to the loop's object, kept to the end: the finalizer needs it.
    loop: *LoopFields,
    protocol: ?*Object,
    /// Protocol methods run in it, see `transport.zig`. Before 3.15 replaced by a copy of the caller's context when
    /// reading is resumed and when the connection is ended.
    context: ?*Object,
    /// A copy of the context of whoever wrote what the kernel had no room for; null while all has left.
    writer_context: ?*Object,
    /// The context in which the bytes were written that leave by the end of the turn; null for the transport's own.
    dirty_context: ?*Object,
    /// The descriptor's owner if there is one; then it closes the descriptor, not we.
    sock: ?*Object,
    /// Where `sock` keeps its number; null while there is none, or if it is no socket of Python's.
    number: ?*const c_int = null,
    /// What `get_extra_info` was given or has made. Made on first use.
    extra: ?*Object,
    server: ?*Object,
    waiter: ?*Object,
    /// A future for "everything is sent", while sendfile is using the descriptor.
    empty_waiter: ?*Object,
    /// What connection_lost will be told.
    lost_exception: ?*Object,
    queue: stream_write.Queue,
    high_water: usize,
    low_water: usize,
    /// Writes since the connection was lost, plus one; asyncio warns from the fifth on.
    conn_lost: u32,
    /// The next plain read's size; grows while the peer fills it.
    read_size: u32,
    delivery: stream_read.Delivery,
    started: bool,
    closing: bool,
    paused: bool,
    /// The peer has finished sending and the protocol keeps the connection.
    eof_received: bool,
    /// write_eof() has been called.
    eof_written: bool,
    protocol_paused: bool,
    protocol_connected: bool,
    /// What ends the connection now happens in the transport's own context.
    handling: bool = false,
    /// Queued in `loop.dirty`.
    dirty: bool,
    leaving: stream_write.Leaving = .until_heard,
    /// `get_extra_info("socket")` has been asked for: `extra` keeps an object that refers to `sock`.
    socket_shown: bool = false,
    /// The descriptor has been closed.
    released: bool,
    peer_name: address.Compact,
    own_name: address.Compact,
    dict: ?*Object,
    weakrefs: ?*Object,

    pub const has_one_context = config.py_minor >= 15;

    pub inline fn object(self: *const Fields) *Object {
        return self.source.object;
    }

    pub inline fn fd(self: *const Fields) core.sys.fd_t {
        return self.source.watch.fd;
    }

    pub fn isReading(self: *const Fields) bool {
        return !self.closing and !self.paused;
    }

    /// Whether the descriptor is still the connection's. A program that has closed the socket object has given the
    /// number up, and the kernel may have given it to somebody else since: such a transport sends nothing, reads
    /// nothing and shuts nothing down.
    pub inline fn ownsNumber(self: *const Fields) bool {
        const number = self.number orelse return true;
        return number.* == self.fd();
    }

    pub fn ofSource(source: *Source) *Fields {
        return @fieldParentPtr("source", source);
    }
};

pub const Layout = py.Layout(Fields, base_size);
pub const of = Layout.of;

pub const vtable: Source.VTable = .{
    .ready = ready,
    .step = stream_close.step,
    .contexts = contextsOf,
    .wanted = wanted,
    .is_transport = true,
};

pub const Options = struct {
    fd: core.sys.fd_t,
    /// Owns `fd` if given; borrowed reference.
    sock: ?*Object = null,
    /// Borrowed, and used as it is; null means a copy of the current one.
    context: ?*Object = null,
    extra: ?*Object = null,
    server: ?*Object = null,
    waiter: ?*Object = null,
};

pub const high_water_default = transport.high_water_default;

/// Takes `options.fd` over as soon as it returns a transport; after an error it is the caller's.
pub fn create(loop: *LoopFields, protocol: *Object, options: Options) py.Error!*Object {
    const context = if (options.context) |given| py.newRef(given) else try py.check(c.PyContext_CopyCurrent());
    const made = c.PyType_GenericAlloc(loop.state.stream_transport_type, 0) orelse {
        py.decref(context);
        return error.Python;
    };
    const self = of(made);
    py.incref(loop.object());
    self.* = .{
        .source = .{ .watch = .{ .fd = options.fd }, .vtable = &vtable, .object = made },
        .loop = loop,
        .protocol = null,
        .context = context,
        .writer_context = null,
        .dirty_context = null,
        .sock = if (options.sock) |sock| py.newRef(sock) else null,
        .number = if (options.sock) |sock| loop.state.socketNumber(sock) else null,
        .extra = null,
        .server = null,
        .waiter = if (options.waiter) |waiter| py.newRef(waiter) else null,
        .empty_waiter = null,
        .lost_exception = null,
        .queue = .{},
        .high_water = high_water_default,
        .low_water = high_water_default / 4,
        .conn_lost = 0,
        .read_size = stream_read.size_min,
        .delivery = .data,
        .started = false,
        .closing = false,
        .paused = false,
        .eof_received = false,
        .eof_written = false,
        .protocol_paused = false,
        .protocol_connected = false,
        .dirty = false,
        .released = false,
        .peer_name = .{},
        .own_name = .{},
        .dict = null,
        .weakrefs = null,
    };
    errdefer {
        // Still the caller's descriptor: the finalizer must not close it, nor may anybody who has got
        // hold of the transport use it.
        self.released = true;
        self.closing = true;
        self.conn_lost = 1;
        py.decref(made);
    }
    try setProtocolFields(self, protocol);
    if (options.extra) |given| {
        self.extra = try py.check(c.PyDict_New());
        try py.checkInt(c.PyDict_Update(self.extra.?, given));
    }
    if (options.server) |server| {
        const attached = if (loop.state.server_attach_takes_transport)
            try py.callMethod(server, loop.state.name(._attach), .{made})
        else
            try py.callMethod(server, loop.state.name(._attach), .{});
        py.decref(attached);
        self.server = py.newRef(server);
    }
    return made;
}

/// The descriptor is ready. Reading comes before writing, as in asyncio's event order.
fn ready(source: *Source, readiness: core.reactor.Readiness) py.Error!void {
    const self: *Fields = .ofSource(source);
    if (readiness.read and self.isReading() and !self.eof_received) {
        self.handling = true;
        defer self.handling = false;
        try stream_read.ready(self);
    }
    if (readiness.write and source.watch.armed.write) try stream_write.ready(self);
}

fn contextsOf(source: *Source) [2]?*Object {
    const self: *Fields = .ofSource(source);
    return .{ self.context, self.writer_context };
}

fn wanted(source: *Source) core.reactor.Interest {
    const self: *Fields = .ofSource(source);
    if (self.released or self.conn_lost > 0) return .none;
    return .{ .read = interest(self).read, .write = !self.queue.isEmpty() };
}

/// What the watch should be armed for, from the state.
pub fn interest(self: *const Fields) core.reactor.Interest {
    return .{
        .read = self.started and self.isReading() and !self.eof_received,
        .write = self.source.watch.armed.write,
    };
}

pub fn stopReading(self: *Fields) void {
    self.source.disarm(self.loop, .{ .read = false, .write = self.source.watch.armed.write });
}

fn setProtocolFields(self: *Fields, protocol: *Object) py.Error!void {
    self.delivery = try stream_read.deliveryFor(self.loop.state, protocol);
    // A new protocol has not heard of the end: start_tls() must fail on it, not wait.
    if (self.protocol != protocol) self.eof_received = false;
    py.replace(&self.protocol, py.newRef(protocol));
    self.protocol_connected = true;
}

/// Python's socket object for the descriptor, made on first use; it owns the descriptor then.
pub fn socketBorrowed(self: *Fields) py.Error!?*Object {
    if (self.sock) |sock| return sock;
    if (self.released) return null;
    const state = self.loop.state;
    const number = try py.newInt(self.fd());
    defer py.decref(number);
    const stack = [_]?*Object{ null, number };
    const sock = try py.check(c.PyObject_Vectorcall(state.socket_type, stack[1..].ptr, py.arguments_offset, state.socket_kwnames));
    if (self.sock != null or self.released) {
        // Making it ran the program's code, which made another or ended the transport: one owner only.
        defer py.decref(sock);
        py.decref(try py.callMethod(sock, state.name(.detach), .{}));
        return self.sock;
    }
    self.sock = sock;
    self.number = state.socketNumber(sock);
    py.decref(try py.callMethod(sock, state.name(.setblocking), .{@as(*Object, &c._Py_FalseStruct)}));
    return sock;
}

fn extraBorrowed(self: *Fields) py.Error!*Object {
    if (self.extra == null) self.extra = try py.check(c.PyDict_New());
    return self.extra.?;
}

/// Makes and keeps the value of a name that asyncio fills in when it makes a transport.
fn compute(self: *Fields, name: *Object) py.Error!?*Object {
    if (!py.isInstance(name, &c.PyUnicode_Type)) return null;
    const value = if (c.PyUnicode_CompareWithASCIIString(name, "peername") == 0)
        try addressOf(self, &self.peer_name, core.sys.peerAddress, .getpeername)
    else if (c.PyUnicode_CompareWithASCIIString(name, "sockname") == 0)
        try addressOf(self, &self.own_name, core.sys.localAddress, .getsockname)
    else if (c.PyUnicode_CompareWithASCIIString(name, "socket") == 0)
        try showSocket(self) orelse return null
    else
        return null;
    errdefer py.decref(value);
    try py.checkInt(c.PyDict_SetItem(try extraBorrowed(self), name, value));
    return value;
}

/// asyncio's TransportSocket over the socket. The loop's Python part makes it: through it bytes leave before
/// the program acts on the connection.
fn showSocket(self: *Fields) py.Error!?*Object {
    const sock = py.newRef((try socketBorrowed(self)) orelse return null);
    defer py.decref(sock);
    const shown = try py.callMethod(self.loop.object(), self.loop.state.name(._show_socket), .{ sock, self.object() });
    self.socket_shown = true;
    return shown;
}

fn addressOf(
    self: *Fields,
    known: *const address.Compact,
    comptime ask: fn (core.sys.fd_t, *core.sys.Address) ?core.sys.Errno,
    comptime method: @import("state.zig").Name,
) py.Error!*Object {
    var found: core.sys.Address = undefined;
    if (known.get()) |kept| {
        found = kept;
    } else {
        if (self.released or ask(self.fd(), &found) != null) return py.newNone();
    }
    if (try address.toObject(&found)) |object| return object;
    const sock = (try socketBorrowed(self)) orelse return py.newNone();
    return py.callMethod(sock, self.loop.state.name(method), .{});
}

/// Asked at once, as in asyncio: the kernel forgets who the peer was when the connection is reset.
pub fn keepPeerName(self: *Fields) py.Error!void {
    var found: core.sys.Address = undefined;
    if (core.sys.peerAddress(self.fd(), &found) != null) return;
    if (self.extra) |extra| {
        if (c.PyDict_GetItemWithError(extra, self.loop.state.name(.peername)) != null) return;
        if (c.PyErr_Occurred() != null) return error.Python;
    }
    if (!self.peer_name.set(&found)) try setPeerName(self, &found);
}

/// For an address too long to keep compactly (a Unix path).
pub fn setPeerName(self: *Fields, peer: *const core.sys.Address) py.Error!void {
    const value = (try address.toObject(peer)) orelse return;
    defer py.decref(value);
    try py.checkInt(c.PyDict_SetItem(try extraBorrowed(self), self.loop.state.name(.peername), value));
}

/// Fills in what can no longer be asked once the descriptor is closed.
pub fn keepExtra(self: *Fields) void {
    var found: core.sys.Address = undefined;
    if (self.own_name.len == 0 and core.sys.localAddress(self.fd(), &found) == null) _ = self.own_name.set(&found);
}

pub fn extraInfo(self: *Fields, name: *Object) py.Error!?*Object {
    // Any object may be asked for; one without a hash is an error, as with asyncio's dict.
    if (c.PyDict_GetItemWithError(try extraBorrowed(self), name)) |value| return py.newRef(value);
    if (c.PyErr_Occurred() != null) return error.Python;
    return compute(self, name);
}

fn getExtraInfo(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    if (try replacedExtraInfo(object)) |replaced| {
        defer py.decref(replaced);
        const positional_count = argv.len - if (names) |n| py.tupleSize(n) else 0;
        return py.check(c.PyObject_Vectorcall(replaced, @ptrCast(argv.ptr), positional_count, names));
    }
    const slots_given = try @import("args.zig").parse("get_extra_info", &.{ "name", "default" }, .{ .required = 1 }, argv, names);
    const value = try extraInfo(of(object), slots_given[0].?);
    return value orelse py.newRef(slots_given[1] orelse py.none());
}

/// What stands in the method's place on asyncio.Transport, where asyncio's transports have it from and a
/// program that replaces it for a test puts its own.
fn replacedExtraInfo(object: *Object) py.Error!?*Object {
    const state = of(object).loop.state;
    const name = state.name(.get_extra_info);
    const found = try py.getAttr(state.transport_class, name);
    defer py.decref(found);
    if (found == state.transport_get_extra_info) return null;
    const base = try py.call(@ptrCast(&c.PySuper_Type), .{ @as(*Object, @ptrCast(state.stream_transport_type)), object });
    defer py.decref(base);
    return try py.getAttr(base, name);
}

/// asyncio's `_extra` as a dict, filled in.
fn getExtra(object: *Object) py.Error!*Object {
    const self = of(object);
    inline for (.{ .peername, .sockname, .socket }) |which| {
        if (try extraInfo(self, self.loop.state.name(which))) |value| py.decref(value);
    }
    return py.newRef(try extraBorrowed(self));
}

fn isClosing(object: *Object) py.Error!*Object {
    const self = of(object);
    try stream_write.settleForDrain(self, self);
    return py.newBool(self.closing);
}

fn getClosing(object: *Object) py.Error!*Object {
    return py.newBool(of(object).closing);
}

fn setProtocol(object: *Object, protocol: *Object) py.Error!*Object {
    try setProtocolFields(of(object), protocol);
    return py.newNone();
}

fn getProtocol(object: *Object) py.Error!*Object {
    return py.newRef(of(object).protocol orelse py.none());
}

fn isReadingMethod(object: *Object) py.Error!*Object {
    return py.newBool(of(object).isReading());
}

fn pauseReading(object: *Object) py.Error!*Object {
    const self = of(object);
    if (!self.isReading()) return py.newNone();
    self.paused = true;
    stopReading(self);
    try debug.log(self.loop, "%r pauses reading", object);
    return py.newNone();
}

fn resumeReading(object: *Object) py.Error!*Object {
    const self = of(object);
    if (self.closing or !self.paused) return py.newNone();
    self.paused = false;
    if (self.started) try transport.takeCallersContext(self);
    if (!self.loop.closed) try self.source.arm(self.loop, interest(self));
    try debug.log(self.loop, "%r resumes reading", object);
    return py.newNone();
}

fn repr(object: *Object) callconv(.c) ?*Object {
    const self = of(object);
    const label: [*:0]const u8 = if (self.released) " closed" else if (self.closing) " closing" else "";
    const armed = self.source.watch.armed;
    return c.PyUnicode_FromFormat("<StreamTransport%s fd=%d read=%s write=<%s, bufsize=%zd>>", label, @as(c_int, self.fd()), @as([*:0]const u8, if (armed.read) "polling" else "idle"), @as([*:0]const u8, if (armed.write) "polling" else "idle"), @as(c.Ssize, @intCast(self.queue.size)));
}

fn dealloc(object: *Object) callconv(.c) void {
    const self = of(object);
    if (c.PyObject_CallFinalizerFromDealloc(object) < 0) return;
    const t: *Object = @ptrCast(py.typeOf(object));
    c.PyObject_GC_UnTrack(object);
    if (self.weakrefs != null) c.PyObject_ClearWeakRefs(object);
    _ = clearFields(object);
    py.decref(self.loop.object());
    c.PyObject_GC_Del(object);
    py.decref(t);
}

fn traverseFields(object: *Object, visitor: py.Visitor) error{Stop}!void {
    const self = of(object);
    try visitor.object(self.loop.object());
    try transport.visitSocket(self, visitor);
    inline for (.{ "protocol", "context", "writer_context", "dirty_context", "extra", "server", "waiter", "empty_waiter", "lost_exception", "dict" }) |field| {
        try visitor.object(@field(self, field));
    }
    var pieces = self.queue.iterator();
    while (pieces.next()) |piece| try visitor.object(piece.owner.object);
}

fn clearFields(object: *Object) callconv(.c) c_int {
    const self = of(object);
    self.queue.clear(&self.loop.write_pool, loop_type.gpa);
    self.number = null;
    inline for (.{ "protocol", "context", "writer_context", "dirty_context", "sock", "extra", "server", "waiter", "empty_waiter", "lost_exception", "dict" }) |field| {
        py.clear(&@field(self, field));
    }
    return 0;
}

fn getLoop(object: *Object) py.Error!*Object {
    const self = of(object);
    return py.newRef(if (self.released) py.none() else self.loop.object());
}

/// asyncio's `_sock`. Whoever asks can do with the socket what he likes.
fn getSock(object: *Object) py.Error!*Object {
    try stream_write.letOut(of(object));
    return getOwnSocket(object);
}

/// For the loop itself, which uses the socket only while nothing can be written.
fn getOwnSocket(object: *Object) py.Error!*Object {
    const self = of(object);
    if (self.released) return py.newNone();
    return py.newRef((try socketBorrowed(self)) orelse py.none());
}

fn getFd(object: *Object) py.Error!*Object {
    const self = of(object);
    try stream_write.letOut(self);
    return py.newInt(self.fd());
}

fn getTrue(_: *Object) py.Error!*Object {
    return py.newBool(true);
}

fn getSendfileMode(object: *Object) py.Error!*Object {
    return py.newRef(of(object).loop.state.sendfile_mode);
}

fn getProtocolPaused(object: *Object) py.Error!*Object {
    return py.newBool(of(object).protocol_paused);
}

fn getPaused(object: *Object) py.Error!*Object {
    return py.newBool(of(object).paused);
}

fn getConnLost(object: *Object) py.Error!*Object {
    return py.newInt(of(object).conn_lost);
}

const methods = [_]c.PyMethodDef{
    py.Method.keywords("get_extra_info", getExtraInfo, "get_extra_info($self, name, default=None)\n--\n\nasyncio.BaseTransport.get_extra_info(): socket, sockname, peername."),
    py.Method.noArgs("is_closing", isClosing, "is_closing($self)\n--\n\nasyncio.BaseTransport.is_closing()."),
    py.Method.oneArg("set_protocol", setProtocol, "set_protocol($self, protocol)\n--\n\nasyncio.BaseTransport.set_protocol()."),
    py.Method.noArgs("get_protocol", getProtocol, "get_protocol($self)\n--\n\nasyncio.BaseTransport.get_protocol()."),
    py.Method.noArgs("is_reading", isReadingMethod, "is_reading($self)\n--\n\nasyncio.ReadTransport.is_reading()."),
    py.Method.noArgs("pause_reading", pauseReading, "pause_reading($self)\n--\n\nasyncio.ReadTransport.pause_reading()."),
    py.Method.noArgs("resume_reading", resumeReading, "resume_reading($self)\n--\n\nasyncio.ReadTransport.resume_reading()."),
} ++ stream_write.methods ++ stream_close.methods ++ [_]c.PyMethodDef{.{}};

const properties = [_]c.PyGetSetDef{
    heap_type.dict_property,
    py.getter("_extra", getExtra),
    py.getter("_loop", getLoop),
    py.getter("_sock", getSock),
    py.getter("_own_socket", getOwnSocket),
    py.getter("_sock_fd", getFd),
    py.getter("_protocol", getProtocol),
    py.getter("_closing", getClosing),
    py.getter("_conn_lost", getConnLost),
    py.getter("_paused", getPaused),
    py.getter("_protocol_paused", getProtocolPaused),
    py.getter("_start_tls_compatible", getTrue),
    py.getter("_sendfile_compatible", getSendfileMode),
    .{},
};

const members = heap_type.dictAndWeakrefs(Layout, Fields);

pub const spec = heap_type.final("zloop._engine.StreamTransport", Layout.size, guard.byLoop(Layout), .{
    .tp_dealloc = &dealloc,
    .tp_finalize = &stream_close.finalize,
    .tp_traverse = py.traverse(traverseFields),
    .tp_clear = &clearFields,
    .tp_repr = &repr,
    .tp_methods = &methods,
    .tp_getset = &properties,
    .tp_members = &members,
});
