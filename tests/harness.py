"""What every test stands on: a runner that leaves nothing behind, recording protocols, connected pairs.

Nothing here knows which loop is under test: a test receives a factory and uses the public asyncio API only.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

T = TypeVar("T")
LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Report = dict[str, Any]

#: Excuses for the TLS of asyncio 3.10, which was rewritten for 3.11 (the second kind would hang).
old_tls = pytest.mark.asyncio_bug("rewritten in 3.11", when=sys.version_info < (3, 11), kinds=("tls",))
old_tls_hangs = pytest.mark.asyncio_bug(
    "rewritten in 3.11", when=sys.version_info < (3, 11), kinds=("tls",), run=False
)

#: The emulator makes a copying fork of the vfork under posix_spawn: the parent is not told of an error.
spawn_tells_errors = pytest.mark.skipif(
    "QEMU_LD_PREFIX" in os.environ, reason="qemu-user does not report why posix_spawn failed"
)

_transport = asyncio.selector_events._SelectorSocketTransport
#: Names that asyncio's own writelines uses, where it has one: tells which of its repairs this version has.
WRITELINES_USES = frozenset(
    vars(_transport)["writelines"].__code__.co_names if "writelines" in vars(_transport) else ()
)

#: How long a test waits for something that must happen; reached only by a failing test.
PATIENCE_S = 25.0


def open_fds() -> dict[int, str]:
    """Every open descriptor of the process and, where the system tells, what it refers to."""
    found: dict[int, str] = {}
    for name in os.listdir("/dev/fd"):
        fd = int(name)
        try:
            os.fstat(fd)
        except OSError:
            continue  # the descriptor listdir itself used
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            found[fd] = "?"
    return found


def settled_fds(before: dict[int, str], patience_s: float = 2.0) -> dict[int, str]:
    """Descriptors opened since `before`; garbage and dying threads get a moment to let go."""
    deadline = time.monotonic() + patience_s
    while True:
        leaked = {fd: what for fd, what in open_fds().items() if fd not in before}
        if not leaked or time.monotonic() > deadline:
            return leaked
        gc.collect()
        time.sleep(0.01)


def rss_bytes() -> int:
    """Resident memory of this process (Linux only; tests that use it say so)."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(
    main: Coroutine[Any, Any, T],
    factory: LoopFactory,
    *,
    debug: bool | None = None,
    reports: list[Report] | None = None,
) -> T:
    """Run `main` on a new loop and close everything.

    Every call of the loop's exception handler is a failure, unless the test passes a list to receive them.
    """
    loop = factory()
    seen: list[Report] = [] if reports is None else reports
    loop.set_exception_handler(lambda _loop, context: seen.append(context))
    if debug is not None:
        loop.set_debug(debug)
    try:
        result = loop.run_until_complete(main)
    finally:
        finish(loop)
    if reports is None and seen:
        raise AssertionError(f"the loop reported {len(seen)} unexpected problem(s): {seen}")
    return result


def finish(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what is left, end asynchronous generators and the default executor, close the loop."""
    try:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=PATIENCE_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.run_until_complete(turns(3))
        gc.collect()  # brings exceptions that nobody retrieved before the exception handler
    finally:
        loop.close()


async def turns(count: int) -> None:
    """Let the loop make `count` turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def within(awaitable: Awaitable[T], seconds: float = PATIENCE_S) -> T:
    """The result of something that must happen soon."""
    return await asyncio.wait_for(awaitable, seconds)


async def until(condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Wait for a fact that no event announces (another process, a kernel queue, a collected object)."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"condition still false after {seconds} s")
        await asyncio.sleep(0.002)


async def wait_closed(transport: asyncio.BaseTransport, log: Log) -> None:
    """Close the transport and see its protocol's connection_lost."""
    transport.close()
    await within(log.lost)


class LogBase:
    """Order of callbacks of one connection, and futures for its milestones."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.events: list[str] = []
        self.received = bytearray()
        self.transport: Any = None
        self.made: asyncio.Future[Any] = loop.create_future()
        self.eof: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[BaseException | None] = loop.create_future()
        self.lost_count = 0
        self.paused = False
        self._waiter: asyncio.Future[None] | None = None
        self.keep_open_after_eof = False

    def connection_made(self, transport: Any) -> None:
        self.events.append("made")
        self.transport = transport
        if not self.made.done():
            self.made.set_result(transport)

    def eof_received(self) -> bool | None:
        self.events.append("eof")
        if not self.eof.done():
            self.eof.set_result(None)
        self._wake()
        return self.keep_open_after_eof

    def connection_lost(self, exc: BaseException | None) -> None:
        self.events.append("lost")
        self.lost_count += 1
        if not self.lost.done():
            self.lost.set_result(exc)
        self._wake()

    def pause_writing(self) -> None:
        self.events.append("pause")
        self.paused = True

    def resume_writing(self) -> None:
        self.events.append("resume")
        self.paused = False
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _got(self, data: bytes | bytearray | memoryview) -> None:
        if not self.events or self.events[-1] != "data":
            self.events.append("data")  # chunking is the loop's business: neighbours count as one
        self.received += data
        self._wake()

    async def when(self, condition: Callable[[], object]) -> None:
        """Wait for a condition that one of this protocol's callbacks makes true."""

        async def wait() -> None:
            while not condition():
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter

        await within(wait())

    async def got(self, count: int) -> bytes:
        """Wait for at least `count` bytes and take exactly that many."""
        await self.when(lambda: len(self.received) >= count)
        taken = bytes(self.received[:count])
        del self.received[:count]
        return taken


class Log(LogBase, asyncio.Protocol):
    """A recording Protocol."""

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self._got(data)


class BufferedLog(LogBase, asyncio.BufferedProtocol):
    """A recording BufferedProtocol."""

    def __init__(self, size: int = 65536) -> None:
        super().__init__()
        self.buffer = bytearray(size)
        self.hints: list[int] = []

    def get_buffer(self, sizehint: int) -> memoryview:
        self.hints.append(sizehint)
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self._got(bytes(self.buffer[:nbytes]))


class Echo(Log):
    """Sends back what it receives."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


class DatagramLog(asyncio.DatagramProtocol):
    """A recording DatagramProtocol."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.transport: Any = None
        self.packets: list[tuple[bytes, Any]] = []
        self.errors: list[Exception] = []
        self.events: list[str] = []
        self.lost: asyncio.Future[BaseException | None] = loop.create_future()
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.events.append("made")
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.packets.append((data, addr))
        self._wake()

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)
        self._wake()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.events.append("lost")
        if not self.lost.done():
            self.lost.set_result(exc)

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def when(self, condition: Callable[[], object]) -> None:
        async def wait() -> None:
            while not condition():
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter

        await within(wait())

    async def packet(self) -> tuple[bytes, Any]:
        await self.when(lambda: self.packets)
        return self.packets.pop(0)


C = TypeVar("C", bound=LogBase)
S = TypeVar("S", bound=LogBase)


class Pair(Generic[C, S]):
    """Both ends of one connection in one loop."""

    def __init__(self, client: C, server: S) -> None:
        self.client, self.server = client, server

    @property
    def client_transport(self) -> Any:
        return self.client.transport

    @property
    def server_transport(self) -> Any:
        return self.server.transport


#: The kinds of stream `connected` can make.
STREAM_KINDS = ("tcp", "unix", "tls")


@contextlib.asynccontextmanager
async def connected(
    kind: str = "tcp",
    client: Callable[[], Any] = Log,
    server: Callable[[], Any] = Log,
    *,
    tls: Tls | None = None,
    small_buffers: bool = False,
) -> AsyncIterator[Pair[Any, Any]]:
    """Two protocols joined by a TCP, Unix or TLS connection; both ends are gone at exit.

    With `small_buffers` the kernel holds little, so that a slow reader is felt after some tens of KiB.
    """
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair() if kind == "unix" else tcp_sockets(small_buffers=small_buffers)
    if small_buffers and kind == "unix":
        for sock in (left, right):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client_ssl: dict[str, Any] = {}
    server_ssl: dict[str, Any] = {}
    if kind == "tls":
        assert tls is not None, "pass the tls fixture"
        client_ssl = {"ssl": tls.client, "server_hostname": "localhost"}
        server_ssl = {"ssl": tls.server}
    (_, one), (_, two) = await within(
        asyncio.gather(
            loop.create_connection(client, sock=left, **client_ssl),
            loop.connect_accepted_socket(server, sock=right, **server_ssl),
        )
    )
    # A transport whose socket object the program holds lets nothing wait for the end of the turn.
    del left, right
    pair: Pair[Any, Any] = Pair(one, two)
    try:
        yield pair
    finally:
        for end in (one, two):
            if not end.lost.done():
                end.transport.abort()
        for end in (one, two):
            await within(asyncio.wait([end.lost]))


def tcp_sockets(*, small_buffers: bool = False) -> tuple[socket.socket, socket.socket]:
    """A connected non-blocking TCP pair over loopback."""
    tcp = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with socket.socket(*tcp) as listener:
        if small_buffers:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        left = socket.socket(*tcp)
        if small_buffers:
            left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            left.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        left.connect(listener.getsockname())
        right, _ = listener.accept()
        if small_buffers:
            right.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    left.setblocking(False)
    right.setblocking(False)
    return left, right


def reset(sock: socket.socket) -> None:
    """Close a TCP socket so that its peer sees RST."""
    import struct

    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def closed_port() -> int:
    """A loopback TCP port on which nobody listens (just released)."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def listener(family: int = socket.AF_INET, backlog: int = 100) -> Iterator[socket.socket]:
    """A listening loopback socket that the loop under test does not know of."""
    with socket.socket(family) as sock:
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        sock.listen(backlog)
        sock.setblocking(False)
        yield sock


def has_ipv6() -> bool:
    """Whether ::1 can be bound."""
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


class Tls:
    """Contexts for localhost, signed by a throw-away authority."""

    def __init__(self, certificate: str, authority: str) -> None:
        self.certificate, self.authority = certificate, authority
        self.server = self.make_server()
        self.client = self.make_client()

    def make_server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        return context

    def make_client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes in which no loss, repetition or swap of chunks goes unseen."""
    words = (size + 7) // 8
    return b"".join(
        ((index * 0x9E3779B97F4A7C15 + seed) & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
        for index in range(words)
    )[:size]


def child_env() -> dict[str, str]:
    """Environment for interpreters that tests start: the same import path as this process."""
    paths = [path for path in sys.path if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}


def run_python(
    *arguments: object,
    env: dict[str, str] | None = None,
    check: bool = False,
    timeout: float = 60,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[str]:
    """An interpreter of its own, with the same import path; what it prints is kept."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=child_env() if env is None else env,
        check=check,
        timeout=timeout,
        cwd=cwd,
        pass_fds=pass_fds,
        capture_output=True,
        text=True,
    )


def run_program(
    loop_name: str, body: str, *switches: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    """As `run_python`, with the loop under test as `factory` and some modules imported."""
    head = f"""
        import asyncio, importlib, os, signal, socket, sys, threading
        module, _, attribute = {loop_name!r}.partition(":")
        def factory():
            return getattr(importlib.import_module(module), attribute)()
        """
    source = textwrap.dedent(head) + textwrap.dedent(body)
    return run_python("-Wignore", "-Xfaulthandler", *switches, "-c", source, **options)


@contextlib.contextmanager
def descriptor_limit(count: int) -> Iterator[None]:
    """The process may open so many descriptors, or as many as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
