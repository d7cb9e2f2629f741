"""What a forked child must know: its copies of loops are the parent's, and so is the signal pipe.

A loop of the parent refuses to run in the child. Scheduling callbacks and tasks on it is allowed, as
inherited signal handlers and callbacks of futures do, and so is closing it; neither touches the parent's
kernel objects. A child that leaves the run in which it forked by an exit may run its copy to the end, by
kernel objects of its own. A new loop in the child works at once, even when the fork happened inside a
callback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from . import _engine

#: Descriptors that loops of this interpreter have given to `signal.set_wakeup_fd()`.
wakeup_fds: set[int] = set()


def _after_fork_in_child() -> None:
    _engine._after_fork()
    # Signals of the child would reach the parent's loop. From 3.12 on asyncio sees to this.
    if sys.version_info < (3, 12) and wakeup_fds:  # pragma: <3.12 cover
        with contextlib.suppress(ValueError):
            fd = signal.set_wakeup_fd(-1)
            if fd not in wakeup_fds:
                signal.set_wakeup_fd(fd)
    wakeup_fds.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
