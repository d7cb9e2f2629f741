//! What the two pipe transports have in common: fields, life and the end.
//!
//! A pipe transport serves one direction of a pipe, FIFO, character device or socket. The Python
//! file object that it was given owns the descriptor and is closed once, in connection_lost or by
//! the finalizer. The kernel watches that descriptor, or, when another transport or reader already
//! watches the number (both directions of a terminal), a duplicate that belongs to the transport.
//!
//! Life: made → started (connection_made has been called, the descriptor is watched) → closing →
//! lost (connection_lost has been called, the file object closed). `Steps` come from the ready
//! queue, so none of them runs inside another callback.
//!
//! Everything here belongs to the loop's thread.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const guard = @import("guard.zig");
const heap_type = @import("heap_type.zig");
const args = @import("args.zig");
const loop_type = @import("loop_type.zig");
const raise = @import("raise.zig");
const read_bytes = @import("read_bytes.zig");
const stream_write = @import("stream_write.zig");
const transport = @import("transport.zig");
const Source = @import("source.zig").Source;

const Object = py.Object;
const LoopFields = loop_type.Fields;

/// asyncio.ReadTransport and asyncio.Transport, which its own write pipes derive from: the object header and
/// one slot, `_extra`.
pub const base_size = @sizeOf(c.PyObject) + @sizeOf(usize);

pub const Fields = struct {
    source: Source,
    /// A strong reference to the loop's object, kept to the end: the finalizer needs it.
    loop: *LoopFields,
    protocol: ?*Object,
    /// Protocol methods run in it, see `transport.zig`. Replaced by a copy of the caller's context when reading is
    /// resumed and when the connection is ended.
    context: ?*Object,
    /// As a stream's.
    writer_context: ?*Object = null,
    /// The file object that owns the descriptor; null once it has been closed.
    pipe: ?*Object,
    extra: ?*Object,
    waiter: ?*Object,
    /// What connection_lost will be told.
    lost_exception: ?*Object,
    started: bool = false,
    closing: bool = false,
    /// connection_lost has been called or is queued.
    lost: bool = false,
    /// The kernel's news are being dealt with: what follows from them happens in the transport's own context.
    handling: bool = false,
    /// The watched number is a duplicate of ours.
    is_duplicate: bool = false,
    /// The descriptor gets its blocking mode back when it is released: it outlives the transport.
    restores_mode: bool,

    // Of reading.
    paused: bool = false,
    /// eof_received is to be called before connection_lost.
    eof_pending: bool = false,
    feeds_reader: bool = false,
    read_size: u32 = read_bytes.size_min,

    // Of writing.
    queue: stream_write.Queue = .{},
    high_water: usize = transport.high_water_default,
    low_water: usize = transport.high_water_default / 4,
    /// Writes dropped since the end, plus one if it came from an error.
    conn_lost: u32 = 0,
    protocol_paused: bool = false,
    /// Being readable means that the reader has gone.
    watches_peer: bool = false,

    dict: ?*Object = null,
    weakrefs: ?*Object = null,

    pub const has_one_context = false;

    pub inline fn object(self: *const Fields) *Object {
        return self.source.object;
    }

    pub inline fn fd(self: *const Fields) core.sys.fd_t {
        return self.source.watch.fd;
    }

    pub fn ofSource(source: *Source) *Fields {
        return @fieldParentPtr("source", source);
    }
};

pub const Layout = py.Layout(Fields, base_size);
pub const of = Layout.of;

const references = .{ "protocol", "context", "writer_context", "pipe", "extra", "waiter", "lost_exception", "dict" };

pub const Arguments = struct {
    pipe: *Object,
    fd: core.sys.fd_t,
    protocol: *Object,
    waiter: ?*Object,
    extra: ?*Object,
    restores_mode: bool,
    watches_peer: bool,

    /// What `Loop._make_read_pipe_transport` and its twin hand over.
    pub fn parse(comptime function: [:0]const u8, argv: []const *Object, names: ?*Object) py.Error!Arguments {
        const parameters = .{ "pipe", "fd", "protocol", "waiter", "extra", "restores_mode", "watches_peer" };
        const slots = try args.parse(function, &parameters, .{ .required = parameters.len }, argv, names);
        const number = c.PyLong_AsLong(slots[1].?);
        if (number == -1 and c.PyErr_Occurred() != null) return error.Python;
        return .{
            .pipe = slots[0].?,
            .fd = std.math.cast(core.sys.fd_t, number) orelse
                return py.raise(c.PyExc_OverflowError, "the descriptor is too large"),
            .protocol = slots[2].?,
            .waiter = args.given(slots[3]),
            .extra = args.given(slots[4]),
            .restores_mode = try py.isTrue(slots[5].?),
            .watches_peer = try py.isTrue(slots[6].?),
        };
    }
};

/// A transport whose first step is queued. It owns `arguments.pipe` as soon as it is returned.
pub fn create(loop: *LoopFields, t: *c.PyTypeObject, vtable: *const Source.VTable, arguments: Arguments) py.Error!*Object {
    try loop.checkUsable();
    const context = try py.check(c.PyContext_CopyCurrent());
    const made = c.PyType_GenericAlloc(t, 0) orelse {
        py.decref(context);
        return error.Python;
    };
    const self = of(made);
    py.incref(loop.object());
    self.* = .{
        .source = .{ .watch = .{ .fd = arguments.fd }, .vtable = vtable, .object = made },
        .loop = loop,
        .protocol = py.newRef(arguments.protocol),
        .context = context,
        .pipe = null,
        .extra = null,
        .waiter = if (arguments.waiter) |waiter| py.newRef(waiter) else null,
        .lost_exception = null,
        .restores_mode = arguments.restores_mode,
        .watches_peer = arguments.watches_peer,
    };
    errdefer py.decref(made);
    self.extra = try py.check(c.PyDict_New());
    if (arguments.extra) |given| try py.checkInt(c.PyDict_Update(self.extra.?, given));
    try py.checkInt(c.PyDict_SetItem(self.extra.?, loop.state.name(.pipe), arguments.pipe));
    try transport.queueStep(self);
    // Last: without it the finalizer has nothing to close.
    self.pipe = py.newRef(arguments.pipe);
    return made;
}

/// Arms the watch, under a number of our own if the pipe's is taken.
pub fn arm(self: *Fields, interest: core.reactor.Interest) py.Error!void {
    try self.loop.checkUsable();
    const watch = &self.source.watch;
    // Whoever watches a duplicate's number has closed a descriptor of that number, and is put out.
    const may_be_shared = watch.armed.isNone() and !self.is_duplicate;
    if (may_be_shared and !interest.isNone() and self.loop.core.watches.find(watch.fd) != null) {
        watch.fd = switch (core.sys.duplicate(watch.fd)) {
            .done => |number| @intCast(number),
            .would_block => unreachable,
            .failed => |code| return raise.errno(code),
        };
        self.is_duplicate = true;
    }
    try self.source.arm(self.loop, interest);
}

pub fn contextsOf(source: *Source) [2]?*Object {
    const self: *Fields = .ofSource(source);
    return .{ self.context, self.writer_context };
}

/// connection_made, then the watch, then the waiter: asyncio's order.
pub fn start(self: *Fields, comptime interest: fn (*const Fields) core.reactor.Interest, comptime message: [:0]const u8) py.Error!void {
    const Begin = struct {
        fn run(fields: *Fields) py.Error!void {
            return begin(fields, interest(fields), message);
        }
    };
    return transport.start(self, Begin.run);
}

fn begin(self: *Fields, interest: core.reactor.Interest, message: [*:0]const u8) py.Error!void {
    if (!self.closing and !self.paused and !self.loop.closed) {
        const armed = self.source.watch.armed;
        arm(self, .{ .read = interest.read or armed.read, .write = armed.write }) catch |err| {
            if (py.isExit()) return err;
            const exception = py.takeException();
            defer py.decref(exception);
            try transport.report(self, exception, message);
            try forceClose(self, exception);
        };
    }
    if (self.waiter) |waiter| {
        self.waiter = null;
        defer py.decref(waiter);
        try transport.setResultUnlessCancelled(self.loop.state, waiter);
    }
}

/// Ends the connection now: what is queued is dropped.
pub fn forceClose(self: *Fields, exception: ?*Object) py.Error!void {
    self.closing = true;
    self.source.disarm(self.loop, .none);
    self.queue.clear(&self.loop.write_pool, loop_type.gpa);
    try queueLost(self, exception);
}

/// Queues connection_lost, once. It runs in the context of whoever ended the connection, as a
/// call_soon would.
pub fn queueLost(self: *Fields, exception: ?*Object) py.Error!void {
    if (self.lost) return;
    self.lost = true;
    // No turn will come any more.
    if (self.loop.closed) return release(self);
    py.replace(&self.lost_exception, if (exception) |e| py.newRef(e) else null);
    if (!self.handling) try transport.takeCallersContext(self);
    try transport.queueStep(self);
}

pub fn connectionLost(self: *Fields) py.Error!void {
    self.lost = true;
    const object = py.newRef(self.object());
    defer py.decref(object);
    const exception = self.lost_exception orelse py.newNone();
    self.lost_exception = null;
    defer py.decref(exception);
    const protocol = self.protocol;
    self.protocol = null;
    defer py.xdecref(protocol);
    defer py.clear(&self.waiter);
    const pipe = self.pipe;
    if (pipe) |held| py.incref(held);
    defer py.xdecref(pipe);
    const context = py.newRef(self.context.?);
    defer py.decref(context);
    const called = if (protocol) |p| transport.callReported(self, p, .connection_lost, .{exception}) else {};
    const left: py.Saved = .save();
    release(self) catch {
        // One of the two exceptions can leave; the earlier one is the cause of more.
        if (py.isExit() and left.kind == null) return error.Python;
        try transport.methodFailed(self, context, pipe.?, .close, .{});
    };
    left.restore();
    return called;
}

/// Closes the file object and with it the descriptor, once. The number is in no table by then.
pub fn release(self: *Fields) py.Error!void {
    // After the finalizer others' finalizers can still write: the number may be another's by then.
    self.closing = true;
    self.lost = true;
    self.source.disarm(self.loop, .none);
    self.queue.clear(&self.loop.write_pool, loop_type.gpa);
    const pipe = self.pipe orelse return;
    self.pipe = null;
    defer py.decref(pipe);
    if (self.is_duplicate) {
        self.is_duplicate = false;
        core.sys.close(self.fd());
    }
    if (self.restores_mode) {
        py.decref(try py.callMethod(self.loop.object(), self.loop.state.name(._restore_mode), .{pipe}));
    }
    py.decref(try py.callMethod(pipe, self.loop.state.name(.close), .{}));
}

/// `__del__`: a transport that nobody closed and nobody can reach any more.
fn finalize(object: *Object) callconv(.c) void {
    const self = of(object);
    if (self.pipe == null) return;
    const saved: py.Saved = .save();
    defer saved.restore();
    if (c.PyErr_ResourceWarning(object, 1, "unclosed transport %R", object) < 0) c.PyErr_WriteUnraisable(object);
    release(self) catch c.PyErr_WriteUnraisable(object);
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
    inline for (references) |field| try visitor.object(@field(self, field));
    var pieces = self.queue.iterator();
    while (pieces.next()) |piece| try visitor.object(piece.owner.object);
}

fn clearFields(object: *Object) callconv(.c) c_int {
    const self = of(object);
    self.queue.clear(&self.loop.write_pool, loop_type.gpa);
    inline for (references) |field| py.clear(&@field(self, field));
    return 0;
}

/// What `repr` says between the type's name and the descriptor.
pub fn label(self: *const Fields) [*:0]const u8 {
    return if (self.pipe == null) " closed" else if (self.closing) " closing" else "";
}

/// What `repr` says of the watch.
pub fn activity(self: *const Fields, polling: bool) [*:0]const u8 {
    if (self.pipe == null) return "closed";
    return if (self.loop.closed) "open" else if (polling) "polling" else "idle";
}

fn getExtraInfo(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const slots = try args.parse("get_extra_info", &.{ "name", "default" }, .{ .required = 1 }, argv, names);
    if (of(object).extra) |extra| {
        if (c.PyDict_GetItemWithError(extra, slots[0].?)) |value| return py.newRef(value);
        if (c.PyErr_Occurred() != null) return error.Python;
    }
    return py.newRef(slots[1] orelse py.none());
}

fn isClosing(object: *Object) py.Error!*Object {
    return py.newBool(of(object).closing);
}

fn getProtocol(object: *Object) py.Error!*Object {
    return py.newRef(of(object).protocol orelse py.none());
}

fn getExtra(object: *Object) py.Error!*Object {
    return py.newRef(of(object).extra orelse py.none());
}

fn getLoop(object: *Object) py.Error!*Object {
    const self = of(object);
    return py.newRef(if (self.pipe == null) py.none() else self.loop.object());
}

fn getPipe(object: *Object) py.Error!*Object {
    return py.newRef(of(object).pipe orelse py.none());
}

/// asyncio's own tests take the file away like this, so that nobody closes it a second time.
fn setPipe(object: *Object, value: ?*Object) py.Error!void {
    const self = of(object);
    const given = args.given(value);
    py.replace(&self.pipe, if (given) |file| py.newRef(file) else null);
}

fn getFd(object: *Object) py.Error!*Object {
    return py.newInt(of(object).fd());
}

pub const methods = [_]c.PyMethodDef{
    py.Method.keywords("get_extra_info", getExtraInfo, "get_extra_info($self, name, default=None)\n--\n\nasyncio.BaseTransport.get_extra_info(): pipe."),
    py.Method.noArgs("is_closing", isClosing, "is_closing($self)\n--\n\nasyncio.BaseTransport.is_closing()."),
    py.Method.noArgs("get_protocol", getProtocol, "get_protocol($self)\n--\n\nasyncio.BaseTransport.get_protocol()."),
};

pub const properties = [_]c.PyGetSetDef{
    heap_type.dict_property,
    py.getter("_extra", getExtra),
    py.getter("_loop", getLoop),
    py.property("_pipe", getPipe, setPipe),
    py.getter("_fileno", getFd),
    py.getter("_protocol", getProtocol),
    py.getter("_closing", isClosing),
};

const members = heap_type.dictAndWeakrefs(Layout, Fields);

/// One of the two types.
pub fn spec(
    comptime name: [:0]const u8,
    comptime repr: fn (*Object) callconv(.c) ?*Object,
    comptime method_table: []const c.PyMethodDef,
    comptime property_table: []const c.PyGetSetDef,
) c.PyType_Spec {
    return heap_type.final(name, Layout.size, guard.byLoop(Layout), .{
        .tp_dealloc = &dealloc,
        .tp_finalize = &finalize,
        .tp_traverse = py.traverse(traverseFields),
        .tp_clear = &clearFields,
        .tp_repr = &repr,
        .tp_methods = method_table.ptr,
        .tp_getset = property_table.ptr,
        .tp_members = &members,
    });
}
