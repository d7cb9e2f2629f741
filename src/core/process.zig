//! fork(): the one fact here that belongs to the process and not to a loop.
//!
//! A child gets a copy of every loop of its parent, which shares the parent's kernel objects and
//! must not touch them. Whoever forks calls `noteFork` in the child, while that has one thread
//! only; so the counter is plain memory.

var fork_count: u32 = 0;

/// How many forks lie between the first process and this one. A loop whose own count differs is a
/// copy of one that belongs to the parent.
pub inline fn forkCount() u32 {
    return fork_count;
}

pub fn noteFork() void {
    fork_count +%= 1;
}

test "a fork is counted" {
    const before = forkCount();
    noteFork();
    defer fork_count = before;
    try @import("std").testing.expectEqual(before +% 1, forkCount());
}
