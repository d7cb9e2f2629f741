//! The kqueue backend against a simulated kernel that fails: every errno reaches the caller by its
//! name, nothing is left half done, nothing is lost.

const std = @import("std");
const c = std.c;
const reactor = @import("../reactor.zig");
const sys = @import("../sys.zig");
const Kqueue = @import("../reactor/kqueue.zig").Kqueue;
const Sim = @import("../reactor/kqueue_sim.zig").Sim;

const expectEqual = std.testing.expectEqual;
const expectError = std.testing.expectError;
const Event = reactor.Event;
const Interest = reactor.Interest;
const Token = reactor.Token;
const fd_t = reactor.fd_t;

const System = Sim(.{});
const Backend = Kqueue(System);
const PipeSystem = Sim(.{ .has_user = false });
const PipeBackend = Kqueue(PipeSystem);

const read_only: Interest = .{ .read = true };
const write_only: Interest = .{ .write = true };
const both: Interest = .{ .read = true, .write = true };

/// A reactor and a socket that is readable and writable.
const Fixture = struct {
    backend: Backend,
    pair: [2]fd_t,
    token: Token,

    fn init() !Fixture {
        var pair: [2]fd_t = undefined;
        try expectEqual(0, c.socketpair(c.AF.UNIX, c.SOCK.STREAM, 0, &pair));
        try expectEqual(sys.Outcome{ .done = 1 }, sys.send(pair[1], "x"));
        return .{ .backend = try Backend.open(), .pair = pair, .token = .{ .fd = pair[0], .generation = 3 } };
    }

    fn deinit(self: *Fixture) !void {
        self.backend.close();
        for (self.pair) |fd| sys.close(fd);
        try System.verify(.{});
    }

    fn expectReady(self: *Fixture, want: reactor.Readiness) !void {
        var buffer: [4]Event = undefined;
        var got: reactor.Readiness = .none;
        for (try self.backend.wait(&buffer, 0)) |event| {
            try expectEqual(self.token, event.token);
            got = got.merge(event.readiness);
        }
        try expectEqual(want, got);
    }
};

test "a failed opening leaves nothing open" {
    System.faults.open = .MFILE;
    try expectError(error.ProcessFdQuotaExceeded, Backend.open());
    System.faults.open = .NFILE;
    try expectError(error.SystemFdQuotaExceeded, Backend.open());
    System.faults.open = .NOMEM;
    try expectError(error.SystemResources, Backend.open());
    System.faults.add = .{ .filter = System.EVFILT.USER, .errno = .NOMEM };
    try expectError(error.SystemResources, Backend.open());
    System.faults.changes = .ACCES;
    try expectError(error.Unexpected, Backend.open());
    try System.verify(.{});

    PipeSystem.faults.add = .{ .filter = PipeSystem.EVFILT.READ, .errno = .NOMEM };
    const before = c.dup(0);
    sys.close(before);
    try expectError(error.SystemResources, PipeBackend.open());
    const after = c.dup(0);
    sys.close(after);
    try expectEqual(before, after);
    try PipeSystem.verify(.{});
}

test "each errno of an addition has its name" {
    var f = try Fixture.init();
    inline for (.{
        .{ .BADF, error.BadDescriptor },
        .{ .NOENT, error.BadDescriptor },
        .{ .INVAL, error.NotPollable },
        .{ .NODEV, error.NotPollable },
        .{ .NXIO, error.NotPollable },
        .{ .OPNOTSUPP, error.NotPollable },
        .{ .PERM, error.NotPollable },
        .{ .NOMEM, error.SystemResources },
        .{ .NOSPC, error.SystemResources },
        .{ .ACCES, error.Unexpected },
    }) |row| {
        System.faults.add = .{ .filter = System.EVFILT.READ, .errno = row[0] };
        try expectError(row[1], f.backend.set(f.token, .none, both));
        try f.expectReady(.none);
    }
    try f.deinit();
}

test "when one filter fails the other does not stay behind" {
    var f = try Fixture.init();
    try f.backend.set(f.token, .none, read_only);
    System.faults.add = .{ .filter = System.EVFILT.WRITE, .errno = .NOMEM };
    try expectError(error.SystemResources, f.backend.set(f.token, read_only, both));
    try f.expectReady(.none);

    try f.backend.set(f.token, .none, both);
    System.faults.delete = .{ .filter = System.EVFILT.WRITE, .errno = .ACCES };
    try expectError(error.Unexpected, f.backend.set(f.token, both, read_only));
    try f.expectReady(.none);
    try f.deinit();
}

test "a call that fails as a whole changes nothing that stays" {
    var f = try Fixture.init();
    System.faults.changes = .NOMEM;
    try expectError(error.SystemResources, f.backend.set(f.token, .none, both));
    System.faults.changes = .BADF;
    try expectError(error.Unexpected, f.backend.set(f.token, .none, both));
    System.faults.lose_receipt = true;
    try expectError(error.Unexpected, f.backend.set(f.token, .none, both));
    try f.expectReady(.none);
    try f.deinit();
}

test "a signal between a change and its receipt is not seen" {
    var f = try Fixture.init();
    System.faults.interrupt_changes = true;
    try f.backend.set(f.token, .none, both);
    try f.expectReady(.{ .read = true, .write = true });
    System.faults.interrupt_changes = true;
    try f.backend.set(f.token, both, write_only);
    try f.expectReady(.{ .write = true });
    System.faults.interrupt_changes = true;
    try f.backend.set(f.token, write_only, .none);
    try f.expectReady(.none);
    try f.deinit();
}

test "one change of interest is one call, and none when nothing changes" {
    var f = try Fixture.init();
    const before = System.change_call_count;
    try f.backend.set(f.token, .none, both);
    try f.backend.set(f.token, both, both);
    try f.backend.set(f.token, both, read_only);
    try f.backend.set(f.token, read_only, .none);
    try expectEqual(before + 3, System.change_call_count);
    try f.deinit();
}

test "half of a registration that is already gone is removed without complaint" {
    var f = try Fixture.init();
    try f.backend.set(f.token, .none, both);
    System.faults.delete = .{ .filter = System.EVFILT.READ, .errno = .NOENT };
    try f.backend.set(f.token, both, write_only);
    System.faults.delete = .{ .filter = System.EVFILT.WRITE, .errno = .NOENT };
    try expectError(error.BadDescriptor, f.backend.set(f.token, write_only, .none));
    try f.deinit();
}

test "a broken pipe is said once, for the token that asked, and only while it is wanted" {
    var f = try Fixture.init();
    var pipe: [2]fd_t = undefined;
    try expectEqual(0, c.pipe(&pipe));
    sys.close(pipe[0]);
    defer sys.close(pipe[1]);
    const token: Token = .{ .fd = pipe[1], .generation = 9 };
    var buffer: [4]Event = undefined;

    try f.backend.set(token, .none, both);
    try f.backend.set(token, both, read_only);
    for (try f.backend.wait(&buffer, 5_000_000)) |event| try expectEqual(reactor.Readiness{ .read = true }, event.readiness);
    try f.backend.set(token, read_only, .none);

    try f.backend.set(token, .none, write_only);
    const got = try f.backend.wait(&buffer, null);
    try expectEqual(1, got.len);
    try expectEqual(Event{ .token = token, .readiness = .{ .write = true } }, got[0]);
    try expectEqual(0, (try f.backend.wait(&buffer, 5_000_000)).len);

    System.faults.add = .{ .filter = System.EVFILT.TIMER, .errno = .NOMEM };
    try expectError(error.SystemResources, f.backend.set(token, .none, write_only));

    try f.backend.set(token, .none, write_only);
    System.faults.add = .{ .filter = System.EVFILT.READ, .errno = .NOMEM };
    try expectError(error.SystemResources, f.backend.set(token, write_only, both));
    try expectEqual(0, (try f.backend.wait(&buffer, 5_000_000)).len);
    try f.deinit();
}

test "the end of one direction does not speak for the other" {
    var f = try Fixture.init();
    try f.backend.set(f.token, .none, read_only);
    System.faults.eof = true;
    try f.expectReady(.{ .read = true });
    try f.backend.set(f.token, read_only, write_only);
    System.faults.eof = true;
    try f.expectReady(.{ .write = true });
    try f.backend.set(f.token, write_only, .none);
    try f.deinit();
}

test "a registration that breaks in the kernel wakes its owner" {
    var f = try Fixture.init();
    try f.backend.set(f.token, .none, read_only);
    System.faults.broken = .IO;
    try f.expectReady(.{ .read = true, .write = true });
    try f.backend.set(f.token, read_only, .none);
    try f.deinit();
}

test "a wait ends by a signal or an unknown error" {
    var f = try Fixture.init();
    var buffer: [4]Event = undefined;
    System.faults.wait = .INTR;
    try expectError(error.Interrupted, f.backend.wait(&buffer, null));
    System.faults.wait = .BADF;
    try expectError(error.Unexpected, f.backend.wait(&buffer, null));
    try f.deinit();
}

test "a change takes no event and no wake-up from the queue" {
    var f = try Fixture.init();
    f.backend.wake();
    try f.backend.set(f.token, .none, read_only);
    try f.backend.set(f.token, read_only, both);
    try f.backend.set(f.token, both, .none);
    var buffer: [4]Event = undefined;
    try expectEqual(0, (try f.backend.wait(&buffer, null)).len);
    try f.deinit();
}

test "a child process leaves the number of its parent's queue alone" {
    var backend = try Backend.open();
    var copy = backend;
    System.is_forked = true;
    copy.close();
    System.is_forked = false;
    backend.close();
    try System.verify(.{});
}
