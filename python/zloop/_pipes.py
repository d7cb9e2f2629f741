"""What happens once per pipe transport: which descriptors are accepted, and their blocking mode.

asyncio makes a pipe's descriptor non-blocking and leaves it so. That mode belongs to the open file, not
to the descriptor: a shell, a parent or a child that shares a terminal or a standard stream with us would
find it changed when we are gone. Those get their mode back with the last transport that uses them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._loop import Loop

#: Systems on which the writing end of a named FIFO is readable while data waits in it, so that being
#: readable does not mean that the reader has gone.
_FIFO_READABLE_WHEN_FULL = frozenset({"darwin", "ios", "tvos", "watchos", "sunos5"})

_STANDARD_STREAM_MAX = 2


class Modes:
    """Open files that were blocking before the first of their transports, with the number of transports."""

    def __init__(self) -> None:
        self._users: dict[tuple[int, int], int] = {}

    def take(self, fd: int, status: os.stat_result) -> bool:
        """Count one more user if the file was blocking or is counted already; whether it was."""
        key = status.st_dev, status.st_ino
        users = self._users.get(key, 0)
        if users == 0 and not os.get_blocking(fd):
            return False
        self._users[key] = users + 1
        return True

    def give_back(self, pipe: Any) -> None:
        """Count one user less, and make the file blocking again after the last."""
        # The program can have closed the file already; then there is nothing to restore.
        with contextlib.suppress(OSError, ValueError):
            fd = pipe.fileno()
            status = os.fstat(fd)
            key = status.st_dev, status.st_ino
            users = self._users.pop(key, 0)
            if users > 1:
                self._users[key] = users - 1
            elif users == 1:
                os.set_blocking(fd, True)


def make_reading(
    loop: Loop, pipe: Any, protocol: Any, waiter: Any, extra: dict[str, Any] | None
) -> asyncio.ReadTransport:
    """The transport behind `connect_read_pipe()`."""
    fd, _, restores = _prepare(loop, pipe, "Pipe transport is for pipes/sockets only.")
    return loop._read_pipe(pipe, fd, protocol, waiter, extra, restores, False)


def make_writing(
    loop: Loop, pipe: Any, protocol: Any, waiter: Any, extra: dict[str, Any] | None
) -> asyncio.WriteTransport:
    """The transport behind `connect_write_pipe()`."""
    refusal = "Pipe transport is only for pipes, sockets and character devices"
    fd, status, restores = _prepare(loop, pipe, refusal)
    mode = status.st_mode
    misleads = stat.S_ISFIFO(mode) and status.st_nlink > 0 and sys.platform in _FIFO_READABLE_WHEN_FULL
    watches_peer = not stat.S_ISCHR(mode) and not misleads
    return loop._write_pipe(pipe, fd, protocol, waiter, extra, restores, watches_peer)


def _prepare(loop: Loop, pipe: Any, refusal: str) -> tuple[int, os.stat_result, bool]:
    fd = pipe.fileno()
    status = os.fstat(fd)
    mode = status.st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)):
        raise ValueError(refusal)
    restores = False
    if fd <= _STANDARD_STREAM_MAX or stat.S_ISCHR(mode):
        if loop._pipe_modes is None:
            loop._pipe_modes = Modes()
        restores = loop._pipe_modes.take(fd, status)
    os.set_blocking(fd, False)
    return fd, status, restores
