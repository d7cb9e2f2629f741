//! Since 3.14 a handle of call_soon_threadsafe() that runs is out of other threads' reach: their cancel()
//! and cancelled() wait until it has run (asyncio.events._ThreadSafeHandle). The callback itself may
//! call both, as asyncio's recursive lock lets it.
//!
//! The loop's thread marks the handle while it runs, and looks whether somebody waits only when it
//! takes the mark away: a run without waiters costs two stores. Those who wait share one condition,
//! and do so without the interpreter.

const std = @import("std");
const c = @import("c.zig");
const config = @import("config");

pub const enabled = config.py_minor >= 14;

/// One byte in the handle, which lives as long as a thread that waits: it called a method of it.
pub const Mark = enum(u8) { idle, running, awaited };

// Of the process: held for a look at one byte, and by nobody who holds or waits for anything else.
var mutex: std.c.pthread_mutex_t = .{};
var changed: std.c.pthread_cond_t = .{};

/// The loop's thread, before the call.
pub inline fn begin(mark: *Mark) void {
    @atomicStore(Mark, mark, .running, .seq_cst);
}

/// The loop's thread, after the call.
pub inline fn end(mark: *Mark) void {
    if (@atomicRmw(Mark, mark, .Xchg, .idle, .seq_cst) == .awaited) wakeAll();
}

fn wakeAll() void {
    @branchHint(.cold);
    _ = std.c.pthread_mutex_lock(&mutex);
    _ = std.c.pthread_cond_broadcast(&changed);
    _ = std.c.pthread_mutex_unlock(&mutex);
}

/// In a forked child: the thread that held the lock is not there to let it go.
pub fn afterFork() void {
    mutex = .{};
    changed = .{};
}

/// Another thread: returns when the handle does not run.
pub fn wait(mark: *Mark) void {
    if (@atomicLoad(Mark, mark, .seq_cst) == .idle) return;
    const thread_state = c.PyEval_SaveThread();
    defer c.PyEval_RestoreThread(thread_state);
    _ = std.c.pthread_mutex_lock(&mutex);
    defer _ = std.c.pthread_mutex_unlock(&mutex);
    // `end` that finds the mark `awaited` broadcasts behind this mutex, so not before the wait has begun.
    while (@cmpxchgStrong(Mark, mark, .running, .awaited, .seq_cst, .seq_cst) != .idle) {
        _ = std.c.pthread_cond_wait(&changed, &mutex);
    }
}
