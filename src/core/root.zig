//! The core: everything of an event loop that does not need Python.
//!
//! No file here knows of an interpreter. The CPython adapter (`src/cpython`) builds on these names.

pub const clock = @import("clock.zig");
pub const datagram = @import("datagram.zig");
pub const process = @import("process.zig");
pub const sys = @import("sys.zig");
pub const reactor = @import("reactor.zig");

pub const Fifo = @import("fifo.zig").Fifo;
pub const Inbox = @import("inbox.zig").Inbox;
pub const PushError = @import("inbox.zig").PushError;
pub const Loop = @import("loop.zig").Loop;
pub const Timer = @import("timers.zig").Timer;
pub const TimerHeap = @import("timers.zig").TimerHeap;
pub const Watch = @import("watch.zig").Watch;
pub const WatchError = @import("loop.zig").WatchError;
pub const WatchTable = @import("watch.zig").WatchTable;
pub const WriteQueue = @import("write_queue.zig").WriteQueue;

// Every file of the core, so that no test is left out; a test of the project compares this list
// with the folder.
test {
    _ = @import("clock.zig");
    _ = @import("datagram.zig");
    _ = @import("fifo.zig");
    _ = @import("inbox.zig");
    _ = @import("loop.zig");
    _ = @import("process.zig");
    _ = @import("reactor.zig");
    _ = @import("sys.zig");
    _ = @import("timers.zig");
    _ = @import("watch.zig");
    _ = @import("write_queue.zig");
    _ = @import("reactor/kqueue.zig");
    if (@import("builtin").os.tag == .linux) {
        _ = @import("reactor/epoll.zig");
        _ = @import("reactor/kqueue_emulated.zig");
        _ = @import("reactor/kqueue_sim.zig");
        _ = @import("test/kqueue_faults.zig");
    }
    _ = @import("test/loop_scenarios.zig");
    _ = @import("test/reactor_contract.zig");
}
