//! Readers and writers that a program registers for a descriptor of its own (`add_reader`,
//! `add_writer`, and asyncio's code built on them).
//!
//! The descriptor stays the program's: its blocking mode is never touched and it is never closed
//! here. Each direction has one slot, for a handle or for a SocketWaiter. The object exists while
//! one of them is taken, and the armed watch owns it.

const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const guard = @import("guard.zig");
const heap_type = @import("heap_type.zig");
const loop_type = @import("loop_type.zig");
const sock_wait = @import("sock_wait.zig");
const Source = @import("source.zig").Source;
const Work = @import("work.zig").Work;

const Object = py.Object;
const LoopFields = loop_type.Fields;
const Interest = core.reactor.Interest;

pub const Direction = enum { read, write };

pub const Fields = struct {
    source: Source,
    reader: ?*Object,
    writer: ?*Object,
    /// What the program registered, if that was no number: it finds its watch by this after closing it.
    file: ?*Object = null,
    /// Borrowed. While a waiter's task runs the watch stays armed for it, in case the task waits for
    /// the same socket again; this is that socket.
    resting_for: ?*const Object = null,

    fn slot(self: *Fields, direction: Direction) *?*Object {
        return switch (direction) {
            .read => &self.reader,
            .write => &self.writer,
        };
    }

    fn interest(self: *const Fields) Interest {
        return .{ .read = self.reader != null, .write = self.writer != null };
    }
};

const Layout = py.Layout(Fields, @sizeOf(c.PyObject));

pub fn ofSource(source: *Source) ?*Fields {
    if (source.vtable != &vtable) return null;
    return @fieldParentPtr("source", source);
}

/// A new reference, by its fields.
fn find(loop: *LoopFields, fd: core.sys.fd_t) ?*Fields {
    const watch = loop.core.watches.find(fd) orelse return null;
    const self = ofSource(.ofWatch(watch)) orelse return null;
    py.incref(self.source.object);
    return self;
}

/// The number under which a file that has no number any more is watched; null for none.
pub fn numberOfClosed(loop: *LoopFields, file: *const Object) ?core.sys.fd_t {
    for (loop.core.watches.slots.items) |slot| {
        const self = ofSource(.ofWatch(slot orelse continue)) orelse continue;
        if (self.file == file) return self.source.watch.fd;
    }
    return null;
}

/// Registers a handle or waiter (borrowed) for a file (borrowed), cancelling what was there.
pub fn add(loop: *LoopFields, fd: core.sys.fd_t, direction: Direction, scheduled: *Object, file: ?*Object) py.Error!void {
    const self = find(loop, fd) orelse try create(loop, fd);
    // One of our own: arming hands a reference to the loop, or takes it away when it fails.
    defer py.decref(self.source.object);
    if (self.resting_for) |sock| if (!sock_wait.isWaiter(loop, scheduled) or !sock_wait.isFor(scheduled, sock)) {
        // That socket can have been closed since, and the number can be another's.
        self.resting_for = null;
        self.source.disarm(loop, .none);
    };
    if (dropLost(loop, self)) self.source.disarm(loop, .none);
    var interest = self.interest();
    switch (direction) {
        .read => interest.read = true,
        .write => interest.write = true,
    }
    self.source.arm(loop, interest) catch |err| {
        // As in asyncio, a descriptor that cannot be watched loses both handles. Cancelling runs Python code, which
        // must not find the exception set.
        const saved: py.Saved = .save();
        cancelBoth(loop, self);
        saved.restore();
        return err;
    };
    const before = self.slot(direction).*;
    self.slot(direction).* = py.newRef(scheduled);
    if (self.file == null) if (file) |given| {
        if (!py.isInstance(given, &c.PyLong_Type)) self.file = py.newRef(given);
    };
    if (before) |old| cancel(loop, old);
}

/// Whether there was one to remove.
pub fn remove(loop: *LoopFields, fd: core.sys.fd_t, direction: Direction) py.Error!bool {
    const watch = loop.core.watches.find(fd) orelse return false;
    const source: *Source = .ofWatch(watch);
    const self = ofSource(source) orelse {
        // asyncio's Server stops a listener this way.
        if (source.vtable.is_transport or direction != .read) return false;
        const object = py.newRef(source.object);
        defer py.decref(object);
        source.disarm(loop, .none);
        return true;
    };
    const object = py.newRef(source.object);
    defer py.decref(object);
    const before = self.slot(direction).* orelse return false;
    self.slot(direction).* = null;
    source.disarm(loop, self.interest());
    cancel(loop, before);
    return true;
}

/// Another owner takes the descriptor number over: the program closed ours without a word.
pub fn evict(loop: *LoopFields, source: *Source) void {
    const object = py.newRef(source.object);
    defer py.decref(object);
    source.disarm(loop, .none);
    const self = ofSource(source) orelse return;
    inline for (.{ &self.reader, &self.writer }) |field| if (field.*) |registered| if (sock_wait.isWaiter(loop, registered)) {
        field.* = null;
        sock_wait.lost(registered);
        py.decref(registered);
    };
    cancelBoth(loop, self);
}

fn cancelBoth(loop: *LoopFields, self: *Fields) void {
    inline for (.{ &self.reader, &self.writer }) |field| {
        if (field.*) |registered| {
            field.* = null;
            cancel(loop, registered);
        }
    }
}

/// Ends waiters whose socket the program has closed; the number can be another's now, of which the
/// kernel has not been told. True if there was one.
fn dropLost(loop: *LoopFields, self: *Fields) bool {
    var any = false;
    inline for (.{ &self.reader, &self.writer }) |field| if (field.*) |borrowed| {
        const registered = py.newRef(borrowed);
        defer py.decref(registered);
        // Asking the socket can run the program's code, which can empty the slot.
        if (sock_wait.isWaiter(loop, registered) and sock_wait.isClosed(loop, registered) and field.* == registered) {
            field.* = null;
            sock_wait.lost(registered);
            py.decref(registered);
            any = true;
        }
    };
    return any;
}

/// Takes a waiter out of its slot and disarms the watch. It may have been put out before.
pub fn withdraw(loop: *LoopFields, fd: core.sys.fd_t, direction: Direction, waiter: *Object) void {
    const self = find(loop, fd) orelse return;
    defer py.decref(self.source.object);
    if (self.slot(direction).* != waiter) return;
    self.slot(direction).* = null;
    defer py.decref(waiter);
    self.source.disarm(loop, self.interest());
}

/// As `withdraw`, but leaves the watch armed while the waiter's task runs; `rest` follows.
pub fn take(loop: *LoopFields, fd: core.sys.fd_t, direction: Direction, waiter: *Object, sock: *const Object) ?*Fields {
    const self = find(loop, fd) orelse return null;
    if (self.slot(direction).* == waiter) {
        self.slot(direction).* = null;
        py.decref(waiter);
        self.resting_for = sock;
    }
    return self;
}

pub fn rest(loop: *LoopFields, taken: ?*Fields) void {
    const self = taken orelse return;
    defer py.decref(self.source.object);
    self.resting_for = null;
    if (!loop.closed) self.source.disarm(loop, self.interest());
}

fn cancel(loop: *LoopFields, registered: *Object) void {
    defer py.decref(registered);
    if (sock_wait.isWaiter(loop, registered)) return sock_wait.displaced(registered);
    const result = py.callMethod(registered, loop.state.name(.cancel), .{}) catch return c.PyErr_WriteUnraisable(registered);
    py.decref(result);
}

fn create(loop: *LoopFields, fd: core.sys.fd_t) py.Error!*Fields {
    const object = try py.check(c._PyObject_GC_New(loop.state.fd_watch_type));
    const self = Layout.of(object);
    self.* = .{
        .source = .{ .watch = .{ .fd = fd }, .vtable = &vtable, .object = object },
        .reader = null,
        .writer = null,
    };
    c.PyObject_GC_Track(object);
    return self;
}

/// The handles themselves are queued, as asyncio does.
fn queue(loop: *LoopFields, source: *Source) void {
    const self = ofSource(source).?;
    const pending = source.watch.pending;
    source.watch.pending = .none;
    if (pending.read) queueHandle(loop, self, .read);
    if (pending.write) queueHandle(loop, self, .write);
}

fn queueHandle(loop: *LoopFields, self: *Fields, direction: Direction) void {
    const registered = self.slot(direction).* orelse return;
    if (sock_wait.isWaiter(loop, registered)) return sock_wait.queue(loop, registered);
    py.incref(registered);
    loop.core.ready.pushAssumeCapacity(.ofHandle(registered));
}

fn unused(_: *Source, _: core.reactor.Readiness) py.Error!void {
    unreachable;
}

fn unusedStep(_: *Source) py.Error!void {
    unreachable;
}

/// Never in the ready queue itself: its handles and waiters are.
fn noContexts(_: *Source) [2]?*Object {
    unreachable;
}

const vtable: Source.VTable = .{ .ready = unused, .step = unusedStep, .queue = queue, .contexts = noContexts, .is_transport = false };

fn dealloc(object: *Object) callconv(.c) void {
    const self = Layout.of(object);
    const t: *Object = @ptrCast(py.typeOf(object));
    c.PyObject_GC_UnTrack(object);
    py.clear(&self.reader);
    py.clear(&self.writer);
    py.clear(&self.file);
    c.PyObject_GC_Del(object);
    py.decref(t);
}

fn traverseFields(object: *Object, visitor: py.Visitor) error{Stop}!void {
    const self = Layout.of(object);
    try visitor.object(self.reader);
    try visitor.object(self.writer);
    try visitor.object(self.file);
}

fn clearFields(object: *Object) callconv(.c) c_int {
    const self = Layout.of(object);
    py.clear(&self.reader);
    py.clear(&self.writer);
    py.clear(&self.file);
    return 0;
}

pub const spec = heap_type.final("zloop._engine.FdWatch", Layout.size, guard.none, .{
    .tp_dealloc = &dealloc,
    .tp_traverse = py.traverse(traverseFields),
    .tp_clear = &clearFields,
});
