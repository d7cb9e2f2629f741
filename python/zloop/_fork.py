"""What a forked child must know: its copies of loops are the parent's, and so is the signal pipe.

A loop of the parent refuses to run in the child. Scheduling callbacks and tasks on it is allowed, as
inherited signal handlers and callbacks of futures do, and so is closing it; neither touches the parent's
kernel objects. A child that leaves the run in which it forked by an exit may run its copy to the end, by
kernel objects of its own. A new loop in the child works at once, even when the fork happened inside a
callback. What callbacks wrote before is in the kernel by then, and only the parent sends the rest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import weakref
from typing import TYPE_CHECKING

from . import _engine

if TYPE_CHECKING:
    from ._loop import Loop

#: Loops that may have bytes waiting for the end of their turn.
loops: weakref.WeakSet[Loop] = weakref.WeakSet()

#: Descriptors that loops of this interpreter have given to `signal.set_wakeup_fd()`.
wakeup_fds: set[int] = set()


def _before_fork() -> None:
    for loop in list(loops):
        loop._send_waiting()


def _after_fork_in_child() -> None:
    _engine._after_fork()
    # Signals of the child would reach the parent's loop. From 3.12 on asyncio sees to this.
    if sys.version_info < (3, 12) and wakeup_fds:  # pragma: <3.12 cover
        with contextlib.suppress(ValueError):
            fd = signal.set_wakeup_fd(-1)
            if fd not in wakeup_fds:
                signal.set_wakeup_fd(fd)
    wakeup_fds.clear()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
