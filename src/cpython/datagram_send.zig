//! Sending datagrams: at once if the kernel has room, else from a queue when it has.

const core = @import("core");
const c = @import("c.zig");
const config = @import("config");
const py = @import("py.zig");
const address_parse = @import("address_parse.zig");
const args = @import("args.zig");
const datagram = @import("datagram.zig");
const datagram_receive = @import("datagram_receive.zig");
const loop_type = @import("loop_type.zig");
const raise = @import("raise.zig");
const transport = @import("transport.zig");

const Object = py.Object;
const Fields = datagram.Fields;

/// A datagram in the queue, with its references.
pub const Pending = struct {
    data: *Object,
    /// Null for the peer that the kernel knows.
    address: ?*Object,

    pub fn release(self: Pending) void {
        py.decref(self.data);
        py.xdecref(self.address);
    }

    fn size(self: Pending) usize {
        return py.bytesOf(self.data).len + header_size;
    }
};

pub const Queue = struct {
    items: core.Fifo(Pending) = .empty,
    /// Bytes, with the headers that this Python version counts.
    size: usize = 0,

    pub fn clear(self: *Queue) void {
        self.size = 0;
        while (self.items.pop()) |pending| pending.release();
    }
};

/// Since 3.13 the queue's size counts each datagram's header.
const header_size = if (config.py_minor >= 13) 8 else 0;

/// asyncio's LOG_THRESHOLD_FOR_CONNLOST_WRITES.
const lost_sends_warned_from = 5;

const Attempt = enum {
    sent,
    would_block,
    /// An exception is set.
    failed,
};

fn sendto(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const self = datagram.of(object);
    const given = try args.parse("sendto", &.{ "data", "addr" }, .{ .required = 1 }, argv, names);
    const data = given[0].?;
    var to = args.given(given[1]);
    if (!transport.isBytesLike(data)) {
        const name = try py.check(c.PyObject_GetAttrString(@ptrCast(py.typeOf(data)), "__name__"));
        defer py.decref(name);
        return py.raiseFormat(c.PyExc_TypeError, "data argument must be a bytes-like object, not %R", .{name});
    }
    if (self.address) |only| {
        if (to) |address| if (address != only) {
            const equal = c.PyObject_RichCompareBool(address, only, c.Py_EQ);
            if (equal < 0) return error.Python;
            if (equal == 0) {
                return py.raiseFormat(c.PyExc_ValueError, "Invalid address: must be None or %S", .{only});
            }
        };
        to = only;
    }
    if (self.released or (self.conn_lost > 0 and self.address != null)) {
        try countLost(self);
        return py.newNone();
    }
    if (self.queue.items.len == 0) switch (attempt(self, data, to)) {
        .sent => return py.newNone(),
        .would_block => try transport.armWrite(self, null, arm),
        .failed => {
            try failed(self);
            return py.newNone();
        },
    };
    try push(self, data, to);
    return py.newNone();
}

fn arm(self: *Fields, interest: core.reactor.Interest) py.Error!void {
    try self.source.arm(self.loop, interest);
}

fn countLost(self: *Fields) py.Error!void {
    if (self.conn_lost >= lost_sends_warned_from) {
        const text = try py.check(c.PyUnicode_FromString("socket.send() raised exception."));
        defer py.decref(text);
        py.decref(try py.callMethod(self.loop.state.logger, self.loop.state.name(.warning), .{text}));
    }
    self.conn_lost +|= 1;
}

fn push(self: *Fields, data: *Object, to: ?*Object) py.Error!void {
    const pending: Pending = .{
        .data = try transport.immutable(data),
        .address = if (to) |address| py.newRef(address) else null,
    };
    self.queue.items.push(loop_type.gpa, pending) catch {
        pending.release();
        return py.noMemory();
    };
    self.queue.size += pending.size();
    try transport.maybePause(self);
}

/// An OSError goes to the protocol; anything else ends the transport.
fn failed(self: *Fields) py.Error!void {
    if (!py.matches(c.PyExc_OSError)) return datagram.fatalPending(self, "Fatal write error on datagram transport");
    const exception = py.takeException();
    defer py.decref(exception);
    const protocol = py.newRef(self.protocol orelse return);
    defer py.decref(protocol);
    py.decref(try py.callMethod(protocol, self.loop.state.name(.error_received), .{exception}));
}

fn attempt(self: *Fields, data: *Object, to: ?*Object) Attempt {
    if (self.family == .other) return attemptByMethod(self, data, to);
    if (py.isExact(data, &c.PyBytes_Type)) return attemptBytes(self, data, py.bytesOf(data), to);
    var view: c.Py_buffer = undefined;
    if (c.PyObject_GetBuffer(data, &view, c.PyBUF_SIMPLE) < 0) return .failed;
    defer c.PyBuffer_Release(&view);
    // A buffer can be the program's own code, which can have closed the socket.
    if (self.released) {
        raise.errno(.BADF) catch {};
        return .failed;
    }
    const bytes = if (view.buf) |start| start[0..@intCast(view.len)] else &.{};
    return attemptBytes(self, data, bytes, to);
}

fn attemptBytes(self: *Fields, data: *Object, bytes: []const u8, to: ?*Object) Attempt {
    if (!self.ownsNumber()) {
        raise.errno(.BADF) catch {};
        return .failed;
    }
    const outcome = if (self.connected) core.sys.send(self.fd(), bytes) else outcome: {
        const object = to orelse return attemptByMethod(self, data, to);
        const known = if (self.loop.datagrams) |common| common.peers.find(object) else null;
        const address = usable(self, known) orelse address_parse.fromObject(self.family_number, object) orelse
            return attemptByMethod(self, data, to);
        break :outcome core.datagram.sendTo(self.fd(), bytes, &address);
    };
    switch (outcome) {
        .done => return .sent,
        .would_block => return .would_block,
        .failed => |code| {
            raise.errno(code) catch {};
            return .failed;
        },
    }
}

/// A tuple that came from a socket of another family is no address here.
fn usable(self: *const Fields, known: ?core.sys.Address) ?core.sys.Address {
    const address = known orelse return null;
    return if (address.family() == self.family_number) address else null;
}

/// The socket object's own methods: they resolve names and know every family and every message.
fn attemptByMethod(self: *Fields, data: *Object, to: ?*Object) Attempt {
    const state = self.loop.state;
    const sock = py.newRef(self.sock orelse {
        raise.errno(.BADF) catch {};
        return .failed;
    });
    defer py.decref(sock);
    const result = if (self.connected)
        py.callMethod(sock, state.name(.send), .{data})
    else
        py.callMethod(sock, state.name(.sendto), .{ data, to orelse py.none() });
    if (result) |count| {
        py.decref(count);
        return .sent;
    } else |_| {
        if (!py.matches(c.PyExc_BlockingIOError) and !py.matches(c.PyExc_InterruptedError)) return .failed;
        c.PyErr_Clear();
        return .would_block;
    }
}

/// The kernel has room again, or an error to tell. After an error the queue waits for the next turn, also when it is
/// empty: only a turn without one tells the protocol to go on and ends what is to be ended.
pub fn ready(self: *Fields) py.Error!void {
    const context = py.newRef(transport.writerContext(self));
    defer py.decref(context);
    try py.inContext(context, drain, .{ self, context });
    if (!self.closing or self.conn_lost > 0 or self.source.watch.armed.write) return;
    self.conn_lost = 1;
    py.replace(&self.context, py.newRef(context));
    try datagram.connectionLost(self);
}

fn drain(self: *Fields, entered: *Object) py.Error!void {
    while (self.queue.items.len > 0) {
        const pending = self.queue.items.at(0);
        // Sending can run Python, which can close the transport and empty the queue.
        const data = py.newRef(pending.data);
        defer py.decref(data);
        const to = if (pending.address) |address| py.newRef(address) else null;
        defer py.xdecref(to);
        switch (attempt(self, data, to)) {
            .would_block => break,
            .sent => popFirst(self, data),
            .failed => {
                popFirst(self, data);
                return failedQueued(self, entered);
            },
        }
    }
    // May send more.
    try transport.maybeResume(self);
    if (self.queue.items.len > 0 or self.conn_lost > 0) return;
    self.source.disarm(self.loop, .{ .read = self.source.watch.armed.read });
    py.clear(&self.writer_context);
}

fn popFirst(self: *Fields, data: *Object) void {
    if (self.queue.items.len == 0 or self.queue.items.at(0).data != data) return;
    const pending = self.queue.items.pop().?;
    self.queue.size -= pending.size();
    pending.release();
}

/// One error a turn, as in asyncio. What `error_received` raises is a callback's exception.
fn failedQueued(self: *Fields, entered: *Object) py.Error!void {
    if (!py.matches(c.PyExc_OSError)) return datagram.fatalPending(self, "Fatal write error on datagram transport");
    try datagram_receive.errorReceived(self, entered);
}

fn getWriteBufferSize(object: *Object) py.Error!*Object {
    return py.newInt(datagram.of(object).queue.size);
}

fn getWriteBufferLimits(object: *Object) py.Error!*Object {
    const self = datagram.of(object);
    return transport.limits(self);
}

fn setWriteBufferLimits(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const self = datagram.of(object);
    try transport.setLimits(self, argv, names);
    try transport.maybePause(self);
    return py.newNone();
}

pub const methods = [_]c.PyMethodDef{
    py.Method.keywords("sendto", sendto, "sendto($self, data, addr=None)\n--\n\nasyncio.DatagramTransport.sendto()."),
    py.Method.noArgs("get_write_buffer_size", getWriteBufferSize, "get_write_buffer_size($self)\n--\n\nBytes that wait for the kernel to have room."),
    py.Method.noArgs("get_write_buffer_limits", getWriteBufferLimits, "get_write_buffer_limits($self)\n--\n\nasyncio.WriteTransport.get_write_buffer_limits(): (low, high) in bytes."),
    py.Method.keywords("set_write_buffer_limits", setWriteBufferLimits, "set_write_buffer_limits($self, high=None, low=None)\n--\n\nasyncio.WriteTransport.set_write_buffer_limits(), in bytes."),
};
