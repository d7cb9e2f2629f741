//! SSLTransport: TLS over a StreamTransport, with OpenSSL driven directly.
//!
//! It is both the transport that the program sees (asyncio's _SSLProtocolTransport) and the protocol
//! of the StreamTransport below it (asyncio's SSLProtocol). The SSLObject is the stdlib's own; only
//! its BIOs are ours. The handshake goes through its Python methods, so callbacks and exceptions are
//! the stdlib's; what carries data calls OpenSSL straight.
//!
//!     application protocol
//!        ^ tls_read.zig             | tls_write.zig: SSL_write_ex, `backlog`
//!        | SSL_read_ex              v
//!     Channel.in  <-- tls_bio.zig --> Channel.out
//!        ^ stream_read.zig          | stream_write.zig: sendBorrowed
//!        |                          v
//!     StreamTransport (one recv, one send)
//!
//! Ownership: the transport owns its SSLObject and one reference to the BIO. It and the stream hold
//! each other until connection_lost; then the stream lets go. `ssl` is the SSLObject's and may be
//! used in the states `wrapped` to `shutdown` only.
//!
//! Everything here belongs to the loop's thread.

const std = @import("std");
const c = @import("c.zig");
const py = @import("py.zig");
const args = @import("args.zig");
const guard = @import("guard.zig");
const heap_type = @import("heap_type.zig");
const loop_type = @import("loop_type.zig");
const openssl = @import("openssl.zig");
const stream = @import("stream.zig");
const stream_read = @import("stream_read.zig");
const stream_write = @import("stream_write.zig");
const tls_bio = @import("tls_bio.zig");
const tls_life = @import("tls_life.zig");
const tls_read = @import("tls_read.zig");
const tls_write = @import("tls_write.zig");

const Object = py.Object;
const LoopFields = loop_type.Fields;

/// asyncio's SSLProtocolState.
pub const Phase = enum {
    /// Not begun, or over.
    unwrapped,
    handshake,
    wrapped,
    /// Closing; plaintext is still leaving.
    flushing,
    /// close_notify has been given to the stream; the peer's is awaited.
    shutdown,
};

/// asyncio's AppProtocolState.
pub const AppPhase = enum { init, connected, eof, lost };

pub const Fields = struct {
    channel: tls_bio.Channel,
    loop: *LoopFields,
    table: *const openssl.Table,
    ssl: *openssl.Ssl,
    /// What `ssl` belongs to, inside of the SSLObject.
    ssl_owner: ?*Object,
    bio: *openssl.Bio,
    ssl_object: ?*Object,
    sslcontext: ?*Object,
    /// The StreamTransport, from connection_made on. Kept after the end for get_extra_info.
    stream: ?*Object,
    protocol: ?*Object,
    waiter: ?*Object,
    /// peercert, cipher and compression once somebody has asked.
    extra: ?*Object,
    /// The TimerHandle of the handshake or of the shutdown.
    timer: ?*Object,
    handshake_timeout: ?*Object,
    shutdown_timeout: ?*Object,
    /// Ciphertext that came while the program did not read.
    stash: std.ArrayList(u8),
    /// Plaintext that waits for the handshake or for room below.
    backlog: stream_write.Queue,
    high_water: usize,
    low_water: usize,
    read_high_water: usize,
    read_low_water: usize,
    /// Bytes thrown away since close_notify left.
    discarded: usize,
    /// What OpenSSL has answered by itself (key updates, refused renegotiations) since all that was
    /// to be sent had left, in bytes.
    answered: usize,
    handshake_start_ns: u64,
    conn_lost: u32,
    phase: Phase,
    app_phase: AppPhase,
    delivery: stream_read.Delivery,
    server_side: bool,
    /// A connection of a server: nobody awaits the handshake.
    accepted: bool,
    handshaken: bool,
    /// Counted in the loop's Burst.
    shaking_hands: bool,
    closed: bool,
    /// connection_lost has been called.
    lost: bool,
    /// The stream has ended without close_notify.
    eof_seen: bool,
    app_reading_paused: bool,
    app_writing_paused: bool,
    stream_reading_paused: bool,
    /// Ciphertext is being worked on further up the call stack.
    receiving: bool,
    /// The peer's program has said something: from then on what is written may wait, see `stream_write.zig`.
    heard: bool,
    /// Ciphertext must not leave now.
    held: bool,
    /// OpenSSL is at work further up the call stack.
    in_ssl: bool,
    dict: ?*Object,
    weakrefs: ?*Object,

    pub inline fn object(self: *const Fields) *Object {
        return Layout.objectOf(self);
    }

    /// The stream below while there is one that can carry anything.
    pub fn below(self: *const Fields) ?*stream.Fields {
        if (self.lost) return null;
        return stream.of(self.stream orelse return null);
    }

    /// Whether nothing can reach the peer any more.
    pub fn isLost(self: *const Fields) bool {
        const under = self.below() orelse return true;
        return under.conn_lost > 0;
    }

    /// Whether `ssl` can be used for data.
    pub fn isOpen(self: *const Fields) bool {
        return switch (self.phase) {
            .wrapped, .flushing, .shutdown => true,
            .unwrapped, .handshake => false,
        };
    }
};

pub const Layout = py.Layout(Fields, stream.base_size);
pub const of = Layout.of;

pub const Options = struct {
    protocol: *Object,
    sslcontext: *Object,
    server_side: bool = false,
    server_hostname: ?*Object = null,
    waiter: ?*Object = null,
    call_connection_made: bool = true,
    accepted: bool = false,
    /// The protocol has been told to pause and expects to hear when it may go on.
    writing_paused: bool = false,
    handshake_timeout: *Object,
    shutdown_timeout: *Object,
};

/// asyncio's limits for TLS, both ways.
const write_high_water_default = 512 * 1024;
const read_high_water_default = 256 * 1024;

/// A new transport, or null if the direct engine cannot serve this context.
pub fn create(loop: *LoopFields, options: Options) py.Error!?*Object {
    const state = loop.state;
    const table = (try openssl.get(state)) orelse return null;
    const ssl_object = try openssl.wrap(state, options.sslcontext, options.server_side, options.server_hostname orelse py.none());
    defer py.decref(ssl_object);
    // A subclass may do anything with the data that passes through it.
    if (!py.isExact(ssl_object, @ptrCast(state.ssl_object_type))) return null;
    if (try hasMessageCallback(state, options.sslcontext)) return null;
    const found = (try openssl.pointerOf(state, table, ssl_object, options.sslcontext)) orelse return null;
    defer py.decref(found.owner);
    const ssl = found.ssl;

    const delivery = try stream_read.deliveryFor(state, options.protocol);
    const made = try py.check(c.PyType_GenericAlloc(state.tls_transport_type, 0));
    const self = of(made);
    self.channel = .{ .pool = &loop.tls_pool };
    const bio = tls_bio.attach(table, state.openssl.bio_method, ssl, &self.channel) orelse {
        // Nothing in it is an object yet: it goes as it came.
        const t: *Object = @ptrCast(py.typeOf(made));
        c.PyObject_GC_UnTrack(made);
        c.PyObject_GC_Del(made);
        py.decref(t);
        return py.noMemory();
    };
    openssl.releaseBuffersWhenIdle(table, ssl);
    py.incref(loop.object());
    self.* = .{
        .channel = self.channel,
        .loop = loop,
        .table = table,
        .ssl = ssl,
        .ssl_owner = py.newRef(found.owner),
        .bio = bio,
        .ssl_object = py.newRef(ssl_object),
        .sslcontext = py.newRef(options.sslcontext),
        .stream = null,
        .protocol = py.newRef(options.protocol),
        .waiter = if (options.waiter) |waiter| py.newRef(waiter) else null,
        .extra = null,
        .timer = null,
        .handshake_timeout = py.newRef(options.handshake_timeout),
        .shutdown_timeout = py.newRef(options.shutdown_timeout),
        .stash = .empty,
        .backlog = .{},
        .high_water = write_high_water_default,
        .low_water = write_high_water_default / 4,
        .read_high_water = read_high_water_default,
        .read_low_water = read_high_water_default / 4,
        .discarded = 0,
        .answered = 0,
        .handshake_start_ns = 0,
        .conn_lost = 0,
        .phase = .unwrapped,
        .app_phase = if (options.call_connection_made) .init else .connected,
        .delivery = delivery,
        .server_side = options.server_side,
        .accepted = options.accepted,
        .handshaken = false,
        .shaking_hands = false,
        .closed = false,
        .lost = false,
        .eof_seen = false,
        .app_reading_paused = false,
        .app_writing_paused = options.writing_paused,
        .stream_reading_paused = false,
        .receiving = false,
        .heard = false,
        .held = false,
        .in_ssl = false,
        .dict = null,
        .weakrefs = null,
    };
    return made;
}

/// A callback for every protocol message reports its exceptions through the Python methods that
/// carry data, so those have to be used.
fn hasMessageCallback(state: *@import("state.zig").State, context: *Object) py.Error!bool {
    const callback = try py.getAttr(context, state.name(._msg_callback));
    defer py.decref(callback);
    return callback != py.none();
}

/// `_make_tls_transport(protocol, sslcontext, waiter, server_side, server_hostname,
/// call_connection_made, writing_paused, handshake_timeout, shutdown_timeout)`, or None.
pub fn makeSSLTransport(object: *Object, argv: []const *Object) py.Error!*Object {
    if (argv.len != 9) return py.raise(c.PyExc_TypeError, "_make_tls_transport() takes 9 arguments");
    const made = try create(loop_type.of(object), .{
        .protocol = argv[0],
        .sslcontext = argv[1],
        .waiter = args.given(argv[2]),
        .server_side = try py.isTrue(argv[3]),
        .server_hostname = args.given(argv[4]),
        .call_connection_made = try py.isTrue(argv[5]),
        .writing_paused = try py.isTrue(argv[6]),
        .handshake_timeout = argv[7],
        .shutdown_timeout = argv[8],
    });
    return made orelse py.newNone();
}

/// Why the direct engine cannot run, as a str; None if it can.
pub fn tlsUnavailable(object: *Object) py.Error!*Object {
    const state = loop_type.of(object).state;
    _ = try openssl.get(state);
    const reason = state.openssl.reason orelse return py.newNone();
    return py.check(c.PyUnicode_FromString(reason));
}

/// What asyncio's SSLProtocol keeps after the handshake, made when asked for: most programs never
/// look, and a certificate as a dict weighs kilobytes.
fn handshakeInfo(self: *Fields, name: *Object) py.Error!?*Object {
    const state = self.loop.state;
    if (c.PyUnicode_CompareWithASCIIString(name, "sslcontext") == 0) return py.newRef(self.sslcontext orelse py.none());
    if (!self.handshaken) return null;
    const ssl_object = self.ssl_object orelse return null;
    if (c.PyUnicode_CompareWithASCIIString(name, "ssl_object") == 0) return py.newRef(ssl_object);
    inline for (.{ .{ "peercert", .getpeercert }, .{ "cipher", .cipher }, .{ "compression", .compression } }) |row| {
        if (c.PyUnicode_CompareWithASCIIString(name, row[0]) == 0) {
            if (self.extra) |extra| {
                if (c.PyDict_GetItemWithError(extra, name)) |value| return py.newRef(value);
                if (c.PyErr_Occurred() != null) return error.Python;
            }
            const value = try py.callMethod(ssl_object, state.name(row[1]), .{});
            errdefer py.decref(value);
            if (self.extra == null) self.extra = try py.check(c.PyDict_New());
            try py.checkInt(c.PyDict_SetItem(self.extra.?, name, value));
            return value;
        }
    }
    return null;
}

fn extraInfo(self: *Fields, name: *Object) py.Error!?*Object {
    if (py.isInstance(name, &c.PyUnicode_Type)) {
        if (try handshakeInfo(self, name)) |value| return value;
    }
    const below = self.stream orelse return null;
    return stream.extraInfo(stream.of(below), name);
}

fn getExtraInfo(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const slots_given = try args.parse("get_extra_info", &.{ "name", "default" }, .{ .required = 1 }, argv, names);
    const value = try extraInfo(of(object), slots_given[0].?);
    return value orelse py.newRef(slots_given[1] orelse py.none());
}

/// asyncio's `_extra` as a dict, filled in.
fn getExtra(object: *Object) py.Error!*Object {
    const self = of(object);
    const extra = try py.check(c.PyDict_New());
    errdefer py.decref(extra);
    inline for (.{ .sslcontext, .ssl_object, .peercert, .cipher, .compression }) |which| {
        const name = self.loop.state.name(which);
        if (try handshakeInfo(self, name)) |value| {
            defer py.decref(value);
            try py.checkInt(c.PyDict_SetItem(extra, name, value));
        }
    }
    return extra;
}

fn isClosing(object: *Object) py.Error!*Object {
    const self = of(object);
    if (self.below()) |below| try stream_write.settleForDrain(self, below);
    const closing_below = if (self.below()) |below| below.closing else false;
    return py.newBool(self.closed or closing_below);
}

pub fn setProtocolFields(self: *Fields, protocol: *Object) py.Error!void {
    self.delivery = try stream_read.deliveryFor(self.loop.state, protocol);
    py.replace(&self.protocol, py.newRef(protocol));
}

fn setProtocol(object: *Object, protocol: *Object) py.Error!*Object {
    try setProtocolFields(of(object), protocol);
    return py.newNone();
}

fn getProtocol(object: *Object) py.Error!*Object {
    return py.newRef(of(object).protocol orelse py.none());
}

fn getSelf(object: *Object) py.Error!*Object {
    return py.newRef(object);
}

fn getStream(object: *Object) py.Error!*Object {
    const self = of(object);
    if (self.lost) return py.newNone();
    return py.newRef(self.stream orelse py.none());
}

fn getLoop(object: *Object) py.Error!*Object {
    return py.newRef(of(object).loop.object());
}

fn getSslObject(object: *Object) py.Error!*Object {
    return py.newRef(of(object).ssl_object orelse py.none());
}

fn getSslContext(object: *Object) py.Error!*Object {
    return py.newRef(of(object).sslcontext orelse py.none());
}

fn getClosed(object: *Object) py.Error!*Object {
    return py.newBool(of(object).closed);
}

fn getTrue(_: *Object) py.Error!*Object {
    return py.newBool(true);
}

fn getSendfileMode(object: *Object) py.Error!*Object {
    return py.newRef(of(object).loop.state.sendfile_fallback);
}

fn getReadingPaused(object: *Object) py.Error!*Object {
    return py.newBool(of(object).app_reading_paused);
}

fn getProtocolPaused(object: *Object) py.Error!*Object {
    return py.newBool(of(object).app_writing_paused);
}

fn repr(object: *Object) callconv(.c) ?*Object {
    const self = of(object);
    const label: [*:0]const u8 = if (self.lost) " closed" else if (self.closed) " closing" else "";
    if (self.below()) |below| return c.PyUnicode_FromFormat("<SSLTransport%s over %R>", label, below.object());
    return c.PyUnicode_FromFormat("<SSLTransport%s>", label);
}

fn dealloc(object: *Object) callconv(.c) void {
    const self = of(object);
    if (c.PyObject_CallFinalizerFromDealloc(object) < 0) return;
    const t: *Object = @ptrCast(py.typeOf(object));
    c.PyObject_GC_UnTrack(object);
    if (self.weakrefs != null) c.PyObject_ClearWeakRefs(object);
    tls_bio.detach(self.table, self.bio);
    _ = clearFields(object);
    self.channel.deinit();
    self.stash.deinit(loop_type.gpa);
    py.decref(self.loop.object());
    c.PyObject_GC_Del(object);
    py.decref(t);
}

const references = .{
    "ssl_owner", "ssl_object",        "sslcontext",       "stream", "protocol", "waiter", "extra",
    "timer",     "handshake_timeout", "shutdown_timeout", "dict",
};

fn traverseFields(object: *Object, visitor: py.Visitor) error{Stop}!void {
    const self = of(object);
    try visitor.object(self.loop.object());
    inline for (references) |field| try visitor.object(@field(self, field));
}

fn clearFields(object: *Object) callconv(.c) c_int {
    const self = of(object);
    tls_life.handshakeOver(self);
    // The SSLObject goes: nothing may use `ssl` from here on.
    self.phase = .unwrapped;
    self.lost = true;
    self.backlog.clear(&self.loop.write_pool, loop_type.gpa);
    inline for (references) |field| py.clear(&@field(self, field));
    return 0;
}

/// `__del__`: a transport that nobody closed and nobody can reach any more.
fn finalize(object: *Object) callconv(.c) void {
    const self = of(object);
    if (self.closed) return;
    self.closed = true;
    const saved: py.Saved = .save();
    defer saved.restore();
    if (c.PyErr_ResourceWarning(object, 1, "unclosed transport %R", object) < 0) c.PyErr_WriteUnraisable(object);
}

const methods = [_]c.PyMethodDef{
    py.Method.keywords("get_extra_info", getExtraInfo, "get_extra_info($self, name, default=None)\n--\n\nasyncio.BaseTransport.get_extra_info(): sslcontext, ssl_object, peercert, cipher, compression, and what the stream below knows."),
    py.Method.noArgs("is_closing", isClosing, "is_closing($self)\n--\n\nasyncio.BaseTransport.is_closing()."),
    py.Method.oneArg("set_protocol", setProtocol, "set_protocol($self, protocol)\n--\n\nasyncio.BaseTransport.set_protocol()."),
    py.Method.noArgs("get_protocol", getProtocol, "get_protocol($self)\n--\n\nasyncio.BaseTransport.get_protocol()."),
} ++ tls_read.methods ++ tls_write.methods ++ tls_life.methods ++ [_]c.PyMethodDef{.{}};

const properties = [_]c.PyGetSetDef{
    heap_type.dict_property,
    py.getter("_extra", getExtra),
    py.getter("_loop", getLoop),
    py.getter("_ssl_protocol", getSelf),
    py.getter("_app_transport", getSelf),
    py.getter("_app_protocol", getProtocol),
    py.getter("_protocol", getProtocol),
    py.getter("_transport", getStream),
    py.getter("_sslobj", getSslObject),
    py.getter("_sslcontext", getSslContext),
    py.getter("_closed", getClosed),
    py.getter("_protocol_paused", getProtocolPaused),
    py.getter("_app_reading_paused", getReadingPaused),
    py.getter("_start_tls_compatible", getTrue),
    py.getter("_sendfile_compatible", getSendfileMode),
    .{},
};

const members = heap_type.dictAndWeakrefs(Layout, Fields);

pub const spec = heap_type.final("zloop._engine.SSLTransport", Layout.size, guard.byLoop(Layout), .{
    .tp_dealloc = &dealloc,
    .tp_finalize = &finalize,
    .tp_traverse = py.traverse(traverseFields),
    .tp_clear = &clearFields,
    .tp_repr = &repr,
    .tp_methods = &methods,
    .tp_getset = &properties,
    .tp_members = &members,
});
