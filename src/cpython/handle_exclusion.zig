//! Since 3.14 a handle of call_soon_threadsafe() that runs is out of other threads' reach: their cancel()
//! and cancelled() wait until it has run (asyncio.events._ThreadSafeHandle). The callback itself may
//! call both, as asyncio's recursive lock lets it.
//!
//! The loop's thread marks the handle while it runs, and looks whether somebody waits only when it takes the
//! mark away: a run without waiters costs two stores. Each who waits does so on a lock of the interpreter's own,
//! as asyncio's lock does: other threads run Python meanwhile, and a signal's handler runs at once and can
//! end the wait by an exception.

const std = @import("std");
const c = @import("c.zig");
const config = @import("config");
const py = @import("py.zig");

pub const enabled = config.py_minor >= 14;

/// One byte in the handle, which lives as long as a thread that waits: it called a method of it.
pub const Mark = enum(u8) { idle, running, awaited };

/// One wait of a thread, on its stack.
const Waiter = struct {
    mark: *Mark,
    /// Locked when the wait begins; whoever lets it go has taken the waiter out of the list before.
    lock: *anyopaque,
    next: ?*Waiter = null,
};

// Of the process. The mutex is held for a look at one byte and at the list, and by nobody who holds or waits for
// anything else.
var mutex: std.c.pthread_mutex_t = .{};
var waiters: ?*Waiter = null;

/// The loop's thread, before the call.
pub inline fn begin(mark: *Mark) void {
    @atomicStore(Mark, mark, .running, .seq_cst);
}

/// The loop's thread, after the call.
pub inline fn end(mark: *Mark) void {
    if (@atomicRmw(Mark, mark, .Xchg, .idle, .seq_cst) == .awaited) wakeAll(mark);
}

fn wakeAll(mark: *Mark) void {
    @branchHint(.cold);
    _ = std.c.pthread_mutex_lock(&mutex);
    defer _ = std.c.pthread_mutex_unlock(&mutex);
    var link = &waiters;
    while (link.*) |waiter| {
        if (waiter.mark == mark) {
            link.* = waiter.next;
            // The waiter's stack can be gone after this.
            c.PyThread_release_lock(waiter.lock);
        } else {
            link = &waiter.next;
        }
    }
}

/// In a forked child: the threads that held the mutex and waited are not there any more.
pub fn afterFork() void {
    mutex = .{};
    waiters = null;
}

/// Another thread: returns when the handle does not run, or with what a signal's handler raised.
pub fn wait(mark: *Mark) py.Error!void {
    while (@atomicLoad(Mark, mark, .seq_cst) != .idle) try waitOnce(mark);
}

fn waitOnce(mark: *Mark) py.Error!void {
    const lock = c.PyThread_allocate_lock() orelse return py.noMemory();
    defer c.PyThread_free_lock(lock);
    _ = c.PyThread_acquire_lock(lock, 1);
    var waiter: Waiter = .{ .mark = mark, .lock = lock };
    if (!enlist(&waiter)) return;
    const thread_state = c.PyEval_SaveThread();
    const result = c.PyThread_acquire_lock_timed(lock, -1, 1);
    if (result != c.PY_LOCK_ACQUIRED) withdraw(&waiter);
    c.PyEval_RestoreThread(thread_state);
    if (result != c.PY_LOCK_ACQUIRED) try py.checkInt(c.PyErr_CheckSignals());
}

/// False if the handle has ended its run meanwhile. `end` that finds the mark `awaited` looks through the list
/// behind the mutex, so not before the waiter is in it.
fn enlist(waiter: *Waiter) bool {
    _ = std.c.pthread_mutex_lock(&mutex);
    defer _ = std.c.pthread_mutex_unlock(&mutex);
    if (@cmpxchgStrong(Mark, waiter.mark, .running, .awaited, .seq_cst, .seq_cst) == .idle) return false;
    waiter.next = waiters;
    waiters = waiter;
    return true;
}

/// A signal has ended the wait; `wakeAll` can have been faster.
fn withdraw(waiter: *Waiter) void {
    _ = std.c.pthread_mutex_lock(&mutex);
    defer _ = std.c.pthread_mutex_unlock(&mutex);
    var link = &waiters;
    while (link.*) |other| : (link = &other.next) if (other == waiter) {
        link.* = waiter.next;
        return;
    };
}
