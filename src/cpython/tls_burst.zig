//! Memory of many handshakes at a time goes back to the system when they are over.
//!
//! OpenSSL needs more than twice as much for a connection that shakes hands as for one that is idle.
//! What it frees afterwards lies in holes between the connections' lasting parts, where the C
//! library keeps it: after a thousand clients at once, half of the process is holes. A handful of
//! handshakes at a time leaves a handful of holes, which the next ones fill.
//!
//! A loop has one Burst, and its thread uses it.

const core = @import("core");

/// Fewer at a time are no burst.
const size_min = 64;
/// A burst is over when this part of it is left: peers that never finish must not keep it alive.
const rest_divisor = 16;

/// Trimming may cost this much for each handshake since the last time; the handshake costs hundreds
/// of microseconds. With many idle connections a trim takes milliseconds, whatever it finds.
const budget_ns = 10_000;

pub const Burst = struct {
    now: usize = 0,
    peak: usize = 0,
    /// Handshakes over since the last trim.
    ended: u64 = 0,
    /// What the last trim took.
    cost_ns: u64 = 0,

    pub fn begin(self: *Burst) void {
        self.now += 1;
        self.peak = @max(self.peak, self.now);
    }

    /// Once for each `begin`.
    pub fn end(self: *Burst) void {
        self.now -= 1;
        self.ended += 1;
        if (self.now > self.peak / rest_divisor) return;
        if (self.peak < size_min) {
            self.peak = self.now;
        } else if (self.ended * budget_ns >= self.cost_ns) self.trim();
    }

    fn trim(self: *Burst) void {
        @branchHint(.cold);
        const start_ns = core.clock.nowNs();
        core.sys.trimHeap();
        self.* = .{ .now = self.now, .peak = self.now, .cost_ns = core.clock.nowNs() -| start_ns };
    }
};
