//! The ready queue's elements: a pointer with its kind in the low bits. Each holds one reference.

const py = @import("py.zig");
const Source = @import("source.zig").Source;

pub const Work = struct {
    bits: usize,

    pub const Kind = enum(u2) {
        /// A Handle or TimerHandle to run.
        handle,
        /// A source whose watch has readiness pending.
        ready,
        /// A source with a step of its life cycle to take.
        step,
    };

    pub inline fn ofHandle(scheduled: *py.Object) Work {
        return .{ .bits = @intFromPtr(scheduled) | @backingInt(Kind.handle) };
    }

    pub inline fn ofSource(owner: *Source, which: Kind) Work {
        return .{ .bits = @intFromPtr(owner) | @backingInt(which) };
    }

    pub inline fn kind(self: Work) Kind {
        return @fromBackingInt(@intCast(@as(u2, @truncate(self.bits))));
    }

    pub inline fn handle(self: Work) *py.Object {
        return @ptrFromInt(self.bits);
    }

    pub inline fn source(self: Work) *Source {
        return @ptrFromInt(self.bits & ~@as(usize, 3));
    }

    /// The object that the element keeps alive.
    pub fn object(self: Work) *py.Object {
        return switch (self.kind()) {
            .handle => self.handle(),
            .ready, .step => self.source().object,
        };
    }
};
