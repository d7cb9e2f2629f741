//! asyncio's StreamReader, fed natively.
//!
//! Only for asyncio's own StreamReaderProtocol over its own StreamReader, neither subclassed nor
//! patched: then what `data_received` and `feed_data` do is known, and is done here step for step.
//! Everything else takes the ordinary way through the protocol.

const c = @import("c.zig");
const py = @import("py.zig");
const Name = @import("state.zig").Name;
const State = @import("state.zig").State;

const Object = py.Object;

/// Whether bytes for this protocol may be fed natively. Looked at when the protocol is set.
pub fn accepts(state: *State, protocol: *Object) bool {
    return acceptsOrRaises(state, protocol) catch {
        c.PyErr_Clear();
        return false;
    };
}

fn acceptsOrRaises(state: *State, protocol: *Object) py.Error!bool {
    if (!py.isExact(protocol, @ptrCast(state.stream_reader_protocol_type))) return false;
    if (!try isOriginal(state, protocol, .data_received, state.protocol_data_received)) return false;
    const weak = try py.getAttr(protocol, state.name(._stream_reader_wr));
    defer py.decref(weak);
    if (weak == py.none()) return false;
    const reader = try py.check(c.PyObject_CallNoArgs(weak));
    defer py.decref(reader);
    if (!py.isExact(reader, @ptrCast(state.stream_reader_type))) return false;
    return try isOriginal(state, reader, .feed_data, state.reader_feed_data) and
        try isOriginal(state, reader, ._wakeup_waiter, state.reader_wakeup_waiter);
}

/// Whether the method that a call would find, on the object or its class, is asyncio's.
fn isOriginal(state: *State, object: *Object, comptime name: Name, original: *Object) py.Error!bool {
    const bound = try py.getAttr(object, state.name(name));
    defer py.decref(bound);
    const function = try py.getAttr(bound, state.name(.__func__));
    defer py.decref(function);
    return function == original;
}

/// `StreamReaderProtocol.data_received(data)`; false if it has to be called after all.
pub fn feed(state: *State, protocol: *Object, bytes: []const u8) py.Error!bool {
    const weak = try py.getAttr(protocol, state.name(._stream_reader_wr));
    defer py.decref(weak);
    if (weak == py.none()) return true;
    const reader = try py.check(c.PyObject_CallNoArgs(weak));
    defer py.decref(reader);
    if (reader == py.none()) return true;
    if (!py.isExact(reader, @ptrCast(state.stream_reader_type))) return false;

    const eof = try py.getAttr(reader, state.name(._eof));
    defer py.decref(eof);
    if (eof != @as(*Object, &c._Py_FalseStruct)) return false;
    const buffer = try py.getAttr(reader, state.name(._buffer));
    defer py.decref(buffer);
    if (!py.isExact(buffer, &c.PyByteArray_Type)) return false;

    const before: usize = @intCast(c.PyByteArray_Size(buffer));
    try py.checkInt(c.PyByteArray_Resize(buffer, @intCast(before + bytes.len)));
    @memcpy(c.PyByteArray_AsString(buffer)[before..][0..bytes.len], bytes);
    try wakeWaiter(state, reader);
    try pauseAboveLimit(state, reader, before + bytes.len);
    return true;
}

fn wakeWaiter(state: *State, reader: *Object) py.Error!void {
    const waiter = try py.getAttr(reader, state.name(._waiter));
    defer py.decref(waiter);
    if (waiter == py.none()) return;
    try py.setAttr(reader, state.name(._waiter), py.none());
    const cancelled = try py.callMethod(waiter, state.name(.cancelled), .{});
    defer py.decref(cancelled);
    if (try py.isTrue(cancelled)) return;
    py.decref(try py.callMethod(waiter, state.name(.set_result), .{py.none()}));
}

fn pauseAboveLimit(state: *State, reader: *Object, size: usize) py.Error!void {
    const limit_object = try py.getAttr(reader, state.name(._limit));
    defer py.decref(limit_object);
    const limit = c.PyFloat_AsDouble(limit_object);
    if (limit == -1 and c.PyErr_Occurred() != null) return error.Python;
    if (@as(f64, @floatFromInt(size)) <= 2 * limit) return;
    const transport = try py.getAttr(reader, state.name(._transport));
    defer py.decref(transport);
    if (transport == py.none()) return;
    const paused = try py.getAttr(reader, state.name(._paused));
    defer py.decref(paused);
    if (try py.isTrue(paused)) return;
    // A transport that cannot pause says so; then asyncio stops asking.
    if (py.callMethod(transport, state.name(.pause_reading), .{})) |result| {
        py.decref(result);
        try py.setAttr(reader, state.name(._paused), &c._Py_TrueStruct);
    } else |err| {
        if (!py.matches(c.PyExc_NotImplementedError)) return err;
        c.PyErr_Clear();
        try py.setAttr(reader, state.name(._transport), py.none());
    }
}
