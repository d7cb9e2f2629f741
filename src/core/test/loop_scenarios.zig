//! Whole turns of the loop over every reactor that this system can run: what the loop and a
//! backend promise each other, seen from outside.

const std = @import("std");
const builtin = @import("builtin");
const c = std.c;
const reactor = @import("../reactor.zig");
const clock = @import("../clock.zig");
const sys = @import("../sys.zig");
const LoopOver = @import("../loop.zig").LoopOver;
const Timer = @import("../timers.zig").Timer;
const Watch = @import("../watch.zig").Watch;

const expectEqual = std.testing.expectEqual;
const Readiness = reactor.Readiness;
const fd_t = reactor.fd_t;

test {
    if (builtin.os.tag == .linux) {
        const Kqueue = @import("../reactor/kqueue.zig").Kqueue;
        const emulated = @import("../reactor/kqueue_emulated.zig");
        const Sim = @import("../reactor/kqueue_sim.zig").Sim;
        _ = Scenarios(@import("../reactor/epoll.zig").Epoll);
        _ = Scenarios(Kqueue(Sim(.{})));
        _ = Scenarios(Kqueue(emulated.Emulated(.{})));
        _ = Scenarios(Kqueue(emulated.Emulated(emulated.old_netbsd)));
        _ = Scenarios(Kqueue(Sim(.{ .has_user = false, .reader_gone = .BADF, .misses_lost_reader = true, .is_wide = true })));
    } else {
        _ = Scenarios(reactor.Reactor);
    }
}

fn Scenarios(comptime Reactor: type) type {
    return struct {
        const Loop = LoopOver(Host, Reactor);

        const Host = struct {
            pub const Error = std.mem.Allocator.Error || reactor.OpenError;
            pub const Work = union(enum) { note: u32, watch: *Watch, unwatch: *Watch };
            const Entry = union(enum) { note: u32, ready: struct { fd: fd_t, readiness: Readiness } };

            loop: Loop,
            log: std.ArrayList(Entry) = .empty,
            stopping: bool = false,

            fn init() Host {
                // Threads post: the testing allocator is not for them.
                return .{ .loop = .init(std.heap.smp_allocator) };
            }

            fn deinit(self: *Host) !void {
                self.loop.deinit();
                self.log.deinit(std.testing.allocator);
                if (!@hasDecl(Reactor, "System") or !@hasDecl(Reactor.System, "verify")) return;
                try Reactor.System.verify(.{});
            }

            pub fn workOfTimer(_: *Host, _: *Timer) Work {
                return .{ .note = 99 };
            }

            pub fn queueWatch(self: *Host, w: *Watch) void {
                self.loop.ready.pushAssumeCapacity(.{ .watch = w });
            }

            pub fn idle(_: *Host) void {}
            pub fn patienceNs(_: *Host) ?u64 {
                return null;
            }
            pub fn turnDone(_: *Host) Error!void {}
            pub fn waitElsewhere(_: *Host, _: fd_t, wait_ns: ?u64) Error!?u64 {
                return wait_ns;
            }
            pub fn beforeWait(_: *Host) void {}
            pub fn afterWait(_: *Host) void {}
            pub fn isStopping(self: *Host) bool {
                return self.stopping;
            }

            pub fn checkSignals(_: *Host) Error!void {}

            pub fn pollsItself(_: *Host) bool {
                return false;
            }

            pub fn pollBy(_: *Host, _: ?u64) Error!void {
                unreachable;
            }

            pub fn timeNs(_: *Host) Error!u64 {
                return clock.nowNs();
            }

            pub fn run(self: *Host, work: Work) Error!void {
                switch (work) {
                    .note => |id| try self.log.append(std.testing.allocator, .{ .note = id }),
                    .watch => |w| {
                        try self.log.append(std.testing.allocator, .{ .ready = .{ .fd = w.fd, .readiness = w.pending } });
                        w.pending = .none;
                    },
                    .unwatch => |w| self.loop.unwatch(w),
                }
            }

            fn turn(self: *Host, stopping: bool) !void {
                self.stopping = stopping;
                return self.loop.turn(self);
            }

            fn expectLog(self: *Host, want: []const Entry) !void {
                try std.testing.expectEqualSlices(Entry, want, self.log.items);
                self.log.clearRetainingCapacity();
            }
        };

        fn socketPair() ![2]fd_t {
            var pair: [2]fd_t = undefined;
            try expectEqual(0, c.socketpair(c.AF.UNIX, c.SOCK.STREAM, 0, &pair));
            return pair;
        }

        test "both directions of a descriptor are one piece of work" {
            var host: Host = .init();
            const pair = try socketPair();
            defer for (pair) |fd| sys.close(fd);
            _ = sys.send(pair[1], "x");
            var w: Watch = .{ .fd = pair[0] };
            try host.loop.watch(&w, .{ .read = true, .write = true });
            try host.turn(false);
            try host.expectLog(&.{.{ .ready = .{ .fd = pair[0], .readiness = .{ .read = true, .write = true } } }});
            try host.loop.watch(&w, .{ .read = true });
            try host.turn(false);
            try host.expectLog(&.{.{ .ready = .{ .fd = pair[0], .readiness = .{ .read = true } } }});
            host.loop.unwatch(&w);
            try host.turn(true);
            try host.expectLog(&.{});
            try host.deinit();
        }

        test "queued work, then descriptors, then due timers" {
            var host: Host = .init();
            const pair = try socketPair();
            defer for (pair) |fd| sys.close(fd);
            var w: Watch = .{ .fd = pair[0] };
            try host.loop.watch(&w, .{ .write = true });
            var timer: Timer = .{};
            try host.loop.timers.push(host.loop.gpa, &timer, clock.nowNs());
            try host.loop.post(.{ .note = 1 });
            try host.turn(false);
            try host.expectLog(&.{
                .{ .note = 1 },
                .{ .ready = .{ .fd = pair[0], .readiness = .{ .write = true } } },
                .{ .note = 99 },
            });
            host.loop.unwatch(&w);
            try host.deinit();
        }

        test "a timer ends the wait, and not before its time" {
            var host: Host = .init();
            var timer: Timer = .{};
            const deadline_ns = clock.nowNs() + 2 * clock.ns_per_ms + 1;
            try host.loop.timers.push(host.loop.gpa, &timer, deadline_ns);
            var turn_count: usize = 0;
            while (host.log.items.len == 0) : (turn_count += 1) try host.turn(false);
            try std.testing.expect(clock.nowNs() >= deadline_ns);
            try std.testing.expect(turn_count <= 2);
            try host.expectLog(&.{.{ .note = 99 }});
            try host.deinit();
        }

        test "posts from threads end waits, each once and in order" {
            const count = 2_000;
            var host: Host = .init();
            const Poster = struct {
                fn run(loop: *Loop) void {
                    for (0..count) |id| loop.postThreadsafe(.{ .note = @intCast(id) }) catch unreachable;
                }
            };
            const thread = try std.Thread.spawn(.{}, Poster.run, .{&host.loop});
            while (host.log.items.len < count) try host.turn(false);
            thread.join();
            for (host.log.items, 0..) |entry, id| try expectEqual(Host.Entry{ .note = @intCast(id) }, entry);
            try host.deinit();
        }

        test "a descriptor unwatched by earlier work of the same turn is not reported in the next" {
            var host: Host = .init();
            const pair = try socketPair();
            defer for (pair) |fd| sys.close(fd);
            var w: Watch = .{ .fd = pair[0] };
            try host.loop.watch(&w, .{ .write = true });
            try host.loop.post(.{ .unwatch = &w });
            try host.turn(false);
            host.log.clearRetainingCapacity();
            try host.loop.post(.{ .note = 1 });
            try host.turn(false);
            try host.expectLog(&.{.{ .note = 1 }});
            try host.deinit();
        }

        test "more ready descriptors than one wait reports are all served" {
            // On kqueue each is two rows, more than one batch holds. A new shell of macOS allows
            // 256 descriptors.
            const count = if (builtin.os.tag == .linux) 300 else 50;
            var host: Host = .init();
            var pairs: [count][2]fd_t = undefined;
            var watches: [count]Watch = undefined;
            for (&pairs, &watches) |*pair, *w| {
                pair.* = try socketPair();
                w.* = .{ .fd = pair[0] };
                _ = sys.send(pair[1], "x");
                try host.loop.watch(w, .{ .read = true, .write = true });
            }
            var served: [count]Readiness = @splat(.none);
            for (0..3) |_| {
                try host.turn(false);
                for (host.log.items) |entry| {
                    for (&watches, &served) |*w, *readiness| {
                        if (w.fd == entry.ready.fd) readiness.* = readiness.merge(entry.ready.readiness);
                    }
                }
                host.log.clearRetainingCapacity();
            }
            for (served) |readiness| try expectEqual(Readiness{ .read = true, .write = true }, readiness);
            for (&pairs, &watches) |*pair, *w| {
                host.loop.unwatch(w);
                for (pair) |fd| sys.close(fd);
            }
            try host.deinit();
        }
    };
}
