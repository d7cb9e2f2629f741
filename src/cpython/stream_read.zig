//! Reading from a stream: one read per connection and turn, delivered the way the protocol takes it.
//!
//! How much is read, and into what, is `read_bytes.zig`'s business.

const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const debug = @import("debug.zig");
const raise = @import("raise.zig");
const read_bytes = @import("read_bytes.zig");
const stream = @import("stream.zig");
const stream_close = @import("stream_close.zig");
const stream_reader = @import("stream_reader.zig");
const stream_write = @import("stream_write.zig");
const tls = @import("tls.zig");
const tls_read = @import("tls_read.zig");
const State = @import("state.zig").State;

const Object = py.Object;
const Fields = stream.Fields;

/// How received bytes reach the protocol.
pub const Delivery = enum {
    /// `data_received(bytes)`.
    data,
    /// `get_buffer` and `buffer_updated` (asyncio.BufferedProtocol).
    buffered,
    /// asyncio's own StreamReaderProtocol over its own StreamReader: into the reader's buffer.
    reader,
    /// Our own SSLTransport: no bytes object, no call of Python.
    tls,
};

const fatal_read_error = "Fatal read error on socket transport";

pub const size_min = read_bytes.size_min;

pub fn deliveryFor(state: *State, protocol: *Object) py.Error!Delivery {
    if (py.isExact(protocol, state.tls_transport_type)) return .tls;
    const buffered = c.PyObject_IsInstance(protocol, state.buffered_protocol);
    if (buffered < 0) return error.Python;
    if (buffered == 1) return .buffered;
    if (stream_reader.accepts(state, protocol)) return .reader;
    return .data;
}

/// The descriptor is readable. Runs in the transport's context.
pub fn ready(self: *Fields) py.Error!void {
    return py.inContext(self.context.?, read, .{self});
}

fn read(self: *Fields) py.Error!void {
    if (!self.ownsNumber()) {
        raise.errno(.BADF) catch {};
        return stream_close.fatalPending(self, fatal_read_error);
    }
    const protocol = py.newRef(self.protocol.?);
    defer py.decref(protocol);
    return switch (self.delivery) {
        .data => readData(self, protocol),
        .buffered => readBuffered(self, protocol),
        .reader => readIntoReader(self, protocol),
        .tls => readTls(self, protocol),
    };
}

fn readData(self: *Fields, protocol: *Object) py.Error!void {
    const data = (try receive(self, protocol)) orelse return;
    defer py.decref(data);
    try deliver(self, protocol, data);
}

/// From the shared buffer into the reader's: no bytes object in between.
fn readIntoReader(self: *Fields, protocol: *Object) py.Error!void {
    const buffer = try self.loop.takeReadBuffer();
    defer self.loop.putReadBuffer(buffer);
    const count = (try received(self, protocol, core.sys.recv(self.fd(), buffer))) orelse return;
    if (stream_reader.feed(self.loop.state, protocol, buffer[0..count])) |fed| {
        if (fed) return;
        const data = try py.newBytes(buffer[0..count]);
        defer py.decref(data);
        try deliver(self, protocol, data);
    } else |_| {
        try stream_close.fatalPending(self, "Fatal error: protocol.data_received() call failed.");
    }
}

fn readTls(self: *Fields, protocol: *Object) py.Error!void {
    const buffer = try self.loop.takeReadBuffer();
    defer self.loop.putReadBuffer(buffer);
    const count = (try received(self, protocol, core.sys.recv(self.fd(), buffer))) orelse return;
    tls_read.received(tls.of(protocol), buffer[0..count]) catch {
        try stream_close.fatalPending(self, "Fatal error: protocol.buffer_updated() call failed.");
    };
}

fn deliver(self: *Fields, protocol: *Object, data: *Object) py.Error!void {
    if (py.callMethod(protocol, self.loop.state.name(.data_received), .{data})) |result| {
        py.decref(result);
    } else |_| {
        try stream_close.fatalPending(self, "Fatal error: protocol.data_received() call failed.");
    }
}

/// The bytes that have come, or null if there are none to deliver: not yet, no more, or an error,
/// each of which has been dealt with.
fn receive(self: *Fields, protocol: *Object) py.Error!?*Object {
    switch (try read_bytes.read(self.loop, &self.read_size, self.fd(), core.sys.recv)) {
        .bytes => |data| {
            stream_write.heard(self);
            return data;
        },
        .none => |outcome| _ = try received(self, protocol, outcome),
    }
    return null;
}

/// How many bytes came, or null after dealing with anything else.
fn received(self: *Fields, protocol: *Object, outcome: core.sys.Outcome) py.Error!?usize {
    switch (outcome) {
        .done => |count| {
            if (count > 0) {
                stream_write.heard(self);
                return count;
            }
            try endOfFile(self, protocol);
            return null;
        },
        .would_block => return null,
        .failed => |code| {
            raise.errno(code) catch {};
            try stream_close.fatalPending(self, fatal_read_error);
            return null;
        },
    }
}

fn readBuffered(self: *Fields, protocol: *Object) py.Error!void {
    const state = self.loop.state;
    const failed = "Fatal error: protocol.get_buffer() call failed.";
    const hint = try py.newInt(-1);
    defer py.decref(hint);
    const target = py.callMethod(protocol, state.name(.get_buffer), .{hint}) catch return stream_close.fatalPending(self, failed);
    defer py.decref(target);
    // asyncio asks the object for its length, which need not be in bytes.
    const length = c.PyObject_Size(target);
    if (length < 0) return stream_close.fatalPending(self, failed);
    if (length == 0) {
        py.raise(c.PyExc_RuntimeError, "get_buffer() returned an empty buffer") catch {};
        return stream_close.fatalPending(self, failed);
    }
    var view: c.Py_buffer = undefined;
    if (c.PyObject_GetBuffer(target, &view, c.PyBUF_WRITABLE) < 0) {
        return stream_close.fatalPending(self, fatal_read_error);
    }
    // A buffer without bytes reads as the end of the stream, as in asyncio.
    const room: []u8 = if (view.buf) |start| start[0..@intCast(view.len)] else &.{};
    // The calls can have run the loop, and that have ended the transport.
    const outcome: core.sys.Outcome = if (self.released or !self.ownsNumber()) .would_block else core.sys.recv(self.fd(), room);
    c.PyBuffer_Release(&view);
    const count = (try received(self, protocol, outcome)) orelse return;
    const filled = try py.newInt(count);
    defer py.decref(filled);
    if (py.callMethod(protocol, state.name(.buffer_updated), .{filled})) |result| {
        py.decref(result);
    } else |_| {
        try stream_close.fatalPending(self, "Fatal error: protocol.buffer_updated() call failed.");
    }
}

fn endOfFile(self: *Fields, protocol: *Object) py.Error!void {
    try debug.log(self.loop, "%r received EOF", self.object());
    const answer = py.callMethod(protocol, self.loop.state.name(.eof_received), .{}) catch
        return stream_close.fatalPending(self, "Fatal error: protocol.eof_received() call failed.");
    defer py.decref(answer);
    const keep_open = py.isTrue(answer) catch
        return stream_close.fatalPending(self, "Fatal error: protocol.eof_received() call failed.");
    if (keep_open) {
        // The protocol can go on writing, but there is nothing more to read.
        self.eof_received = true;
        stream.stopReading(self);
    } else {
        try stream_close.closeTransport(self);
    }
}
