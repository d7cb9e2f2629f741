//! ReadPipeTransport: the reading end of a pipe, FIFO, character device or socket.
//!
//! As in asyncio, an exception from `data_received` is reported and the transport goes on; the end
//! of the file always ends it.

const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const debug = @import("debug.zig");
const loop_type = @import("loop_type.zig");
const pipe = @import("pipe.zig");
const raise = @import("raise.zig");
const read_bytes = @import("read_bytes.zig");
const stream_reader = @import("stream_reader.zig");
const transport = @import("transport.zig");
const Source = @import("source.zig").Source;

const Object = py.Object;
const Fields = pipe.Fields;

const fatal_message = "Fatal read error on pipe transport";

const vtable: Source.VTable = .{ .ready = ready, .step = step, .contexts = pipe.contextsOf, .wanted = wanted, .is_transport = true };

/// `Loop._read_pipe`.
pub fn make(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const loop = loop_type.of(object);
    const made = try pipe.create(loop, loop.state.read_pipe_type, &vtable, try .parse("_read_pipe", argv, names));
    const self = pipe.of(made);
    self.feeds_reader = stream_reader.accepts(loop.state, self.protocol.?);
    return made;
}

fn isReading(self: *const Fields) bool {
    return !self.paused and !self.closing;
}

fn interest(_: *const Fields) core.reactor.Interest {
    return .{ .read = true };
}

fn wanted(source: *Source) core.reactor.Interest {
    const self: *Fields = .ofSource(source);
    return .{ .read = self.started and isReading(self) };
}

fn step(source: *Source) py.Error!void {
    const self: *Fields = .ofSource(source);
    if (!self.started) return pipe.start(self, interest, fatal_message);
    if (self.eof_pending) {
        self.eof_pending = false;
        if (self.protocol) |protocol| {
            transport.callReportedInCopy(self, protocol, .eof_received, .{}) catch |err| {
                // The end is still to come when the loop runs again.
                const saved: py.Saved = .save();
                transport.queueStep(self) catch c.PyErr_WriteUnraisable(self.object());
                saved.restore();
                return err;
            };
        }
    }
    try pipe.connectionLost(self);
}

fn ready(source: *Source, readiness: core.reactor.Readiness) py.Error!void {
    const self: *Fields = .ofSource(source);
    if (!readiness.read or !isReading(self)) return;
    self.handling = true;
    defer self.handling = false;
    switch (try read_bytes.read(self.loop, &self.read_size, self.fd(), core.sys.read)) {
        .bytes => |data| {
            defer py.decref(data);
            try deliver(self, data);
        },
        .none => |outcome| switch (outcome) {
            .would_block => {},
            .done => try endOfFile(self),
            .failed => |code| try py.inContext(self.context.?, readFailed, .{ self, code }),
        },
    }
}

fn deliver(self: *Fields, data: *Object) py.Error!void {
    const protocol = py.newRef(self.protocol.?);
    defer py.decref(protocol);
    const context = py.newRef(self.context.?);
    defer py.decref(context);
    py.inContext(context, received, .{ self, protocol, data }) catch |err| {
        if (py.isExit()) return err;
        try transport.methodFailed(self, context, protocol, .data_received, .{data});
    };
}

fn received(self: *Fields, protocol: *Object, data: *Object) py.Error!void {
    if (self.feeds_reader and try stream_reader.feed(self.loop.state, protocol, py.bytesOf(data))) return;
    py.decref(try py.callMethod(protocol, self.loop.state.name(.data_received), .{data}));
}

fn endOfFile(self: *Fields) py.Error!void {
    try debug.log(self.loop, "%r was closed by peer", self.object());
    self.closing = true;
    self.eof_pending = true;
    self.source.disarm(self.loop, .none);
    try pipe.queueLost(self, null);
}

/// A terminal whose other side has gone fails with EIO: routine. Other errors are reported.
fn readFailed(self: *Fields, code: core.sys.Errno) py.Error!void {
    raise.errno(code) catch {};
    const exception = py.takeException();
    defer py.decref(exception);
    if (code == .IO) {
        try debug.log(self.loop, "%r: " ++ fatal_message, self.object());
    } else {
        try transport.report(self, exception, fatal_message);
    }
    try pipe.forceClose(self, exception);
}

fn isReadingMethod(object: *Object) py.Error!*Object {
    return py.newBool(isReading(pipe.of(object)));
}

fn pauseReading(object: *Object) py.Error!*Object {
    const self = pipe.of(object);
    if (!isReading(self)) return py.newNone();
    self.paused = true;
    self.source.disarm(self.loop, .none);
    try debug.log(self.loop, "%r pauses reading", object);
    return py.newNone();
}

fn resumeReading(object: *Object) py.Error!*Object {
    const self = pipe.of(object);
    if (self.closing or !self.paused) return py.newNone();
    self.paused = false;
    if (self.started) {
        try transport.takeCallersContext(self);
        try pipe.arm(self, .{ .read = true });
    }
    try debug.log(self.loop, "%r resumes reading", object);
    return py.newNone();
}

fn setProtocol(object: *Object, protocol: *Object) py.Error!*Object {
    const self = pipe.of(object);
    self.feeds_reader = stream_reader.accepts(self.loop.state, protocol);
    py.replace(&self.protocol, py.newRef(protocol));
    return py.newNone();
}

fn close(object: *Object) py.Error!*Object {
    const self = pipe.of(object);
    if (!self.closing) try pipe.forceClose(self, null);
    return py.newNone();
}

fn getPaused(object: *Object) py.Error!*Object {
    return py.newBool(pipe.of(object).paused);
}

fn repr(object: *Object) callconv(.c) ?*Object {
    const self = pipe.of(object);
    const state = pipe.activity(self, self.source.watch.armed.read);
    return c.PyUnicode_FromFormat("<ReadPipeTransport%s fd=%d %s>", pipe.label(self), @as(c_int, self.fd()), state);
}

const methods = pipe.methods ++ [_]c.PyMethodDef{
    py.Method.oneArg("set_protocol", setProtocol, "set_protocol($self, protocol)\n--\n\nasyncio.BaseTransport.set_protocol()."),
    py.Method.noArgs("is_reading", isReadingMethod, "is_reading($self)\n--\n\nasyncio.ReadTransport.is_reading()."),
    py.Method.noArgs("pause_reading", pauseReading, "pause_reading($self)\n--\n\nasyncio.ReadTransport.pause_reading()."),
    py.Method.noArgs("resume_reading", resumeReading, "resume_reading($self)\n--\n\nasyncio.ReadTransport.resume_reading()."),
    py.Method.noArgs("close", close, "close($self)\n--\n\nasyncio.BaseTransport.close()."),
    .{},
};

const properties = pipe.properties ++ [_]c.PyGetSetDef{ py.getter("_paused", getPaused), .{} };

pub const spec = pipe.spec("zloop._engine.ReadPipeTransport", repr, &methods, &properties);
