//! The reactor's contract as tests: one body, run over every backend that this system can run.
//! On Linux that is epoll and, over simulated kernels, kqueue in its variants; elsewhere the real one.

const std = @import("std");
const builtin = @import("builtin");
const c = std.c;
const reactor = @import("../reactor.zig");
const sys = @import("../sys.zig");
const clock = @import("../clock.zig");
const watch = @import("../watch.zig");

const expect = std.testing.expect;
const expectEqual = std.testing.expectEqual;
const Event = reactor.Event;
const Interest = reactor.Interest;
const Readiness = reactor.Readiness;
const Token = reactor.Token;
const fd_t = reactor.fd_t;

const read_only: Interest = .{ .read = true };
const write_only: Interest = .{ .write = true };
const both: Interest = .{ .read = true, .write = true };

test {
    if (builtin.os.tag == .linux) {
        const Kqueue = @import("../reactor/kqueue.zig").Kqueue;
        const emulated = @import("../reactor/kqueue_emulated.zig");
        const Sim = @import("../reactor/kqueue_sim.zig").Sim;
        _ = Suite(@import("../reactor/epoll.zig").Epoll);
        _ = Suite(Kqueue(Sim(.{})));
        _ = Suite(Kqueue(emulated.Emulated(.{})));
        _ = Suite(Kqueue(emulated.Emulated(emulated.old_netbsd)));
        _ = Suite(Kqueue(Sim(.{ .has_user = false, .reader_gone = .BADF, .misses_lost_reader = true, .is_wide = true })));
    } else {
        _ = Suite(reactor.Reactor);
    }
}

fn Suite(comptime Backend: type) type {
    return struct {
        comptime {
            reactor.check(Backend);
        }

        /// Closes the backend. A simulated kernel then says whether it was treated well, and how
        /// many descriptors were closed while registered.
        fn end(backend: *Backend, closed_count: usize) !void {
            backend.close();
            if (!@hasDecl(Backend, "System") or !@hasDecl(Backend.System, "verify")) return;
            try Backend.System.verify(.{ .closed_while_registered = closed_count });
        }

        /// What a wait says of `token`, rows merged as the loop merges them. Other tokens fail.
        fn readiness(backend: *Backend, token: Token, timeout_ns: ?u64) !Readiness {
            var buffer: [8]Event = undefined;
            var merged: Readiness = .none;
            for (try backend.wait(&buffer, timeout_ns)) |event| {
                try expectEqual(token, event.token);
                merged = merged.merge(event.readiness);
            }
            return merged;
        }

        fn expectReady(backend: *Backend, token: Token, want: Readiness) !void {
            try expectEqual(want, try readiness(backend, token, 0));
        }

        test "readable and writable are told apart, and told again until they are over" {
            var backend = try Backend.open();
            const pair = try socketPair();
            defer closeAll(&pair);
            const token: Token = .{ .fd = pair[0], .generation = 7 };

            try backend.set(token, .none, read_only);
            try expectReady(&backend, token, .none);
            try expectEqual(sys.Outcome{ .done = 1 }, sys.send(pair[1], "x"));
            try expectEqual(Readiness{ .read = true }, try readiness(&backend, token, null));
            try expectReady(&backend, token, .{ .read = true });

            try backend.set(token, read_only, both);
            try expectReady(&backend, token, .{ .read = true, .write = true });
            try backend.set(token, both, write_only);
            try expectReady(&backend, token, .{ .write = true });
            try backend.set(token, write_only, read_only);
            try expectReady(&backend, token, .{ .read = true });
            var byte: [1]u8 = undefined;
            try expectEqual(sys.Outcome{ .done = 1 }, sys.recv(pair[0], &byte));
            try expectReady(&backend, token, .none);

            try backend.set(token, read_only, both);
            try backend.set(token, both, both);
            try backend.set(token, both, .none);
            try expectReady(&backend, token, .none);
            try end(&backend, 0);
        }

        test "a full socket is not writable until the peer reads" {
            var backend = try Backend.open();
            const pair = try socketPair();
            defer closeAll(&pair);
            const token: Token = .{ .fd = pair[0], .generation = 1 };
            try fill(pair[0]);
            try backend.set(token, .none, write_only);
            try expectReady(&backend, token, .none);
            try drain(pair[1]);
            try expectReady(&backend, token, .{ .write = true });
            try backend.set(token, write_only, .none);
            try end(&backend, 0);
        }

        test "the token of the last change comes back" {
            var backend = try Backend.open();
            const pair = try socketPair();
            defer closeAll(&pair);
            const first: Token = .{ .fd = pair[0], .generation = 1 };
            const second: Token = .{ .fd = pair[0], .generation = std.math.maxInt(u32) };
            try backend.set(first, .none, both);
            try expectReady(&backend, first, .{ .write = true });
            try backend.set(first, both, .none);
            try backend.set(second, .none, write_only);
            try expectReady(&backend, second, .{ .write = true });
            try backend.set(second, write_only, .none);
            try end(&backend, 0);
        }

        test "a peer that has gone makes its end readable and writable, with bytes left or not" {
            inline for (.{ "", "left" }) |bytes| {
                var backend = try Backend.open();
                const pair = try socketPair();
                defer sys.close(pair[0]);
                const token: Token = .{ .fd = pair[0], .generation = 1 };
                try fill(pair[0]);
                try backend.set(token, .none, both);
                try expectReady(&backend, token, .none);
                if (bytes.len > 0) try expectEqual(sys.Outcome{ .done = bytes.len }, sys.send(pair[1], bytes));
                sys.close(pair[1]);
                try expectReady(&backend, token, .{ .read = true, .write = true });
                try backend.set(token, both, .none);
                try end(&backend, 0);
            }
        }

        test "a peer that only stopped sending makes its end readable" {
            var backend = try Backend.open();
            const pair = try socketPair();
            defer closeAll(&pair);
            const token: Token = .{ .fd = pair[0], .generation = 1 };
            try backend.set(token, .none, read_only);
            try expectEqual(null, sys.shutdownWrite(pair[1]));
            try expect((try readiness(&backend, token, 0)).read);
            try backend.set(token, read_only, .none);
            try end(&backend, 0);
        }

        /// NetBSD says nothing of a full pipe that was armed before its reader closed.
        const misses_lost_reader = @hasDecl(Backend, "System") and Backend.System.misses_lost_reader;

        test "a pipe whose reader has gone is writable, whenever it was armed" {
            for ([_][2]bool{ .{ false, true }, .{ true, true }, .{ true, false } }) |row| {
                const is_armed_before, const is_full = row;
                if (misses_lost_reader and is_armed_before and is_full) continue;
                var backend = try Backend.open();
                const pipe = try pipePair();
                defer sys.close(pipe[1]);
                const token: Token = .{ .fd = pipe[1], .generation = 5 };
                if (is_full) try fill(pipe[1]);
                if (is_armed_before) try backend.set(token, .none, write_only);
                sys.close(pipe[0]);
                if (!is_armed_before) try backend.set(token, .none, write_only);
                try expect((try readiness(&backend, token, 10 * clock.ns_per_s)).write);
                backend.set(token, write_only, .none) catch |err| try expectEqual(error.BadDescriptor, err);
                try expectReady(&backend, token, .none);
                try end(&backend, 0);
            }
        }

        test "the writing end of a pipe that is watched for reading tells of the lost reader, full or not" {
            for ([_][2]bool{ .{ false, false }, .{ false, true }, .{ true, false }, .{ true, true } }) |row| {
                const is_armed_before, const is_full = row;
                var backend = try Backend.open();
                const pipe = try pipePair();
                defer sys.close(pipe[1]);
                const token: Token = .{ .fd = pipe[1], .generation = 5 };
                if (is_full) try fill(pipe[1]);
                if (is_armed_before) try backend.set(token, .none, read_only);
                if (is_armed_before) try expectReady(&backend, token, .none);
                sys.close(pipe[0]);
                if (!is_armed_before) try backend.set(token, .none, read_only);
                try expect((try readiness(&backend, token, 10 * clock.ns_per_s)).read);
                try backend.set(token, read_only, .none);
                try expectReady(&backend, token, .none);
                try end(&backend, 0);
            }
        }

        test "what was armed on a full pipe can be taken back after its reader has gone" {
            var backend = try Backend.open();
            const pipe = try pipePair();
            defer sys.close(pipe[1]);
            const token: Token = .{ .fd = pipe[1], .generation = 5 };
            try fill(pipe[1]);
            try backend.set(token, .none, write_only);
            sys.close(pipe[0]);
            const got = try readiness(&backend, token, clock.ns_per_ms);
            try expectEqual(!misses_lost_reader, got.write);
            try backend.set(token, write_only, .none);
            try expectReady(&backend, token, .none);
            try end(&backend, 0);
        }

        test "a pipe without reader is forgotten at once when nobody wants it any more" {
            var backend = try Backend.open();
            const pipe = try pipePair();
            defer sys.close(pipe[1]);
            const token: Token = .{ .fd = pipe[1], .generation = 5 };
            sys.close(pipe[0]);
            try backend.set(token, .none, write_only);
            try backend.set(token, write_only, .none);
            try expectEqual(Readiness.none, try readiness(&backend, token, 5 * clock.ns_per_ms));
            try end(&backend, 0);
        }

        test "a closed descriptor is refused, and so is nonsense" {
            var backend = try Backend.open();
            const pair = try socketPair();
            closeAll(&pair);
            try std.testing.expectError(error.BadDescriptor, backend.set(.{ .fd = pair[0], .generation = 1 }, .none, both));
            try std.testing.expectError(error.BadDescriptor, backend.set(.{ .fd = -1, .generation = 1 }, .none, both));
            try end(&backend, 0);
        }

        test "a descriptor closed behind our back is a bad one, and reports no more" {
            var backend = try Backend.open();
            const pair = try socketPair();
            defer sys.close(pair[1]);
            const token: Token = .{ .fd = pair[0], .generation = 1 };
            try backend.set(token, .none, both);
            sys.close(pair[0]);
            try expectReady(&backend, token, .none);
            try std.testing.expectError(error.BadDescriptor, backend.set(token, both, read_only));
            try std.testing.expectError(error.BadDescriptor, backend.set(token, read_only, .none));
            try end(&backend, 2);
        }

        test "a number reopened behind our back is watched for all that is wanted now" {
            const gpa = std.testing.allocator;
            var backend = try Backend.open();
            const old = try socketPair();
            defer sys.close(old[1]);
            var table: watch.WatchTable = .{};
            defer table.deinit(gpa);
            var w: watch.Watch = .{ .fd = old[0] };
            try table.update(gpa, &backend, &w, read_only);
            const new = try socketPair();
            defer sys.close(new[1]);
            try expectEqual(old[0], c.dup2(new[0], old[0]));
            sys.close(new[0]);
            defer sys.close(old[0]);
            try table.update(gpa, &backend, &w, both);
            try expectEqual(sys.Outcome{ .done = 1 }, sys.send(new[1], "x"));
            const token: Token = .{ .fd = w.fd, .generation = w.generation };
            try expectReady(&backend, token, .{ .read = true, .write = true });
            try table.update(gpa, &backend, &w, .none);
            try end(&backend, 1);
        }

        test "what is not pollable is refused" {
            var backend = try Backend.open();
            const null_fd = c.open("/dev/null", .{ .ACCMODE = .RDWR });
            defer sys.close(null_fd);
            const token: Token = .{ .fd = null_fd, .generation = 1 };
            // FreeBSD and macOS watch it: it is always ready.
            if (builtin.os.tag == .linux) {
                try std.testing.expectError(error.NotPollable, backend.set(token, .none, both));
            } else if (backend.set(token, .none, both)) {
                try backend.set(token, both, .none);
            } else |err| try expectEqual(error.NotPollable, err);
            try end(&backend, 0);
        }

        test "a wake-up ends the wait once, without an event" {
            var backend = try Backend.open();
            var buffer: [4]Event = undefined;
            for (0..100) |_| backend.wake();
            try expectEqual(0, (try backend.wait(&buffer, null)).len);
            const start_ns = clock.nowNs();
            try expectEqual(0, (try backend.wait(&buffer, 3 * clock.ns_per_ms)).len);
            try expect(clock.nowNs() - start_ns >= 3 * clock.ns_per_ms);
            backend.wake();
            try expectEqual(0, (try backend.wait(&buffer, null)).len);
            try end(&backend, 0);
        }

        test "a wake-up leaves the events of the same batch alone" {
            var backend = try Backend.open();
            const pair = try socketPair();
            defer closeAll(&pair);
            const token: Token = .{ .fd = pair[0], .generation = 1 };
            try backend.set(token, .none, write_only);
            for (0..3) |_| {
                backend.wake();
                try expectReady(&backend, token, .{ .write = true });
            }
            try backend.set(token, write_only, .none);
            try end(&backend, 0);
        }

        test "more wake-ups than a pipe holds are still one" {
            var backend = try Backend.open();
            for (0..100_000) |_| backend.wake();
            var buffer: [4]Event = undefined;
            try expectEqual(0, (try backend.wait(&buffer, null)).len);
            const start_ns = clock.nowNs();
            try expectEqual(0, (try backend.wait(&buffer, clock.ns_per_ms)).len);
            try expect(clock.nowNs() - start_ns >= clock.ns_per_ms);
            try end(&backend, 0);
        }

        test "another thread's wake-up ends a wait without a limit" {
            var backend = try Backend.open();
            for (0..50) |_| {
                const thread = try std.Thread.spawn(.{}, Backend.wake, .{&backend});
                var buffer: [4]Event = undefined;
                try expectEqual(0, (try backend.wait(&buffer, null)).len);
                thread.join();
            }
            try end(&backend, 0);
        }

        test "a wait ends by its limit and never before" {
            var backend = try Backend.open();
            var buffer: [4]Event = undefined;
            for ([_]u64{ 0, 1, 999, 1_001, 999_999, 1_000_001, 4_999_999 }) |timeout_ns| {
                const start_ns = clock.nowNs();
                try expectEqual(0, (try backend.wait(&buffer, timeout_ns)).len);
                try expect(clock.nowNs() - start_ns >= timeout_ns);
            }
            // A limit beyond what the kernel can count is no error.
            backend.wake();
            try expectEqual(0, (try backend.wait(&buffer, std.math.maxInt(u64))).len);
            try end(&backend, 0);
        }

        test "a small batch reports every descriptor in turn" {
            var backend = try Backend.open();
            var pairs: [5][2]fd_t = undefined;
            for (&pairs) |*pair| pair.* = try socketPair();
            defer for (&pairs) |*pair| closeAll(pair);
            for (pairs, 0..) |pair, i| try backend.set(.{ .fd = pair[0], .generation = @intCast(i) }, .none, write_only);
            var seen: [5]bool = @splat(false);
            var buffer: [2]Event = undefined;
            for (0..3) |_| {
                const got = try backend.wait(&buffer, null);
                try expectEqual(buffer.len, got.len);
                for (got) |event| {
                    try expectEqual(pairs[event.token.generation][0], event.token.fd);
                    seen[event.token.generation] = true;
                }
            }
            try expectEqual(@as([5]bool, @splat(true)), seen);
            for (pairs, 0..) |pair, i| try backend.set(.{ .fd = pair[0], .generation = @intCast(i) }, write_only, .none);
            try end(&backend, 0);
        }

        test "a signal interrupts the wait" {
            var backend = try Backend.open();
            const before = Pest.install();
            defer Pest.uninstall(&before);
            var pest: Pest = .{ .target = c.pthread_self() };
            const thread = try std.Thread.spawn(.{}, Pest.run, .{&pest});
            defer thread.join();
            defer pest.is_over.store(true, .seq_cst);
            var buffer: [4]Event = undefined;
            try std.testing.expectError(error.Interrupted, backend.wait(&buffer, null));
            try end(&backend, 0);
        }

        test "its descriptors are not for other programs, and all are closed" {
            const before = openDescriptors();
            var backend = try Backend.open();
            const ours = openDescriptors().differenceWith(before);
            try expect(ours.isSet(@intCast(backend.fileno())));
            var fds = ours.iterator(.{});
            while (fds.next()) |fd| {
                try expect(c.fcntl(@intCast(fd), c.F.GETFD) & c.FD_CLOEXEC != 0);
            }
            try end(&backend, 0);
            try expect(openDescriptors().eql(before));
        }

        test "two reactors do not see each other" {
            var a = try Backend.open();
            var b = try Backend.open();
            const pair = try socketPair();
            defer closeAll(&pair);
            const token: Token = .{ .fd = pair[0], .generation = 1 };
            try a.set(token, .none, write_only);
            b.wake();
            try expectReady(&b, token, .none);
            try expectReady(&a, token, .{ .write = true });
            try a.set(token, write_only, .none);
            b.close();
            try end(&a, 0);
        }
    };
}

/// Sends one signal after another until told to stop: one of them meets the wait.
const Pest = struct {
    target: c.pthread_t,
    is_over: std.atomic.Value(bool) = .init(false),

    fn install() c.Sigaction {
        const action: c.Sigaction = .{ .handler = .{ .handler = ignore }, .mask = std.mem.zeroes(c.sigset_t), .flags = 0 };
        var before: c.Sigaction = undefined;
        std.debug.assert(c.sigaction(.URG, &action, &before) == 0);
        return before;
    }

    fn uninstall(before: *const c.Sigaction) void {
        std.debug.assert(c.sigaction(.URG, before, null) == 0);
    }

    fn ignore(_: c.SIG) callconv(.c) void {}

    fn run(self: *Pest) void {
        while (!self.is_over.load(.seq_cst)) {
            _ = c.pthread_kill(self.target, .URG);
            std.Thread.yield() catch {};
        }
    }
};

fn socketPair() ![2]fd_t {
    var pair: [2]fd_t = undefined;
    try expectEqual(0, c.socketpair(c.AF.UNIX, c.SOCK.STREAM, 0, &pair));
    for (pair) |fd| sys.setNonblocking(fd);
    return pair;
}

fn pipePair() ![2]fd_t {
    var pair: [2]fd_t = undefined;
    try expectEqual(0, c.pipe(&pair));
    for (pair) |fd| sys.setNonblocking(fd);
    return pair;
}

fn closeAll(fds: []const fd_t) void {
    for (fds) |fd| sys.close(fd);
}

fn fill(fd: fd_t) !void {
    const bytes: [4096]u8 = @splat('f');
    var piece: []const u8 = &bytes;
    while (piece.len > 0) switch (sys.write(fd, piece)) {
        .done => {},
        // Bytes smaller than the last refusal may still fit.
        .would_block => piece = piece[0 .. piece.len / 2],
        .failed => return error.Unexpected,
    };
}

fn drain(fd: fd_t) !void {
    var buffer: [65536]u8 = undefined;
    while (true) switch (sys.read(fd, &buffer)) {
        .done => |len| if (len == 0) return,
        .would_block => return,
        .failed => return error.Unexpected,
    };
}

const Descriptors = std.StaticBitSet(256);

fn openDescriptors() Descriptors {
    var set: Descriptors = .empty;
    for (0..Descriptors.bit_length) |fd| set.setValue(fd, c.fcntl(@intCast(fd), c.F.GETFD) != -1);
    return set;
}
