//! The word in which the interpreter asks a thread to do something between two bytecodes: run signal handlers, give the
//! GIL away, stand still for the garbage collector.
//!
//! Code in Python looks at it all the time; callbacks in C never do, so the loop does after each callback and
//! before each wait. Asking the interpreter costs sixty instructions; since 3.13 the word lies in the thread's state
//! and can be looked at in place. Whether it is where this file looks for it is tried out at import (`layoutIsKnown`).
//! Where it is not, the interpreter is asked once a turn.

const c = @import("c.zig");
const config = @import("config");
const py = @import("py.zig");

const may_be_known = config.py_minor >= 13;

/// PyThreadState.eval_breaker; its low byte has the requests.
const offset = 3 * @sizeOf(usize) + if (@import("builtin").cpu.arch.endian() == .little) 0 else @sizeOf(usize) - 1;

/// Of the thread that runs a loop.
pub const Requests = struct {
    flags: ?*const u8 = null,

    pub fn ofThisThread(is_known: bool) Requests {
        return .{ .flags = if (may_be_known and is_known) place() else null };
    }

    /// After a callback.
    pub inline fn serve(self: Requests) py.Error!void {
        if (comptime !may_be_known) return;
        const flags = self.flags orelse return;
        if (@atomicLoad(u8, flags, .monotonic) != 0) try serveAll();
    }

    /// Once a turn, before the decision to wait. Waiting gives the GIL away.
    pub inline fn serveSignals(self: Requests) py.Error!void {
        if (comptime may_be_known) if (self.flags) |flags| if (@atomicLoad(u8, flags, .monotonic) == 0) return;
        try py.checkInt(c.PyErr_CheckSignals());
    }

    fn serveAll() py.Error!void {
        @branchHint(.cold);
        try py.checkInt(c.PyErr_CheckSignals());
        c.PyEval_RestoreThread(c.PyEval_SaveThread());
    }
};

fn place() *const u8 {
    const thread: [*]const u8 = @ptrCast(c.PyThreadState_Get());
    return &thread[offset];
}

/// Taking back an exception that nobody has sent to this thread is a request that means nothing; the interpreter
/// drops it when it comes to it.
pub fn layoutIsKnown() bool {
    if (comptime !may_be_known) return false;
    const flags = place();
    const before = @atomicLoad(u8, flags, .monotonic);
    _ = c.PyThreadState_SetAsyncExc(c.PyThread_get_thread_ident(), null);
    const request = 1 << 3;
    return before & request == 0 and @atomicLoad(u8, flags, .monotonic) & request != 0;
}
