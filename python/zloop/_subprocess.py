"""Child processes: started by CPython's own `subprocess.Popen`, waited for without signals.

A descriptor that becomes readable when the child exits (a pidfd on Linux, a kqueue with EVFILT_PROC
elsewhere) is watched by the loop like any other; where there is none, a thread waits. No child watcher of
asyncio is used, so children can be started by a loop in any thread and the program's SIGCHLD handler is its
own.

The transport owns its exit descriptor and closes it when the child has been reaped, or when the transport
is collected.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import subprocess
import sys
import threading
from asyncio import base_subprocess
from asyncio.log import logger
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._loop import Loop

#: What asyncio reports for a child whose status somebody else has taken.
RETURNCODE_UNKNOWN = 255


class SubprocessTransport(base_subprocess.BaseSubprocessTransport):
    """asyncio's subprocess transport over real pipes, with an exit descriptor of its own."""

    # Set by asyncio's constructor, the last two before anything here can run.
    _loop: Loop
    _proc: subprocess.Popen[bytes]
    _pid: int
    _exit_waiters: Any
    _exit_descriptor: _ExitDescriptor | None = None

    def _start(
        self, args: Any, shell: bool, stdin: Any, stdout: Any, stderr: Any, bufsize: int, **kwargs: Any
    ) -> None:
        self._proc = subprocess.Popen(
            args,
            shell=shell,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            universal_newlines=False,
            bufsize=bufsize,
            **kwargs,
        )

    def send_signal(self, signal: int) -> None:
        """asyncio.SubprocessTransport.send_signal(); a child that has been reaped is left alone."""
        self._check_proc()
        # Some versions ask the kernel at any rate, and the number can be another process's by then.
        if self._returncode is None:
            super().send_signal(signal)

    def watch_exit(self) -> None:
        """Begin to wait for the exit of the child, by whatever means there are."""
        try:
            self._exit_descriptor = _ExitDescriptor(self._pid)
            self._loop._add_reader(self._exit_descriptor, self._exited)
        except OSError:
            # No such call, a filter that forbids it, no descriptor left, or the child is gone already.
            self._forget_exit_descriptor()
            _ExitThread(self._loop, self._pid, self._reap).start()

    def _exited(self) -> None:
        try:
            reaped = self._reap(os.WNOHANG)
        except BaseException:
            # It would be readable, and this be raised, in each turn from now on.
            self._forget_exit_descriptor()
            raise
        if not reaped:
            # Stopped by a debugger, which must see the end first.
            self._forget_exit_descriptor()
            _ExitThread(self._loop, self._pid, self._reap).start()

    def _reap(self, options: int = 0) -> bool:
        """Take the child's status and tell asyncio's part; false if there is none yet."""
        proc = self._proc
        # The program can have asked Popen itself for the status; the lock is Popen's own, for that case.
        with proc._waitpid_lock:
            if proc.returncode is None:
                try:
                    pid, status = os.waitpid(proc.pid, options)
                except ChildProcessError:
                    logger.warning(
                        "child process pid %d exit status already read:  will report returncode %d",
                        proc.pid,
                        RETURNCODE_UNKNOWN,
                    )
                    proc.returncode = RETURNCODE_UNKNOWN
                else:
                    if pid == 0:
                        return False
                    proc.returncode = _exitcode(status)
        self._forget_exit_descriptor()
        self._process_exited(proc.returncode)
        return True

    def _process_exited(self, returncode: int) -> None:
        super()._process_exited(returncode)
        # asyncio from 3.11 to 3.13 wakes them when the pipes have ended; a grandchild can keep one open.
        waiters = self._exit_waiters
        if waiters:  # pragma: no cover (not on every version)
            self._exit_waiters = []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(returncode)

    def _forget_exit_descriptor(self) -> None:
        descriptor = self._exit_descriptor
        if descriptor is not None:
            self._exit_descriptor = None
            self._loop._remove_reader(descriptor)
            descriptor.close()


async def make_transport(
    loop: Loop,
    protocol: Any,
    args: Any,
    shell: bool,
    stdin: Any,
    stdout: Any,
    stderr: Any,
    bufsize: int,
    extra: dict[str, Any] | None = None,
    **kwargs: Any,
) -> SubprocessTransport:
    """The transport behind `subprocess_exec()` and `subprocess_shell()`."""
    waiter = loop.create_future()
    transport = SubprocessTransport(
        loop, protocol, args, shell, stdin, stdout, stderr, bufsize, waiter=waiter, extra=extra, **kwargs
    )
    if sys.version_info < (3, 12) and stdin == subprocess.PIPE:  # pragma: <3.12 cover
        # drain() tells the program that the child has left; early versions log it as well.
        closed = getattr(protocol, "_stdin_closed", None)
        if isinstance(closed, asyncio.Future):
            closed.add_done_callback(_retrieve)
    try:
        transport.watch_exit()
    except BaseException:
        # Kills the child, which then does not keep us waiting.
        transport.close()
        transport._reap()
        raise
    try:
        await waiter
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:
        transport.close()
        # Shielded: a second cancellation must not leave the child to nobody.
        await asyncio.shield(transport._wait())
        raise
    return transport


def _retrieve(future: asyncio.Future[None]) -> None:  # pragma: <3.12 cover
    with contextlib.suppress(asyncio.CancelledError):
        future.exception()


def _exitcode(status: int) -> int:
    try:
        return os.waitstatus_to_exitcode(status)
    except ValueError:
        # A status that is neither an exit nor a signal: asyncio hands it on as it is.
        return status


class _ExitDescriptor:
    """Readable when a child has exited. OSError if the system offers none."""

    def __init__(self, pid: int) -> None:
        self._queue: Any = None
        if hasattr(os, "pidfd_open"):
            self._fd = os.pidfd_open(pid)
        elif hasattr(select, "kqueue"):
            # The type checker knows the names of the system it runs on only.
            names: Any = select
            self._queue = names.kqueue()
            self._fd = self._queue.fileno()
            exits = names.kevent(
                pid, names.KQ_FILTER_PROC, names.KQ_EV_ADD | names.KQ_EV_ONESHOT, names.KQ_NOTE_EXIT
            )
            # Fails if the child has exited and only its status is left.
            self._queue.control([exits], 0)
        else:
            self._fd = -1
            raise OSError("no descriptor for a process here")

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if self._queue is not None:
            self._queue.close()
        elif fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


class _ExitThread(threading.Thread):
    """Waits for one child's exit; the status stays for the loop's thread to take."""

    def __init__(self, loop: Loop, pid: int, reap: Callable[[], Any]) -> None:
        super().__init__(name=f"waitpid-{pid}", daemon=True)
        self._loop = loop
        self._pid = pid
        self._reap = reap

    def run(self) -> None:
        try:
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pass  # somebody else has taken the status; the loop finds out
        try:
            self._loop.call_soon_threadsafe(self._reap)
        except RuntimeError:
            # The loop has been closed: nobody is left to be told, but the child must not stay a zombie.
            try:
                os.waitpid(self._pid, 0)
            except ChildProcessError:
                pass
