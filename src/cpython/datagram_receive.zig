//! Receiving datagrams: a batch per turn and socket, each delivered by `datagram_received`.
//!
//! A protocol that closes the transport in the middle of a batch hears no more of it; one that
//! pauses reading gets the rest when it resumes.

const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const address = @import("address.zig");
const datagram = @import("datagram.zig");
const loop_type = @import("loop_type.zig");
const raise = @import("raise.zig");
const transport = @import("transport.zig");
const PeerCache = @import("peer_cache.zig").PeerCache;

const Object = py.Object;
const Fields = datagram.Fields;
const Batch = core.datagram.Batch;
const gpa = loop_type.gpa;

/// Datagrams received in one turn where one call takes one: Unix sockets.
const turn_count_max = 16;

/// asyncio's `max_size`, for sockets that Python's own methods read.
const size_max = 256 * 1024;

/// A datagram that waits for its receiver, with two references.
pub const Held = struct {
    data: *Object,
    address: *Object,

    pub fn release(self: Held) void {
        py.decref(self.data);
        py.decref(self.address);
    }
};

/// What a loop's datagram sockets share. Made by the first of them that receives.
pub const Shared = struct {
    /// Out of reach while its datagrams are delivered: a program that runs the loop inside a callback
    /// must not find them overwritten.
    batch: ?*Batch = null,
    peers: PeerCache = .{},

    pub fn destroy(self: *Shared) void {
        self.peers.deinit();
        if (self.batch) |batch| batch.destroy(gpa);
        gpa.destroy(self);
    }

    fn take(self: *Shared) py.Error!*Batch {
        if (self.batch) |batch| {
            self.batch = null;
            return batch;
        }
        return Batch.create(gpa) catch return py.noMemory();
    }
};

/// The loop may have been closed, and what it shared freed, since the batch was taken.
fn put(loop: *loop_type.Fields, batch: *Batch) void {
    if (loop.datagrams) |common| if (common.batch == null) {
        common.batch = batch;
        return;
    };
    batch.destroy(gpa);
}

fn shared(loop: *loop_type.Fields) py.Error!*Shared {
    if (loop.datagrams) |made| return made;
    const made = gpa.create(Shared) catch return py.noMemory();
    made.* = .{};
    loop.datagrams = made;
    return made;
}

/// The descriptor is readable. Runs in the transport's context.
pub fn ready(self: *Fields) py.Error!void {
    return entered(self, receive);
}

/// For what is left of a batch, once the transport reads again.
pub fn deliverHeld(self: *Fields) py.Error!void {
    return entered(self, takeHeld);
}

fn entered(self: *Fields, comptime function: fn (*Fields, *Object) py.Error!void) py.Error!void {
    const context = py.newRef(self.context.?);
    defer py.decref(context);
    return py.inContext(context, function, .{ self, context });
}

// `context` is the one that is entered in all that follows; the transport can have another by then, for its end.

fn receive(self: *Fields, context: *Object) py.Error!void {
    if (self.held.len > 0) {
        // They came first; what is in the kernel keeps.
        return takeHeld(self, context);
    }
    switch (self.family) {
        .internet => try receiveBatch(self, context),
        .unix => try receiveEach(self, context),
        .other => try receiveByMethod(self, context),
    }
}

fn receiveBatch(self: *Fields, context: *Object) py.Error!void {
    const batch = try (try shared(self.loop)).take();
    defer put(self.loop, batch);
    switch (batch.receive(self.fd())) {
        .done => |count| for (0..count) |i| {
            deliver(self, context, try datagramOf(self.loop, batch, i)) catch |err| {
                // The exception ends the run of the loop; the rest is for the next one.
                try holdRest(self, batch, i + 1, count);
                if (self.held.len > 0) try transport.queueStep(self);
                return err;
            };
            if (self.isReading()) continue;
            if (!self.closing) try holdRest(self, batch, i + 1, count);
            return;
        },
        .would_block => {},
        .failed => |code| try failed(self, context, code),
    }
}

fn datagramOf(loop: *loop_type.Fields, batch: *const Batch, index: usize) py.Error!Held {
    const data = try py.newBytes(batch.bytes(index));
    errdefer py.decref(data);
    return .{ .data = data, .address = try (try shared(loop)).peers.tuple(&batch.addresses[index]) };
}

/// Keeps datagrams of the batch, from `from` on. An exception that is set stays set.
fn holdRest(self: *Fields, batch: *const Batch, from: usize, count: usize) py.Error!void {
    const saved: py.Saved = .save();
    for (from..count) |i| {
        const kept = try datagramOf(self.loop, batch, i);
        self.held.push(gpa, kept) catch {
            kept.release();
            return py.noMemory();
        };
    }
    saved.restore();
}

fn takeHeld(self: *Fields, context: *Object) py.Error!void {
    while (self.isReading()) {
        const kept = self.held.pop() orelse return;
        deliver(self, context, kept) catch |err| {
            if (self.held.len > 0) {
                const saved: py.Saved = .save();
                defer saved.restore();
                transport.queueStep(self) catch {};
            }
            return err;
        };
    }
}

/// Unix datagrams can be larger than any of the internet, so they come one by one.
fn receiveEach(self: *Fields, context: *Object) py.Error!void {
    const buffer = try self.loop.takeReadBuffer();
    defer self.loop.putReadBuffer(buffer);
    for (0..turn_count_max) |_| {
        var from: core.sys.Address = undefined;
        switch (core.datagram.receiveFrom(self.fd(), buffer, &from)) {
            .done => |count| {
                const data = try py.newBytes(buffer[0..count]);
                const peer = unixPeer(&from) catch |err| {
                    py.decref(data);
                    return err;
                };
                try deliver(self, context, .{ .data = data, .address = peer });
            },
            .would_block => return,
            .failed => |code| return failed(self, context, code),
        }
        if (!self.isReading()) return;
    }
}

/// None for a sender without a name, as in `socket.recvfrom`.
fn unixPeer(from: *const core.sys.Address) py.Error!*Object {
    if (from.len == 0) return py.newNone();
    return (try address.toObject(from)) orelse py.newNone();
}

fn receiveByMethod(self: *Fields, context: *Object) py.Error!void {
    const state = self.loop.state;
    const size = try py.newInt(size_max);
    defer py.decref(size);
    const sock = py.newRef(self.sock orelse return);
    defer py.decref(sock);
    const pair = py.callMethod(sock, state.name(.recvfrom), .{size}) catch {
        if (py.matches(c.PyExc_BlockingIOError) or py.matches(c.PyExc_InterruptedError)) return c.PyErr_Clear();
        if (py.matches(c.PyExc_OSError)) return errorReceived(self, context);
        return datagram.fatalPending(self, "Fatal read error on datagram transport");
    };
    defer py.decref(pair);
    if (!py.isExact(pair, &c.PyTuple_Type) or py.tupleSize(pair) != 2) {
        py.raise(c.PyExc_TypeError, "recvfrom() gave no pair of data and address") catch {};
        return datagram.fatalPending(self, "Fatal read error on datagram transport");
    }
    try deliver(self, context, .{
        .data = py.newRef(py.tupleItemBorrowed(pair, 0)),
        .address = py.newRef(py.tupleItemBorrowed(pair, 1)),
    });
}

/// Takes the datagram's references over.
fn deliver(self: *Fields, context: *Object, arrived: Held) py.Error!void {
    defer arrived.release();
    const protocol = py.newRef(self.protocol orelse return);
    defer py.decref(protocol);
    if (py.callMethod(protocol, self.loop.state.name(.datagram_received), .{ arrived.data, arrived.address })) |result| {
        py.decref(result);
    } else |_| {
        if (py.isExit()) return error.Python;
        try transport.methodFailedInside(self, context, protocol, .datagram_received, .{ arrived.data, arrived.address });
    }
}

fn failed(self: *Fields, context: *Object, code: core.sys.Errno) py.Error!void {
    raise.errno(code) catch {};
    try errorReceived(self, context);
}

/// The network's errors are the protocol's to judge; the transport stays open. The caller has
/// entered the context, and set the exception.
pub fn errorReceived(self: *Fields, context: *Object) py.Error!void {
    const exception = py.takeException();
    defer py.decref(exception);
    const protocol = py.newRef(self.protocol orelse return);
    defer py.decref(protocol);
    if (py.callMethod(protocol, self.loop.state.name(.error_received), .{exception})) |result| {
        py.decref(result);
    } else |err| {
        if (py.isExit()) return err;
        try transport.methodFailedInside(self, context, protocol, .error_received, .{exception});
    }
}
