"""Takes from Python on Linux what other systems lack, and gives it a `select.kqueue` that reports exits.

For the test build of the engine with an emulated kqueue: with this folder on PYTHONPATH the Python of zloop,
and of every child that a test starts, goes the ways of macOS and the BSDs. The queue is an epoll of pidfds.
"""

from __future__ import annotations

import os
import select
import selectors  # noqa: F401  (chooses epoll for asyncio itself, which takes a whole kqueue if there is one)
from collections.abc import Iterable

EVFILT_PROC = -5
EV_ADD = 0x1
EV_ONESHOT = 0x10
NOTE_EXIT = 0x80000000

_pidfd_open = os.pidfd_open
del os.pidfd_open


class kevent:
    def __init__(self, ident: int, filter: int, flags: int, fflags: int) -> None:
        if (filter, flags, fflags) != (EVFILT_PROC, EV_ADD | EV_ONESHOT, NOTE_EXIT):
            raise NotImplementedError("this kqueue waits for one exit at a time and for nothing else")
        self.ident = ident


class kqueue:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._pidfds: list[int] = []

    def fileno(self) -> int:
        return self._epoll.fileno()

    def control(self, changes: Iterable[kevent], max_events: int) -> list[kevent]:
        assert max_events == 0, "it is polled, never asked"
        for change in changes:
            # A child that has exited is there for waitpid() only.
            try:
                status = os.waitid(os.P_PID, change.ident, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                has_exited = status is not None
            except ChildProcessError:
                has_exited = True
            if has_exited:
                raise ProcessLookupError(3, "No such process")
            pidfd = _pidfd_open(change.ident)
            self._pidfds.append(pidfd)
            self._epoll.register(pidfd, select.EPOLLIN)
        return []

    def close(self) -> None:
        while self._pidfds:
            os.close(self._pidfds.pop())
        self._epoll.close()

    def __del__(self) -> None:
        self.close()


for _name, _value in {
    "kevent": kevent,
    "kqueue": kqueue,
    "KQ_FILTER_PROC": EVFILT_PROC,
    "KQ_EV_ADD": EV_ADD,
    "KQ_EV_ONESHOT": EV_ONESHOT,
    "KQ_NOTE_EXIT": NOTE_EXIT,
}.items():
    setattr(select, _name, _value)
