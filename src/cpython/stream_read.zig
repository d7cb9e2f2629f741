//! Reading from a stream: one read per connection and turn, delivered the way the protocol takes it.
//!
//! Small reads land in the loop's shared buffer and leave as bytes objects of their exact size, so
//! an idle connection holds no memory. When the peer fills a read, the next one goes straight into
//! a bytes object of the grown size: large data is not copied.

const std = @import("std");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const debug = @import("debug.zig");
const raise = @import("raise.zig");
const stream = @import("stream.zig");
const stream_close = @import("stream_close.zig");
const stream_reader = @import("stream_reader.zig");
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
};

/// The first read of a connection. Most messages fit, and copying this much costs less than the
/// allocation that would avoid it.
pub const size_min = 16 * 1024;
/// Reads grow to this while the peer fills them: asyncio's `max_size`.
const size_max = 256 * 1024;
/// From this size on a read goes straight into a bytes object.
const direct_from = 64 * 1024;

pub fn deliveryFor(state: *State, protocol: *Object) py.Error!Delivery {
    const buffered = c.PyObject_IsInstance(protocol, state.buffered_protocol);
    if (buffered < 0) return error.Python;
    if (buffered == 1) return .buffered;
    if (stream_reader.accepts(state, protocol)) return .reader;
    return .data;
}

/// The descriptor is readable. Runs in the transport's context.
pub fn ready(self: *Fields) py.Error!void {
    const context = py.newRef(self.context.?);
    defer py.decref(context);
    const protocol = py.newRef(self.protocol.?);
    defer py.decref(protocol);
    try py.checkInt(c.PyContext_Enter(context));
    const result = switch (self.delivery) {
        .data => readData(self, protocol),
        .buffered => readBuffered(self, protocol),
        .reader => readIntoReader(self, protocol),
    };
    if (result) |_| {
        try py.checkInt(c.PyContext_Exit(context));
    } else |err| {
        const saved: py.Saved = .save();
        _ = c.PyContext_Exit(context);
        saved.restore();
        return err;
    }
}

fn readData(self: *Fields, protocol: *Object) py.Error!void {
    const data = (try receive(self, protocol)) orelse return;
    defer py.decref(data);
    try deliver(self, protocol, data);
}

fn readIntoReader(self: *Fields, protocol: *Object) py.Error!void {
    const data = (try receive(self, protocol)) orelse return;
    defer py.decref(data);
    if (stream_reader.feed(self.loop.state, protocol, data)) |fed| {
        if (!fed) try deliver(self, protocol, data);
    } else |_| {
        try stream_close.fatalPending(self, "Fatal error: protocol.data_received() call failed.");
    }
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
    const size = self.read_size;
    if (size >= direct_from) return receiveDirect(self, protocol, size);
    const buffer = (try self.loop.readBuffer())[0..size];
    const count = (try received(self, protocol, core.sys.recv(self.fd(), buffer))) orelse return null;
    if (count == size) self.read_size = @min(2 * size, size_max);
    return try py.newBytes(buffer[0..count]);
}

fn receiveDirect(self: *Fields, protocol: *Object, size: u32) py.Error!?*Object {
    var data: ?*Object = try py.check(c.PyBytes_FromStringAndSize(null, size));
    const outcome = core.sys.recv(self.fd(), py.bytesOf(data.?));
    const count = (try received(self, protocol, outcome)) orelse {
        py.decref(data.?);
        return null;
    };
    if (count == size) {
        self.read_size = @min(2 * size, size_max);
    } else {
        if (count < size / 4) self.read_size = @max(size / 2, size_min);
        if (c._PyBytes_Resize(&data, @intCast(count)) < 0) return error.Python;
    }
    return data.?;
}

/// How many bytes came, or null after dealing with anything else.
fn received(self: *Fields, protocol: *Object, outcome: core.sys.Outcome) py.Error!?usize {
    switch (outcome) {
        .done => |count| {
            if (count > 0) return count;
            try endOfFile(self, protocol);
            return null;
        },
        .would_block => return null,
        .failed => |code| {
            raise.errno(code) catch {};
            try stream_close.fatalPending(self, "Fatal read error on socket transport");
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
        return stream_close.fatalPending(self, "Fatal read error on socket transport");
    }
    const outcome = core.sys.recv(self.fd(), view.buf.?[0..@intCast(view.len)]);
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
