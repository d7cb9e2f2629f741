//! DatagramTransport: a socket that carries datagrams, UDP, Unix or any other family.
//!
//! The Python socket object owns the descriptor; the transport holds it, and closes it once, after
//! the watch has left the kernel and the table. Internet and Unix sockets are read and written
//! natively; other families, and objects that only look like sockets, by the methods of the object.
//!
//! Life: made (`create`) → started (connection_made has been called, reading is armed) → closing
//! (no more reading; queued datagrams leave) → lost (connection_lost has been called). Steps are
//! taken from the ready queue, so none of them runs inside another callback.
//!
//! Everything here belongs to the loop's thread.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const args = @import("args.zig");
const datagram_receive = @import("datagram_receive.zig");
const datagram_send = @import("datagram_send.zig");
const debug = @import("debug.zig");
const guard = @import("guard.zig");
const heap_type = @import("heap_type.zig");
const loop_fds = @import("loop_fds.zig");
const loop_type = @import("loop_type.zig");
const transport = @import("transport.zig");
const Source = @import("source.zig").Source;

const Object = py.Object;
const LoopFields = loop_type.Fields;

/// asyncio.DatagramTransport: the object header and one slot, `_extra`.
pub const base_size = @sizeOf(c.PyObject) + @sizeOf(usize);

/// How addresses of this socket are read and written.
pub const Family = enum { internet, unix, other };

pub const Fields = struct {
    source: Source,
    /// A strong reference to the loop's object, kept to the end: the finalizer needs it.
    loop: *LoopFields,
    protocol: ?*Object,
    /// Protocol methods run in it. Replaced by the context of the caller that ends the transport.
    context: ?*Object,
    /// As a stream's.
    writer_context: ?*Object,
    sock: ?*Object,
    /// Where `sock` keeps its number, as in a stream.
    number: ?*const c_int = null,
    extra: ?*Object,
    /// The only peer that `sendto` accepts, if there is one.
    address: ?*Object,
    waiter: ?*Object,
    /// What connection_lost will be told.
    lost_exception: ?*Object,
    queue: datagram_send.Queue,
    /// Datagrams that came in the same batch as one whose receiver paused reading.
    held: core.Fifo(datagram_receive.Held),
    high_water: usize,
    low_water: usize,
    /// Sends since the transport was lost, plus one; asyncio warns from the fifth on.
    conn_lost: u32,
    family: Family,
    family_number: std.c.sa_family_t,
    /// The kernel knows the peer: datagrams are sent without an address.
    connected: bool,
    started: bool,
    closing: bool,
    paused: bool,
    protocol_paused: bool,
    protocol_connected: bool,
    /// connection_lost has been called, or the socket closed without it.
    released: bool,
    dict: ?*Object,
    weakrefs: ?*Object,

    pub inline fn object(self: *const Fields) *Object {
        return self.source.object;
    }

    pub inline fn fd(self: *const Fields) core.sys.fd_t {
        return self.source.watch.fd;
    }

    /// As in a stream.
    pub inline fn ownsNumber(self: *const Fields) bool {
        const number = self.number orelse return true;
        return number.* == self.fd();
    }

    pub fn isReading(self: *const Fields) bool {
        return !self.closing and !self.paused;
    }

    pub fn ofSource(source: *Source) *Fields {
        return @fieldParentPtr("source", source);
    }

    pub const has_one_context = false;

    fn interest(self: *const Fields) core.reactor.Interest {
        return .{ .read = self.started and self.isReading(), .write = self.source.watch.armed.write };
    }
};

pub const Layout = py.Layout(Fields, base_size);
pub const of = Layout.of;

const vtable: Source.VTable = .{ .ready = ready, .step = step, .contexts = contextsOf, .wanted = wanted, .is_transport = true };

/// `_make_datagram_transport(sock, protocol, address=None, waiter=None, extra=None)`.
pub fn make(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const loop = loop_type.of(object);
    try loop.checkUsable();
    const given = try args.parse("_make_datagram_transport", &.{ "sock", "protocol", "address", "waiter", "extra" }, .{ .required = 2 }, argv, names);
    const sock = given[0].?;
    const fd = try loop_fds.ensureNoTransport(loop, sock);
    const context = try py.check(c.PyContext_CopyCurrent());
    const made = c.PyType_GenericAlloc(loop.state.datagram_transport_type, 0) orelse {
        py.decref(context);
        return error.Python;
    };
    const self = of(made);
    py.incref(loop.object());
    self.* = .{
        .source = .{ .watch = .{ .fd = fd }, .vtable = &vtable, .object = made },
        .loop = loop,
        .protocol = py.newRef(given[1].?),
        .context = context,
        .writer_context = null,
        .sock = null,
        .extra = null,
        .address = if (args.given(given[2])) |address| py.newRef(address) else null,
        .waiter = if (args.given(given[3])) |waiter| py.newRef(waiter) else null,
        .lost_exception = null,
        .queue = .{},
        .held = .empty,
        .high_water = transport.high_water_default,
        .low_water = transport.high_water_default / 4,
        .conn_lost = 0,
        .family = .other,
        .family_number = std.c.AF.UNSPEC,
        .connected = false,
        .started = false,
        .closing = false,
        .paused = false,
        .protocol_paused = false,
        .protocol_connected = true,
        .released = false,
        .dict = null,
        .weakrefs = null,
    };
    errdefer {
        // Still the caller's socket: the finalizer must not close it.
        self.released = true;
        py.decref(made);
    }
    try describe(self, sock, args.given(given[4]));
    try transport.queueStep(self);
    self.sock = py.newRef(sock);
    self.number = loop.state.socketNumber(sock);
    return made;
}

/// Fills in `extra`, and finds out how the socket is to be used.
fn describe(self: *Fields, sock: *Object, extra: ?*Object) py.Error!void {
    const state = self.loop.state;
    self.extra = try py.check(c.PyDict_New());
    if (extra) |more| try py.checkInt(c.PyDict_Update(self.extra.?, more));
    try setExtra(self, .socket, try py.call(state.transport_socket_type, .{sock}));
    try setExtra(self, .sockname, try askName(self, sock, .getsockname));
    if (c.PyDict_GetItemWithError(self.extra.?, state.name(.peername)) == null) {
        if (c.PyErr_Occurred() != null) return error.Python;
        try setExtra(self, .peername, try askName(self, sock, .getpeername));
    }
    var own: core.sys.Address = undefined;
    var peer: core.sys.Address = undefined;
    self.connected = core.sys.peerAddress(self.fd(), &peer) == null;
    if (!py.isExact(sock, @ptrCast(state.socket_type))) return;
    if (core.sys.localAddress(self.fd(), &own) != null) return;
    self.family_number = own.family();
    self.family = switch (self.family_number) {
        std.c.AF.INET, std.c.AF.INET6 => .internet,
        std.c.AF.UNIX => .unix,
        else => .other,
    };
}

fn setExtra(self: *Fields, comptime name: @import("state.zig").Name, value: *Object) py.Error!void {
    defer py.decref(value);
    try py.checkInt(c.PyDict_SetItem(self.extra.?, self.loop.state.name(name), value));
}

/// None where the kernel has no name to give.
fn askName(self: *Fields, sock: *Object, comptime method: @import("state.zig").Name) py.Error!*Object {
    return py.callMethod(sock, self.loop.state.name(method), .{}) catch {
        if (!py.matches(c.PyExc_OSError)) return error.Python;
        c.PyErr_Clear();
        return py.newNone();
    };
}

fn step(source: *Source) py.Error!void {
    const self: *Fields = .ofSource(source);
    if (!self.started) return start(self);
    if (self.conn_lost > 0) return connectionLost(self);
    try datagram_receive.deliverHeld(self);
}

/// connection_made, then reading, then the waiter: asyncio's order.
fn start(self: *Fields) py.Error!void {
    return transport.start(self, begin);
}

fn begin(self: *Fields) py.Error!void {
    if (self.isReading() and !self.loop.closed) {
        self.source.arm(self.loop, self.interest()) catch {
            if (py.isExit()) return error.Python;
            const exception = py.takeException();
            defer py.decref(exception);
            try fatalError(self, exception, "Fatal read error on datagram transport");
        };
    }
    const waiter = self.waiter orelse return;
    self.waiter = null;
    defer py.decref(waiter);
    try transport.setResultUnlessCancelled(self.loop.state, waiter);
}

/// The descriptor is ready. Reading comes before writing, as in asyncio's event order.
fn ready(source: *Source, readiness: core.reactor.Readiness) py.Error!void {
    const self: *Fields = .ofSource(source);
    if (readiness.read and self.isReading()) try datagram_receive.ready(self);
    if (readiness.write and source.watch.armed.write) try datagram_send.ready(self);
}

fn contextsOf(source: *Source) [2]?*Object {
    const self: *Fields = .ofSource(source);
    return .{ self.context, self.writer_context };
}

fn wanted(source: *Source) core.reactor.Interest {
    const self: *Fields = .ofSource(source);
    if (self.released or self.conn_lost > 0) return .none;
    // After a failed last datagram one more turn is owed, see `datagram_send.ready`.
    return .{ .read = self.interest().read, .write = self.writer_context != null };
}

pub fn stopReading(self: *Fields) void {
    self.source.disarm(self.loop, .{ .write = self.source.watch.armed.write });
}

/// Ends the transport because of `exception`. An OSError is the network's business and logged in
/// debug mode only; anything else is reported.
pub fn fatalError(self: *Fields, exception: *Object, message: [*:0]const u8) py.Error!void {
    if (py.isInstance(exception, @ptrCast(c.PyExc_OSError))) {
        try debug.log(self.loop, "%r: fatal error on transport", self.object());
    } else {
        try transport.report(self, exception, message);
    }
    try forceClose(self, exception);
}

/// As `fatalError` for the exception that is set; one that must leave the loop comes back.
pub fn fatalPending(self: *Fields, message: [*:0]const u8) py.Error!void {
    if (py.isExit()) return error.Python;
    const exception = py.takeException();
    defer py.decref(exception);
    try fatalError(self, exception, message);
}

fn forceClose(self: *Fields, exception: ?*Object) py.Error!void {
    if (self.conn_lost > 0) return;
    self.conn_lost = 1;
    self.closing = true;
    self.source.disarm(self.loop, .none);
    clearQueues(self);
    try queueLost(self, exception);
}

/// connection_lost runs in the context of whoever ended the transport, as a call_soon would.
fn queueLost(self: *Fields, exception: ?*Object) py.Error!void {
    self.lost_exception = if (exception) |e| py.newRef(e) else null;
    try transport.takeCallersContext(self);
    if (self.loop.closed) return;
    try transport.queueStep(self);
}

pub fn connectionLost(self: *Fields) py.Error!void {
    if (self.released) return;
    const object = py.newRef(self.object());
    defer py.decref(object);
    const exception = self.lost_exception orelse py.newNone();
    self.lost_exception = null;
    defer py.decref(exception);
    var left: ?py.Saved = null;
    const protocol = self.protocol;
    self.protocol = null;
    defer py.xdecref(protocol);
    if (self.protocol_connected) if (protocol) |p| transport.callReported(self, p, .connection_lost, .{exception}) catch {
        left = .save();
    };
    self.protocol_connected = false;
    release(self) catch c.PyErr_WriteUnraisable(object);
    py.clear(&self.waiter);
    if (left) |saved| {
        saved.restore();
        return error.Python;
    }
}

/// Closes the socket, once. Its descriptor is in no table any more when the number becomes free.
fn release(self: *Fields) py.Error!void {
    if (self.released) return;
    self.released = true;
    // After the finalizer others' finalizers can still come: the number may be another's by then.
    self.closing = true;
    self.conn_lost = @max(self.conn_lost, 1);
    self.source.disarm(self.loop, .none);
    clearQueues(self);
    const sock = self.sock orelse return;
    self.number = null;
    self.sock = null;
    defer py.decref(sock);
    py.decref(try py.callMethod(sock, self.loop.state.name(.close), .{}));
}

fn clearQueues(self: *Fields) void {
    self.queue.clear();
    while (self.held.pop()) |datagram| datagram.release();
}

/// `__del__`: a transport that nobody closed and nobody can reach any more.
fn finalize(object: *Object) callconv(.c) void {
    const self = of(object);
    if (self.released) return;
    const saved: py.Saved = .save();
    defer saved.restore();
    if (c.PyErr_ResourceWarning(object, 1, "unclosed transport %R", object) < 0) c.PyErr_WriteUnraisable(object);
    release(self) catch c.PyErr_WriteUnraisable(object);
}

fn close(object: *Object) py.Error!*Object {
    const self = of(object);
    if (self.closing) return py.newNone();
    self.closing = true;
    stopReading(self);
    while (self.held.pop()) |datagram| datagram.release();
    if (self.queue.items.len == 0) {
        self.conn_lost += 1;
        self.source.disarm(self.loop, .none);
        try queueLost(self, null);
    }
    return py.newNone();
}

fn abort(object: *Object) py.Error!*Object {
    try forceClose(of(object), null);
    return py.newNone();
}

fn forceCloseMethod(object: *Object, exception: *Object) py.Error!*Object {
    try forceClose(of(object), if (exception == py.none()) null else exception);
    return py.newNone();
}

fn isClosing(object: *Object) py.Error!*Object {
    return py.newBool(of(object).closing);
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
    if (!self.loop.closed) {
        try self.source.arm(self.loop, self.interest());
        if (self.held.len > 0) try transport.queueStep(self);
    }
    try debug.log(self.loop, "%r resumes reading", object);
    return py.newNone();
}

fn getExtraInfo(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const given = try args.parse("get_extra_info", &.{ "name", "default" }, .{ .required = 1 }, argv, names);
    if (of(object).extra) |extra| {
        if (c.PyDict_GetItemWithError(extra, given[0].?)) |value| return py.newRef(value);
        if (c.PyErr_Occurred() != null) return error.Python;
    }
    return py.newRef(given[1] orelse py.none());
}

fn setProtocol(object: *Object, protocol: *Object) py.Error!*Object {
    const self = of(object);
    py.replace(&self.protocol, py.newRef(protocol));
    self.protocol_connected = true;
    return py.newNone();
}

fn orNone(reference: ?*Object) py.Error!*Object {
    return py.newRef(reference orelse py.none());
}

fn getProtocol(object: *Object) py.Error!*Object {
    return orNone(of(object).protocol);
}

fn getExtra(object: *Object) py.Error!*Object {
    return orNone(of(object).extra);
}

fn getLoop(object: *Object) py.Error!*Object {
    const self = of(object);
    return orNone(if (self.released) null else self.loop.object());
}

fn getSock(object: *Object) py.Error!*Object {
    return orNone(of(object).sock);
}

fn getFd(object: *Object) py.Error!*Object {
    return py.newInt(of(object).fd());
}

fn getAddress(object: *Object) py.Error!*Object {
    return orNone(of(object).address);
}

fn getConnLost(object: *Object) py.Error!*Object {
    return py.newInt(of(object).conn_lost);
}

fn repr(object: *Object) callconv(.c) ?*Object {
    const self = of(object);
    const label: [*:0]const u8 = if (self.released) " closed" else if (self.closing) " closing" else "";
    const armed = self.source.watch.armed;
    const reading: [*:0]const u8 = if (armed.read) "polling" else "idle";
    const writing: [*:0]const u8 = if (armed.write) "polling" else "idle";
    return c.PyUnicode_FromFormat("<DatagramTransport%s fd=%d read=%s write=<%s, bufsize=%zd>>", label, @as(c_int, self.fd()), reading, writing, @as(c.Ssize, @intCast(self.queue.size)));
}

const references = .{ "protocol", "context", "writer_context", "extra", "address", "waiter", "lost_exception", "dict" };

fn dealloc(object: *Object) callconv(.c) void {
    const self = of(object);
    if (c.PyObject_CallFinalizerFromDealloc(object) < 0) return;
    const t: *Object = @ptrCast(py.typeOf(object));
    c.PyObject_GC_UnTrack(object);
    if (self.weakrefs != null) c.PyObject_ClearWeakRefs(object);
    _ = clearFields(object);
    self.queue.items.deinit(loop_type.gpa);
    self.held.deinit(loop_type.gpa);
    py.decref(self.loop.object());
    c.PyObject_GC_Del(object);
    py.decref(t);
}

fn traverseFields(object: *Object, visitor: py.Visitor) error{Stop}!void {
    const self = of(object);
    try visitor.object(self.loop.object());
    try transport.visitSocket(self, visitor);
    inline for (references) |field| try visitor.object(@field(self, field));
    for (0..self.queue.items.len) |i| {
        const pending = self.queue.items.at(i);
        try visitor.object(pending.data);
        try visitor.object(pending.address);
    }
    for (0..self.held.len) |i| {
        const datagram = self.held.at(i);
        try visitor.object(datagram.data);
        try visitor.object(datagram.address);
    }
}

fn clearFields(object: *Object) callconv(.c) c_int {
    const self = of(object);
    clearQueues(self);
    self.number = null;
    py.clear(&self.sock);
    inline for (references) |field| py.clear(&@field(self, field));
    return 0;
}

const methods = [_]c.PyMethodDef{
    py.Method.keywords("get_extra_info", getExtraInfo, "get_extra_info($self, name, default=None)\n--\n\nasyncio.BaseTransport.get_extra_info(): socket, sockname, peername."),
    py.Method.noArgs("is_closing", isClosing, "is_closing($self)\n--\n\nasyncio.BaseTransport.is_closing()."),
    py.Method.noArgs("close", close, "close($self)\n--\n\nasyncio.BaseTransport.close(): queued datagrams still leave."),
    py.Method.noArgs("abort", abort, "abort($self)\n--\n\nasyncio.DatagramTransport.abort(): queued datagrams are dropped."),
    py.Method.oneArg("_force_close", forceCloseMethod, "_force_close($self, exc)\n--\n\nabort() with a reason for connection_lost()."),
    py.Method.oneArg("set_protocol", setProtocol, "set_protocol($self, protocol)\n--\n\nasyncio.BaseTransport.set_protocol()."),
    py.Method.noArgs("get_protocol", getProtocol, "get_protocol($self)\n--\n\nasyncio.BaseTransport.get_protocol()."),
    py.Method.noArgs("is_reading", isReadingMethod, "is_reading($self)\n--\n\nWhether datagrams are being received."),
    py.Method.noArgs("pause_reading", pauseReading, "pause_reading($self)\n--\n\nLeaves datagrams to the kernel until resume_reading()."),
    py.Method.noArgs("resume_reading", resumeReading, "resume_reading($self)\n--\n\nReceives datagrams again."),
} ++ datagram_send.methods ++ [_]c.PyMethodDef{.{}};

const properties = [_]c.PyGetSetDef{
    heap_type.dict_property,
    py.getter("_extra", getExtra),
    py.getter("_loop", getLoop),
    py.getter("_sock", getSock),
    py.getter("_sock_fd", getFd),
    py.getter("_protocol", getProtocol),
    py.getter("_address", getAddress),
    py.getter("_closing", isClosing),
    py.getter("_conn_lost", getConnLost),
    .{},
};

const members = heap_type.dictAndWeakrefs(Layout, Fields);

pub const spec = heap_type.final("zloop._engine.DatagramTransport", Layout.size, guard.byLoop(Layout), .{
    .tp_dealloc = &dealloc,
    .tp_finalize = &finalize,
    .tp_traverse = py.traverse(traverseFields),
    .tp_clear = &clearFields,
    .tp_repr = &repr,
    .tp_methods = &methods,
    .tp_getset = &properties,
    .tp_members = &members,
});
