//! What transports, listeners and reader/writer pairs have in common for the loop: a watch, and
//! functions that the loop calls.
//!
//! A source lies inside its Python object. While its watch is armed, and for each element of the
//! ready queue that names it, the loop holds one reference to the object.

const core = @import("core");
const py = @import("py.zig");
const raise = @import("raise.zig");
const LoopFields = @import("loop_type.zig").Fields;

const Interest = core.reactor.Interest;
const Readiness = core.reactor.Readiness;

pub const Source = struct {
    watch: core.Watch = .{},
    vtable: *const VTable,
    object: *py.Object,

    pub const VTable = struct {
        /// The descriptor is ready. Errors that it can report it does; only an exception that must
        /// leave the loop comes back.
        ready: *const fn (*Source, Readiness) py.Error!void,
        /// Takes the next step of the life cycle (`Work.Kind.step`), under the same rule.
        step: *const fn (*Source) py.Error!void,
        /// Queues the pending readiness; null for the ordinary way, one element for the source.
        queue: ?*const fn (*LoopFields, *Source) void = null,
        /// The contexts in which what the loop calls of this source runs, reading's or the only one first; borrowed.
        contexts: *const fn (*Source) [2]?*py.Object,
        /// What the watch should be armed for, from the source's state. Null if it stays armed also while its work has to
        /// wait (`loop_nested.zig`).
        wanted: ?*const fn (*Source) Interest = null,
        /// Its steps are queued by polls.
        is_waiter: bool = false,
        /// A transport owns its descriptor: `add_reader` and `sock_*` must keep their hands off.
        is_transport: bool,
    };

    pub fn ofWatch(watch: *core.Watch) *Source {
        return @alignCast(@fieldParentPtr("watch", watch));
    }

    /// Arms the watch. The reference that an armed watch holds comes and goes here.
    pub fn arm(self: *Source, loop: *LoopFields, interest: Interest) py.Error!void {
        self.update(loop, interest) catch |err| return raise.fromCore(err);
    }

    fn update(self: *Source, loop: *LoopFields, interest: Interest) core.WatchError!void {
        const was_armed = !self.watch.armed.isNone();
        var result = loop.core.watch(&self.watch, interest);
        if (result == error.Occupied) {
            evict(loop, self.watch.fd);
            result = loop.core.watch(&self.watch, interest);
        }
        const is_armed = !self.watch.armed.isNone();
        if (is_armed and !was_armed) py.incref(self.object);
        if (was_armed and !is_armed) py.decref(self.object);
        return result;
    }

    /// The program closed a watched descriptor behind our back and its number has come round again.
    /// The old owner hears no more of it.
    fn evict(loop: *LoopFields, fd: core.sys.fd_t) void {
        const occupant = ofWatch(loop.core.watches.find(fd) orelse return);
        @import("fd_watch.zig").evict(loop, occupant);
    }

    /// As `arm` for less interest. The caller holds a reference of its own. Fails in a forked child,
    /// which must not touch the kernel object it shares, and for a descriptor that was closed behind
    /// our back, of which nothing more will be heard. An exception that is set stays set.
    pub fn disarm(self: *Source, loop: *LoopFields, interest: Interest) void {
        self.update(loop, interest) catch {};
    }
};
