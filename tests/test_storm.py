"""Everything at once: connections of all kinds, pipes, children, timers and threads, whose callbacks raise,
close, abort, write, pause and replace their protocols at random, while tasks are cancelled and the garbage
collector runs as often as it can.

Asked for: no crash, no byte on a connection that is not its own, no exception but those that were thrown in,
connection_lost at most once, and in the end the descriptors and objects there were at the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import random
import socket
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import harness
import pytest

TAG_SIZE = 16
#: Bytes that one side of a connection sends at most.
BUDGET = 400_000
ACTORS_MAX = 24
LIMIT_S = 2.0

NOTE: contextvars.ContextVar[Any] = contextvars.ContextVar("note")


class Thrown(Exception):
    """What the storm raises itself."""


class Line:
    """One direction of a connection: a tag, again and again. Whatever else arrives is a stranger's."""

    def __init__(self, tag: bytes | None = None) -> None:
        self.tag = tag
        self.sent = 0
        self.received = 0
        self.head = b""

    def piece(self, count: int) -> bytes:
        assert self.tag is not None
        self.sent += count * TAG_SIZE
        return self.tag * count

    def check(self, data: bytes) -> None:
        """Of a line without a tag the first bytes are the tag."""
        if self.tag is None:
            missing = TAG_SIZE - len(self.head)
            self.head += data[:missing]
            data = data[missing:]
            self.received = len(self.head)
            if len(self.head) < TAG_SIZE:
                return
            self.tag = self.head
        offset = self.received % TAG_SIZE
        self.received += len(data)
        expected = (self.tag * (len(data) // TAG_SIZE + 2))[offset : offset + len(data)]
        assert data == expected, "bytes of another connection"


def inverted(tag: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in tag)


class LastDeed:
    """Does something random when it goes."""

    def __init__(self, storm: Storm) -> None:
        self.storm = storm

    def __del__(self) -> None:
        handle = self.storm.any_handle()
        if handle is not None:
            handle.cancel()
            handle.cancelled()
            if hasattr(handle, "get_context"):
                handle.get_context()


class End:
    """One end of a connection; protocols come and go, this stays."""

    def __init__(self, storm: Storm, tag: bytes | None) -> None:
        self.storm = storm
        self.incoming = Line(None if tag is None else inverted(tag))
        self.outgoing = Line(tag)
        self.lost = 0
        self.over: asyncio.Future[None] = storm.loop.create_future()

    def made(self, transport: Any) -> None:
        self.storm.transports.add(transport)
        if self.outgoing.tag is not None and hasattr(transport, "write"):
            transport.write(self.outgoing.piece(1))
        self.storm.deed(transport, self)

    def got(self, transport: Any, data: bytes) -> None:
        try:
            self.incoming.check(data)
        except AssertionError as error:
            self.storm.failures.append(error)
            raise
        if self.outgoing.tag is None and self.incoming.tag is not None:
            self.outgoing.tag = inverted(self.incoming.tag)
        self.storm.deed(transport, self)

    def gone(self, transport: Any) -> None:
        self.lost += 1
        if self.lost > 1:
            self.storm.failures.append(AssertionError(f"connection_lost of {transport!r} came again"))
        if not self.over.done():
            self.over.set_result(None)
        self.storm.deed(transport, self)


class Protocol:
    """What both kinds of protocol do."""

    transport: Any = None

    def __init__(self, end: End) -> None:
        self.end = end

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.end.made(transport)

    def eof_received(self) -> bool | None:
        self.end.storm.deed(self.transport, self.end)
        return self.end.storm.dice.random() < 0.3

    def connection_lost(self, exc: BaseException | None) -> None:
        self.end.gone(self.transport)

    def pause_writing(self) -> None:
        self.end.storm.deed(self.transport, self.end)

    def resume_writing(self) -> None:
        self.end.storm.deed(self.transport, self.end)


class Plain(Protocol, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self.end.got(self.transport, data)


class Buffered(Protocol, asyncio.BufferedProtocol):
    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.buffer = bytearray(end.storm.dice.choice((1, 100, 5000, 70_000)))

    def get_buffer(self, sizehint: int) -> Any:
        dice = self.end.storm.dice
        # The one given before may be in use no more.
        if dice.random() < 0.1:
            self.buffer = bytearray(dice.choice((1, 100, 5000, 70_000)))
        if dice.random() < 0.05:
            self.end.storm.deed(self.transport, self.end)
        return self.buffer if dice.random() < 0.5 else memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.end.got(self.transport, bytes(self.buffer[:nbytes]))


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, storm: Storm) -> None:
        self.storm = storm
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.storm.transports.add(transport)
        self.storm.deed(transport, None)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if data != data[:TAG_SIZE] * (len(data) // TAG_SIZE):
            self.storm.failures.append(AssertionError("a datagram of two senders"))
        self.storm.deed(self.transport, None)
        if self.storm.dice.random() < 0.5:
            self.transport.sendto(data, addr)

    def error_received(self, exc: Exception) -> None:
        self.storm.deed(self.transport, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.storm.deed(self.transport, None)


class Storm:
    def __init__(self, loop: asyncio.AbstractEventLoop, seed: int, tls: harness.Tls) -> None:
        self.loop: Any = loop
        self.dice = random.Random(seed)
        self.tls = tls
        self.transports: weakref.WeakSet[Any] = weakref.WeakSet()
        self.handles: list[Any] = []
        self.failures: list[BaseException] = []
        self.actors: set[asyncio.Task[None]] = set()
        self.addresses: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        self.over = False

    def any_handle(self) -> Any:
        """A handle of nobody's, which may or may not have run."""
        return self.handles.pop(self.dice.randrange(len(self.handles))) if self.handles else None

    def tag(self) -> bytes:
        return self.dice.getrandbits(8 * TAG_SIZE).to_bytes(TAG_SIZE, "little")

    def report(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        thrown = (Thrown, OSError, EOFError, asyncio.TimeoutError, asyncio.CancelledError)
        # Not every transport can do everything.
        if error is not None and not isinstance(error, (*thrown, NotImplementedError)):
            self.failures.append(error)

    # What happens inside callbacks.

    def deed(self, transport: Any, end: End | None) -> None:
        if transport is None:
            # An upgrade that failed: its protocol hears of the end only.
            return
        dice = self.dice
        roll = dice.random()
        if end is not None and roll < 0.35:
            self.write(transport, end)
            return
        if roll < 0.75:
            return
        deeds: list[Callable[[], Any]] = [
            self.throw,
            transport.close,
            transport.abort if hasattr(transport, "abort") else transport.close,
            lambda: gc.collect(dice.randrange(3)),
            lambda: self.pause(transport),
            lambda: self.replace(transport, end),
            lambda: self.ask(transport),
            lambda: self.limit(transport),
            self.schedule,
            lambda: self.say_eof(transport),
            self.cancel_somebody,
            lambda: self.from_a_thread(transport, end),
        ]
        # Those that end a connection are rarer.
        dice.choice(deeds if dice.random() < 0.2 else deeds[3:])()

    def throw(self) -> None:
        raise Thrown

    def write(self, transport: Any, end: End) -> None:
        line = end.outgoing
        if line.tag is None or line.sent > BUDGET or not hasattr(transport, "write"):
            return
        data: Any = line.piece(self.dice.choice((1, 1, 3, 70, 1100, 5000)))
        form = self.dice.randrange(5)
        if form == 1:
            data = bytearray(data)
        elif form == 2:
            data = memoryview(data)
        with contextlib.suppress(RuntimeError):  # after write_eof()
            if form == 3 and hasattr(transport, "writelines"):
                transport.writelines([data[:7], bytearray(data[7:9]), data[9:]])
            else:
                transport.write(data)
        if form == 1:
            with contextlib.suppress(BufferError):
                data[:] = bytes(len(data))
                data.clear()

    def pause(self, transport: Any) -> None:
        if hasattr(transport, "pause_reading"):
            transport.pause_reading()
            self.loop.call_later(self.dice.random() * 0.01, transport.resume_reading)

    def replace(self, transport: Any, end: End | None) -> None:
        if end is None:
            return
        protocol = self.dice.choice(
            (Plain, Buffered) if hasattr(transport, "get_write_buffer_size") else (Plain,)
        )(end)
        protocol.transport = transport
        transport.set_protocol(protocol)

    def ask(self, transport: Any) -> None:
        repr(transport)
        names = ("peername", "sockname", "socket", "ssl_object", "cipher", "peercert", "pipe", "nonsense")
        transport.get_extra_info(self.dice.choice(names))
        transport.is_closing()
        if hasattr(transport, "get_write_buffer_size"):
            transport.get_write_buffer_size()

    def limit(self, transport: Any) -> None:
        if hasattr(transport, "set_write_buffer_limits"):
            transport.set_write_buffer_limits(high=self.dice.choice((0, 100, 65536, 1 << 70)))

    def say_eof(self, transport: Any) -> None:
        if self.dice.random() < 0.1 and hasattr(transport, "can_write_eof") and transport.can_write_eof():
            transport.write_eof()

    def schedule(self) -> None:
        NOTE.set(LastDeed(self))
        for _ in range(self.dice.randrange(6)):
            self.handles.append(self.loop.call_soon(self.maybe_throw))
            self.handles.append(self.loop.call_later(self.dice.random() * 0.02, self.maybe_throw))
        while len(self.handles) > 50:
            self.any_handle()

    def maybe_throw(self) -> None:
        if self.dice.random() < 0.2:
            NOTE.set(LastDeed(self))
        if self.dice.random() < 0.05:
            raise Thrown

    def cancel_somebody(self) -> None:
        handle = self.any_handle()
        if handle is not None:
            handle.cancel()
        if self.actors and self.dice.random() < 0.1:
            self.dice.choice(sorted(self.actors, key=id)).cancel()

    def from_a_thread(self, transport: Any, end: End | None) -> None:
        def tell() -> None:
            for _ in range(5):
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    handle = self.loop.call_soon_threadsafe(self.maybe_throw)
                    if self.loop.time() % 1 < 0.5:
                        handle.cancel()

        if not self.over:
            self.loop.run_in_executor(None, tell)

    # Those who bring callbacks about.

    def protocol(self, tag: bytes | None) -> Any:
        return self.dice.choice((Plain, Buffered))(End(self, tag))

    async def stay(self, *protocols: Any) -> None:
        """Until the connection ends by itself, or its time is up."""
        overs = [protocol.end.over for protocol in protocols]
        await asyncio.wait(overs, timeout=self.dice.random() * LIMIT_S)
        for protocol in protocols:
            if protocol.transport is not None:
                getattr(protocol.transport, "abort", protocol.transport.close)()

    async def served(self) -> None:
        kind = self.dice.choice(sorted(self.addresses))
        given: dict[str, Any] = {}
        if kind == "tls":
            given = {"ssl": self.tls.client, "server_hostname": "localhost"}
        protocol = self.protocol(self.tag())
        if kind == "unix":
            await self.loop.create_unix_connection(lambda: protocol, self.addresses[kind])
        else:
            await self.loop.create_connection(lambda: protocol, *self.addresses[kind][:2], **given)
        await self.stay(protocol)

    async def paired(self) -> None:
        left, right = socket.socketpair() if self.dice.random() < 0.5 else harness.tcp_sockets()
        ours, theirs = self.protocol(self.tag()), self.protocol(None)
        with left, right:
            left.setblocking(False)
            right.setblocking(False)
            await self.loop.create_connection(lambda: ours, sock=left)
            await self.loop.connect_accepted_socket(lambda: theirs, sock=right)
            await self.stay(ours, theirs)

    async def upgraded(self) -> None:
        left, right = harness.tcp_sockets()
        ours, theirs = Plain(End(self, self.tag())), Plain(End(self, None))
        with left, right:
            below, _ = await self.loop.create_connection(asyncio.Protocol, sock=left)
            above, _ = await self.loop.connect_accepted_socket(asyncio.Protocol, sock=right)
            try:
                for made in await asyncio.gather(
                    self.loop.start_tls(below, ours, self.tls.client, server_hostname="localhost"),
                    self.loop.start_tls(above, theirs, self.tls.server, server_side=True),
                ):
                    if made is not None:
                        protocol = made.get_protocol()
                        protocol.connection_made(made)
                await self.stay(ours, theirs)
            finally:
                below.abort()
                above.abort()

    async def streamed(self) -> None:
        tag = self.tag()
        line = Line(inverted(tag))
        reader, writer = await asyncio.open_connection(*self.addresses["tcp"][:2])
        try:
            for count in (1, 10, 1000, 10_000):
                writer.write(tag * count)
                await writer.drain()
                line.check(await asyncio.wait_for(reader.read(100_000), self.dice.random()))
        finally:
            writer.transport.abort()

    async def datagrams(self) -> None:
        first, _ = await self.loop.create_datagram_endpoint(
            lambda: Datagrams(self), local_addr=("127.0.0.1", 0)
        )
        second, _ = await self.loop.create_datagram_endpoint(
            lambda: Datagrams(self), remote_addr=first.get_extra_info("sockname")
        )
        try:
            for _ in range(20):
                data = self.tag() * self.dice.choice((1, 60, 3000))
                second.sendto(data if self.dice.random() < 0.5 else bytearray(data))
                await asyncio.sleep(self.dice.choice((0, 0, 0.001)))
        finally:
            first.abort()
            second.abort()

    async def piped(self) -> None:
        read_end, write_end = os.pipe()
        ours, theirs = Plain(End(self, self.tag())), Plain(End(self, None))
        with open(read_end, "rb", 0) as reader, open(write_end, "wb", 0) as writer:
            transports = []
            try:
                transports.append((await self.loop.connect_read_pipe(lambda: theirs, reader))[0])
                transports.append((await self.loop.connect_write_pipe(lambda: ours, writer))[0])
                await self.stay(ours, theirs)
            finally:
                for transport in transports:
                    transport.close()
                    getattr(transport, "abort", transport.close)()
                await harness.turns(2)

    async def child(self) -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec("/bin/cat", stdin=pipe, stdout=pipe)
        assert process.stdin is not None and process.stdout is not None
        line = Line(self.tag())
        try:
            for count in (1, 100, 3000):
                process.stdin.write(line.piece(count))
                line.check(await asyncio.wait_for(process.stdout.readexactly(TAG_SIZE * count), LIMIT_S))
            if self.dice.random() < 0.5:
                process.stdin.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            process._transport.close()  # type: ignore[attr-defined]

    async def by_socket(self) -> None:
        left, right = socket.socketpair()
        line = Line(self.tag())
        with left, right:
            left.setblocking(False)
            right.setblocking(False)
            data = line.piece(self.dice.choice((1, 2000, 40_000)))
            sending = asyncio.ensure_future(self.loop.sock_sendall(left, data))
            try:
                while line.received < len(data):
                    wanted = self.dice.choice((1, 1000, 300_000))
                    waiting = asyncio.wait_for(
                        self.loop.sock_recv(right, wanted), self.dice.choice((0.001, 1))
                    )
                    with contextlib.suppress(asyncio.TimeoutError):
                        line.check(await waiting)
                    if self.dice.random() < 0.2:
                        buffer = bytearray(1000)
                        count = await asyncio.wait_for(self.loop.sock_recv_into(right, buffer), 0.1)
                        line.check(bytes(buffer[:count]))
            finally:
                sending.cancel()
                await asyncio.wait([sending])

    async def watching(self) -> None:
        left, right = socket.socketpair()
        left.setblocking(False)

        def readable() -> None:
            with contextlib.suppress(BlockingIOError):
                left.recv(100)
            if self.dice.random() < 0.3:
                self.loop.add_reader(left, readable)
            self.maybe_throw()

        try:
            self.loop.add_reader(left, readable)
            for _ in range(10):
                right.send(b"x")
                self.loop.add_writer(left, self.maybe_throw)
                await asyncio.sleep(0)
                self.loop.remove_writer(left)
        finally:
            self.loop.remove_reader(left)
            left.close()
            right.close()

    async def waiting(self) -> None:
        events = [asyncio.Event() for _ in range(3)]
        tasks = [asyncio.ensure_future(event.wait()) for event in events]
        self.loop.call_later(0.001, events[0].set)
        self.schedule()
        NOTE.set(LastDeed(self))
        await asyncio.wait(tasks, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def actor(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        thrown = (Thrown, OSError, EOFError, asyncio.TimeoutError, RuntimeError)
        try:
            await getattr(self, name)()
        except AssertionError as error:
            self.failures.append(error)
        except thrown as error:
            # asyncio's own refusals: of an upgrade of a closing transport, say.
            if isinstance(error, RuntimeError) and "coroutine" in str(error):
                self.failures.append(error)

    async def blow(self, seconds: float, folder: str) -> None:
        servers = [
            await self.loop.create_server(lambda: self.protocol(None), "127.0.0.1", 0),
            await self.loop.create_server(lambda: self.protocol(None), "127.0.0.1", 0, ssl=self.tls.server),
            await self.loop.create_unix_server(lambda: self.protocol(None), os.path.join(folder, "storm")),
        ]
        for kind, server in zip(("tcp", "tls", "unix"), servers):
            self.addresses[kind] = server.sockets[0].getsockname()
        names = (
            *("served",) * 6,
            *("paired",) * 3,
            *("upgraded", "streamed", "datagrams", "piped", "by_socket", "watching", "waiting"),
        )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.failures:
            while len(self.actors) < ACTORS_MAX:
                name = "child" if self.dice.random() < 0.01 else self.dice.choice(names)
                task = self.loop.create_task(self.actor(name))
                self.actors.add(task)
                task.add_done_callback(self.actors.discard)
            await asyncio.sleep(self.dice.random() * 0.02)
            self.cancel_somebody()
        self.over = True
        for server in servers:
            server.close()
        for task in list(self.actors):
            task.cancel()
        while self.actors:
            await asyncio.wait(list(self.actors))
        for transport in list(self.transports):
            getattr(transport, "abort", transport.close)()
        await self.loop.shutdown_default_executor()
        await harness.turns(10)


@contextlib.contextmanager
def eager_collector() -> Iterator[None]:
    """What there is now is left out: walking through pytest's own objects would take all the time."""
    threshold = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(1, 1, 1)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()
        gc.collect()


def engine_objects() -> list[Any]:
    return [found for found in gc.get_objects() if type(found).__module__ == "zloop._engine"]


def storm(factory: harness.LoopFactory, tls: harness.Tls, seconds: float, seed: int) -> None:
    known = {id(found) for found in engine_objects()}
    fds = harness.open_fds()
    loop = factory()
    raging = Storm(loop, seed, tls)
    loop.set_exception_handler(raging.report)
    with eager_collector(), tempfile.TemporaryDirectory() as folder:
        try:
            loop.run_until_complete(raging.blow(seconds, folder))
        finally:
            harness.finish(loop)
    failures = raging.failures
    counts = raging.counts
    gone = weakref.ref(loop)
    raging.handles.clear()
    del loop, raging
    for _ in range(3):
        gc.collect()
    assert not failures, f"seed {seed}: {failures[:3]}"
    assert sum(counts.values()) > 10, counts
    # Each handle refers to its loop, so no handle is left either.
    assert gone() is None, f"seed {seed}: the loop is held by {gc.get_referrers(gone())}"
    assert [found for found in engine_objects() if id(found) not in known] == []
    assert harness.settled_fds(fds) == {}


#: Seconds of the long one.
SOAK_S = float(os.environ.get("ZLOOP_STORM_S", "60"))


@pytest.mark.only_zloop("asyncio's sslproto hangs after some of the deeds")
@pytest.mark.parametrize(
    "seconds", [2, pytest.param(SOAK_S, marks=[pytest.mark.soak, pytest.mark.timeout(SOAK_S + 120)])]
)
def test_storm(loop_factory: harness.LoopFactory, tls: harness.Tls, seconds: float) -> None:
    seed = int(os.environ.get("ZLOOP_STORM_SEED", "0")) or random.SystemRandom().getrandbits(32)
    with warnings.catch_warnings():
        # Protocols that raise or are replaced forget transports; that is not the question here.
        warnings.simplefilter("ignore", ResourceWarning)
        storm(loop_factory, tls, seconds, seed)
