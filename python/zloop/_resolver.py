"""Name resolution beside the loop: a few threads of its own, and literal addresses at once.

The program's executor is not used: one that is full of work would delay every connection, and one that
is slow to resolve would delay the program's own work.
"""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import sys
import threading
from asyncio import base_events
from collections.abc import Callable
from typing import Any

from . import _engine

# Lookups wait for servers, not for the processor: few threads are many lookups a second.
THREAD_COUNT_MAX = 4
# A thread without work ends after this time.
IDLE_S = 10.0
# Tests that look for threads left over know the threads that asyncio keeps by this prefix.
THREAD_NAME = "asyncio_zloop-resolver"

_getaddrinfo = socket.getaddrinfo
_getnameinfo = socket.getnameinfo
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF:.")


class Pool:
    """Threads that call what they are given, for one loop. None outlives the process or its idle time."""

    def __init__(self) -> None:
        # A forked child has none of the threads.
        self.pid = os.getpid()
        # The modules that asyncio's executor takes its threads from: eventlet puts the real ones there, and
        # green ones everywhere else. Not imported here: that fails when the interpreter ends.
        executors: Any = sys.modules.get("concurrent.futures.thread", sys.modules[__name__])
        self._threading: Any = executors.threading
        self._empty: type[Exception] = executors.queue.Empty
        self._jobs: queue.SimpleQueue[_Job | None] = executors.queue.SimpleQueue()
        self._lock: threading.Lock = self._threading.Lock()
        self._thread_count = 0
        # Jobs that wait or run. As long as there are no more of them than threads, each has a thread.
        self._job_count = 0

    def submit(self, job: _Job) -> None:
        """RuntimeError if the job has no thread to run it and none can be started."""
        with self._lock:
            self._job_count += 1
            must_start = self._thread_count < min(self._job_count, THREAD_COUNT_MAX)
            self._thread_count += must_start
        if must_start:
            try:
                self._start()
            except BaseException:
                with self._lock:
                    self._thread_count -= 1
                    # Some of the others will come to it.
                    is_served = self._thread_count > 0
                    self._job_count -= not is_served
                if not is_served:
                    raise
        self._jobs.put(job)

    def _start(self) -> None:
        try:
            thread = self._threading.Thread(target=self._work, name=THREAD_NAME, daemon=True)
        except RuntimeError:
            # Isolated subinterpreters have no daemon threads; they end with the loop.
            thread = self._threading.Thread(target=self._work, name=THREAD_NAME)
        thread.start()

    def close(self) -> None:
        """Ends idle threads; one that waits for a server ends when that has answered."""
        with self._lock:
            thread_count = self._thread_count
            self._thread_count = 0
        for _ in range(thread_count):
            self._jobs.put(None)

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_S)
            except self._empty:
                if self._leave():
                    return
                continue
            if job is None:
                return
            job.run()
            del job
            with self._lock:
                self._job_count -= 1

    def _leave(self) -> bool:
        """Whether a thread that found nothing to do for long may end: not if a job counts on it."""
        with self._lock:
            if self._thread_count <= self._job_count:
                return False
            self._thread_count -= 1
            return True


class _Job:
    """One call and the future that waits for it. The future is touched on the loop's thread only."""

    __slots__ = ("args", "future", "loop", "method")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
        method: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self.loop = loop
        self.future = future
        self.method = method
        self.args = args

    def run(self) -> None:
        if self.future.cancelled() or self.loop.is_closed():
            return
        failure: BaseException | None = None
        result = None
        try:
            result = self.method(*self.args)
        except BaseException as exc:
            failure = exc
        try:
            self.loop.call_soon_threadsafe(_finish, self.future, result, failure)
        except RuntimeError:
            # The loop was closed meanwhile: nobody waits any more.
            pass
        finally:
            failure = None


def _finish(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)


class Resolving(_engine.Loop):
    _resolver: Pool | None = None

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """asyncio.loop.getaddrinfo()."""
        if self._debug:
            return await self._resolve(self._getaddrinfo_debug, host, port, family, type, proto, flags)
        # Looked up where asyncio looks it up: programs and tests replace it.
        getaddrinfo = base_events.socket.getaddrinfo
        if getaddrinfo is _getaddrinfo and _is_literal(host) and _is_number(port):
            more = socket.AI_NUMERICHOST if host is not None else 0
            if not flags & socket.AI_CANONNAME:
                try:
                    return getaddrinfo(host, port, family, type, proto, flags | more)
                except OSError:
                    # Not so plain after all. The ordinary call knows, and knows what to say.
                    pass
        return await self._resolve(getaddrinfo, host, port, family, type, proto, flags)

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> tuple[str, str]:
        """asyncio.loop.getnameinfo()."""
        getnameinfo = base_events.socket.getnameinfo
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        if getnameinfo is _getnameinfo and isinstance(flags, int) and flags & numeric == numeric:
            return getnameinfo(sockaddr, flags)
        answer: tuple[str, str] = await self._resolve(getnameinfo, sockaddr, flags)
        return answer

    def _resolve(self, method: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        self._check_closed()
        if self._resolver is None or self._resolver.pid != os.getpid():
            self._resolver = Pool()
        future = self.create_future()
        self._resolver.submit(_Job(self, future, method, args))
        return future

    def _close_resolver(self) -> None:
        if self._resolver is not None:
            self._resolver.close()
            self._resolver = None


def _is_literal(host: Any) -> bool:
    """Whether the C library reads *host* without asking anybody, if it reads it at all."""
    if host is None:
        return True
    if isinstance(host, (bytes, bytearray)):
        try:
            host = host.decode("ascii")
        except UnicodeDecodeError:
            return False
    if not isinstance(host, str):
        return False
    address = host.partition("%")[0]
    return bool(address) and (":" in address or address[-1].isdigit()) and _HEXADECIMAL.issuperset(address)


def _is_number(port: Any) -> bool:
    """Whether *port* needs no look into a list of services."""
    if port is None or isinstance(port, int):
        return True
    return isinstance(port, (str, bytes)) and port.isdigit()
