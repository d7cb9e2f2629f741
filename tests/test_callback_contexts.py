"""In which context each callback runs, and the exception handler for what it raises.

asyncio makes a handle for each purpose, with a copy of the context of whoever caused it. Since 3.12 the
exception handler for what a handle raised runs in the handle's context; since 3.15 a stream has one context
for its life.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import socket
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from harness import PATIENCE_S, connected, turns, until, within

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="the loop's")
REPORTED_IN_HANDLES = sys.version_info >= (3, 12)
ONE_CONTEXT = sys.version_info >= (3, 15)

#: The first 3.13 count a datagram's header when it is queued only.
HEADERS_STAY = (
    sys.version_info[:2] == (3, 13)
    and "_header_size"
    not in asyncio.selector_events._SelectorDatagramTransport._sendto_ready.__code__.co_names
)

#: Where a report of what a handle raised is seen that belongs to the maker of a connection.
OF_MAKER = "maker" if REPORTED_IN_HANDLES else "the loop's"


def inside(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call in a context of its own."""

    def call() -> Any:
        VARIABLE.set(name)
        return function(*args)

    return contextvars.copy_context().run(call)


class Seen(asyncio.Protocol, asyncio.DatagramProtocol):
    """Notes the context of each callback; raises in one of them."""

    def __init__(self, raises: str = "") -> None:
        self.raises = raises
        self.calls: list[tuple[str, str]] = []
        self.lost = asyncio.get_running_loop().create_future()

    def note(self, name: str) -> None:
        self.calls.append((name, VARIABLE.get()))
        if name == "connection_lost":
            self.lost.set_result(None)
        if name == self.raises:
            raise LookupError(name)

    def of(self, name: str) -> list[str]:
        return [where for called, where in self.calls if called == name]

    def connection_made(self, transport: Any) -> None:
        self.note("connection_made")

    def data_received(self, data: bytes) -> None:
        self.note("data_received")

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.note("datagram_received")

    def error_received(self, exc: Exception) -> None:
        self.note("error_received")

    def eof_received(self) -> None:
        self.note("eof_received")

    def pause_writing(self) -> None:
        self.note("pause_writing")

    def resume_writing(self) -> None:
        self.note("resume_writing")

    def connection_lost(self, exc: Exception | None) -> None:
        self.note("connection_lost")


@pytest.fixture
def handled(loop: asyncio.AbstractEventLoop) -> list[tuple[str, str]]:
    """What the exception handler was told, and where."""
    seen: list[tuple[str, str]] = []
    loop.set_exception_handler(
        lambda _loop, context: seen.append((str(context.get("exception")), VARIABLE.get()))
    )
    return seen


async def in_maker(make: Callable[[], Any]) -> Any:
    """Await what *make* begins, in a task whose context says maker."""
    return await within(inside("maker", asyncio.ensure_future, make()))


async def stream(raises: str = "") -> tuple[Any, Seen, socket.socket]:
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    right.setblocking(False)
    transport, protocol = await in_maker(lambda: loop.create_connection(lambda: Seen(raises), sock=left))
    return transport, protocol, right


async def drain(sock: socket.socket, condition: Callable[[], object]) -> None:
    def more() -> object:
        try:
            while sock.recv(1 << 18):
                pass
        except BlockingIOError:
            pass
        return condition()

    await until(more)


# What is raised in a stream's callbacks: (callback, what brings it about, where the handler sees it).


def send(transport: Any, peer: socket.socket) -> None:
    peer.send(b"data")


def end(transport: Any, peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_WR)


def close(transport: Any, peer: socket.socket) -> None:
    inside("closer", transport.close)


OF_CLOSER = ("maker" if ONE_CONTEXT else "closer") if REPORTED_IN_HANDLES else "the loop's"


@pytest.mark.parametrize(
    ("raises", "cause", "handler_in"),
    [
        ("connection_made", turns, OF_MAKER),
        ("data_received", send, "maker"),
        ("eof_received", end, "maker"),
        ("connection_lost", close, OF_CLOSER),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value else "",
)
def test_the_handler_for_a_streams_callbacks(loop, handled, raises, cause, handler_in):
    async def main() -> None:
        transport, protocol, peer = await stream(raises)
        with peer:
            if cause is not turns:
                cause(transport, peer)
            await until(lambda: handled)
            transport.close()
            await within(protocol.lost)

    loop.run_until_complete(main())
    assert handled == [(raises, handler_in)]


def test_pause_and_resume_run_in_the_writers_context(loop, handled):
    async def main() -> None:
        transport, protocol, peer = await stream()
        with peer:
            inside("writer", transport.write, bytes(4_000_000))
            await drain(peer, lambda: protocol.of("resume_writing"))
            transport.close()
            await within(protocol.lost)
        assert protocol.of("pause_writing") == ["writer"]
        assert protocol.of("resume_writing") == ["maker" if ONE_CONTEXT else "writer"]

    loop.run_until_complete(main())
    assert handled == []


@pytest.mark.parametrize("raises", ["pause_writing", "resume_writing"])
def test_the_handler_for_flow_control(loop, handled, raises):
    async def main() -> None:
        transport, protocol, peer = await stream(raises)
        with peer:
            inside("writer", transport.write, bytes(4_000_000))
            await drain(peer, lambda: protocol.of("resume_writing"))
            transport.close()
            await within(protocol.lost)

    loop.run_until_complete(main())
    resumed_in = "maker" if ONE_CONTEXT else "writer"
    assert handled == [(raises, "writer" if raises == "pause_writing" else resumed_in)]


def test_room_in_the_kernel_belongs_to_the_first_who_found_none(loop, handled):
    async def main() -> None:
        transport, protocol, peer = await stream()
        with peer:
            transport.set_write_buffer_limits(high=8_000_000)
            inside("first", transport.write, bytes(4_000_000))
            await turns(2)
            inside("second", transport.write, b"more")
            inside("second", transport.set_write_buffer_limits, 0)
            inside("second", transport.write, b"more")
            assert protocol.of("pause_writing") == ["second"]
            await drain(peer, lambda: protocol.of("resume_writing"))
            transport.close()
            await within(protocol.lost)
        assert protocol.of("resume_writing") == ["maker" if ONE_CONTEXT else "first"]

    loop.run_until_complete(main())
    assert handled == []


def test_a_write_that_fails_ends_the_connection_in_the_writers_context(loop, handled):
    async def main() -> None:
        transport, protocol, peer = await stream()
        transport.pause_reading()
        peer.close()
        inside("writer", transport.write, b"x")
        await within(protocol.lost)
        assert protocol.of("connection_lost") == ["maker" if ONE_CONTEXT else "writer"]

    loop.run_until_complete(main())
    assert handled == []


def test_closing_with_bytes_left_ends_in_the_writers_context(loop, handled):
    async def main() -> None:
        transport, protocol, peer = await stream()
        with peer:
            inside("writer", transport.write, bytes(4_000_000))
            inside("closer", transport.close)
            await drain(peer, protocol.lost.done)
        assert protocol.of("connection_lost") == ["maker" if ONE_CONTEXT else "writer"]

    loop.run_until_complete(main())
    assert handled == []


def test_tls_resumes_in_the_writers_context(run, tls):
    async def main() -> None:
        async with connected("tls", tls=tls, small_buffers=True) as pair:
            where: list[str] = []
            log = pair.client
            log.resume_writing = lambda: where.append(VARIABLE.get())
            pair.server_transport.pause_reading()
            paused: list[str] = []
            log.pause_writing = lambda: paused.append(VARIABLE.get())
            # sslproto hands the first on, and counts the second.
            for _ in range(2):
                inside("writer", pair.client_transport.write, bytes(3_000_000))
            await turns(3)
            assert paused == ["writer"]
            pair.server_transport.resume_reading()
            await until(lambda: where)
            assert where == ["the loop's" if ONE_CONTEXT else "writer"]
            await pair.server.got(6_000_000)

    run(main())


# Pipes.


async def reading_pipe(raises: str = "") -> tuple[Any, Seen, Any]:
    loop = asyncio.get_running_loop()
    read, write = os.pipe()
    transport, protocol = await in_maker(
        lambda: loop.connect_read_pipe(lambda: Seen(raises), open(read, "rb", 0))  # noqa: SIM115
    )
    return transport, protocol, open(write, "wb", 0)


async def writing_pipe(raises: str = "") -> tuple[Any, Seen, socket.socket]:
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    right.setblocking(False)
    transport, protocol = await in_maker(lambda: loop.connect_write_pipe(lambda: Seen(raises), left))
    return transport, protocol, right


@pytest.mark.parametrize("raises", ["connection_made", "data_received", "eof_received", "connection_lost"])
def test_the_handler_for_a_reading_pipe(loop, handled, raises):
    async def main() -> None:
        _, protocol, peer = await reading_pipe(raises)
        with peer:
            peer.write(b"x")
            await until(lambda: protocol.of("data_received"))
        await within(protocol.lost)
        assert [where for _, where in protocol.calls] == ["maker"] * 4

    loop.run_until_complete(main())
    assert handled == [(raises, OF_MAKER)]


@pytest.mark.parametrize("raises", ["pause_writing", "resume_writing", "connection_lost"])
def test_the_handler_for_a_writing_pipe(loop, handled, raises):
    async def main() -> None:
        transport, protocol, peer = await writing_pipe(raises)
        with peer:
            inside("writer", transport.write, bytes(4_000_000))
            inside("closer", transport.close)
            await drain(peer, protocol.lost.done)
        assert protocol.calls[1:] == [
            ("pause_writing", "writer"),
            ("resume_writing", "writer"),
            ("connection_lost", "writer"),
        ]

    loop.run_until_complete(main())
    is_handle = raises == "connection_lost"
    assert handled == [(raises, "writer" if REPORTED_IN_HANDLES or not is_handle else "the loop's")]


def test_a_reader_that_goes_ends_a_writing_pipe_in_the_makers_context(loop, handled):
    async def main() -> None:
        _, protocol, peer = await writing_pipe()
        peer.close()
        await within(protocol.lost)
        assert protocol.of("connection_lost") == ["maker"]

    loop.run_until_complete(main())
    assert handled == []


# Datagrams.


async def datagrams(unix_path: str, raises: str = "") -> tuple[Any, Seen, socket.socket]:
    """A transport, connected to a socket that receives nothing by itself."""
    loop = asyncio.get_running_loop()
    left, right = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in "ab")
    right.bind(unix_path)
    left.bind(unix_path + "l")
    left.connect(unix_path)
    right.setblocking(False)
    transport, protocol = await in_maker(
        lambda: loop.create_datagram_endpoint(lambda: Seen(raises), sock=left)
    )
    return transport, protocol, right


@pytest.mark.parametrize("raises", ["connection_made", "datagram_received", "connection_lost"])
def test_the_handler_for_a_datagram_transport(loop, handled, unix_path, raises):
    async def main() -> None:
        transport, protocol, peer = await datagrams(unix_path, raises)
        with peer:
            for _ in range(2):
                peer.sendto(b"x", unix_path + "l")
            await until(lambda: len(protocol.of("datagram_received")) == 2)
            inside("closer", transport.close)
            await within(protocol.lost)
        assert protocol.of("datagram_received") == ["maker", "maker"]
        assert protocol.of("connection_lost") == ["closer"]

    loop.run_until_complete(main())
    of_closer = "closer" if REPORTED_IN_HANDLES else "the loop's"
    expected = (raises, of_closer if raises == "connection_lost" else OF_MAKER)
    assert handled == [expected] * (2 if raises == "datagram_received" else 1)


def test_a_receiver_that_closes_and_raises(loop, handled, unix_path):
    """The transport has another context by then; the one that was entered is left."""

    async def main() -> None:
        transport, protocol, peer = await datagrams(unix_path)

        def received(data: bytes, addr: Any) -> None:
            transport.close()
            raise LookupError("mine")

        protocol.datagram_received = received
        with peer:
            peer.sendto(b"x", unix_path + "l")
            await within(protocol.lost)

    loop.run_until_complete(main())
    assert handled == [("mine", OF_MAKER)]


async def fill(transport: Any, protocol: Seen) -> None:
    """Sends until something waits."""
    transport.set_write_buffer_limits(0)
    while not transport.get_write_buffer_size():
        inside("sender", transport.sendto, b"x")
        await turns(1)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="datagram transports pause since 3.11")
@pytest.mark.asyncio_bug(
    "counts each datagram's header, and never takes it off",
    when=HEADERS_STAY,
    run=False,
)
def test_a_failed_last_datagram_resumes(loop, handled, unix_path):
    async def main() -> None:
        transport, protocol, peer = await datagrams(unix_path)
        await fill(transport, protocol)
        peer.close()
        await until(lambda: protocol.of("resume_writing"), 3)
        assert protocol.calls[1:] == [
            ("pause_writing", "sender"),
            ("error_received", "sender"),
            ("resume_writing", "sender"),
        ]
        assert transport.get_write_buffer_size() == 0
        inside("closer", transport.close)
        await within(protocol.lost)

    loop.run_until_complete(main())
    assert handled == []


def test_a_failed_last_datagram_and_a_transport_that_closes(loop, handled, unix_path):
    async def main() -> None:
        transport, protocol, peer = await datagrams(unix_path, "error_received")
        await fill(transport, protocol)
        inside("closer", transport.close)
        peer.close()
        await within(protocol.lost)
        assert protocol.of("error_received") == protocol.of("connection_lost") == ["sender"]

    loop.run_until_complete(main())
    assert handled == [("error_received", "sender" if REPORTED_IN_HANDLES else "the loop's")]


# Handles.


def schedule_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], Any]) -> asyncio.Handle:
    return loop.call_soon(callback)


def schedule_threadsafe(loop: asyncio.AbstractEventLoop, callback: Callable[[], Any]) -> asyncio.Handle:
    return loop.call_soon_threadsafe(callback)


def schedule_later(loop: asyncio.AbstractEventLoop, callback: Callable[[], Any]) -> asyncio.Handle:
    return loop.call_later(0, callback)


schedules = pytest.mark.parametrize("schedule", [schedule_soon, schedule_threadsafe, schedule_later])


@schedules
@pytest.mark.parametrize("cancels", [False, True])
def test_the_handler_for_a_callback_that_may_cancel_itself(loop, handled, schedule, cancels):
    handles: list[asyncio.Handle] = []

    def callback() -> None:
        VARIABLE.set("changed")
        if cancels:
            handles[0].cancel()
        raise LookupError("mine")

    handles.append(inside("scheduler", schedule, loop, callback))
    loop.run_until_complete(asyncio.sleep(0.01))
    assert handled == [("mine", "changed" if REPORTED_IN_HANDLES else "the loop's")]


def test_the_handler_for_a_reader_that_removes_itself(loop, handled):
    left, right = socket.socketpair()
    with left, right:

        def ready() -> None:
            loop.remove_reader(left)
            raise LookupError("mine")

        inside("adder", loop.add_reader, left, ready)
        right.send(b"x")
        loop.run_until_complete(asyncio.wait_for(until_handled(handled), PATIENCE_S))
    assert handled == [("mine", "adder" if REPORTED_IN_HANDLES else "the loop's")]


async def until_handled(handled: list[Any]) -> None:
    await until(lambda: handled)


@pytest.mark.skipif(not REPORTED_IN_HANDLES, reason="Handle.get_context() came with 3.12")
@schedules
@pytest.mark.parametrize("name", ["scheduler", ""])
@pytest.mark.parametrize("given", [False, True])
def test_get_context_after_the_run_and_after_cancel(loop, schedule, name, given):
    context = contextvars.copy_context()
    ran: list[Any] = []

    def plan() -> list[asyncio.Handle]:
        if name:
            VARIABLE.set(name)
        # The second and later ones are copied late on zloop.
        if given:
            return [loop.call_soon(ran.append, None, context=context) for _ in range(4)]
        return [schedule(loop, lambda: ran.append(None)) for _ in range(4)]

    handles = contextvars.copy_context().run(plan)
    before = handles[1].get_context()
    handles[2].cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    handles[3].cancel()
    assert len(ran) == 3
    assert handles[1].get_context() is before
    for handle in handles:
        assert isinstance(handle.get_context(), contextvars.Context)
        assert (handle.get_context() is context) == given
        assert handle.get_context().get(VARIABLE) == (None if given else name or None)


@schedules
@pytest.mark.parametrize("cancels", [False, True])
def test_a_kept_handle_whose_context_leads_back_to_it_is_collected(loop, schedule, cancels):
    class Request:
        handle: Any = None

    request_variable: contextvars.ContextVar[Request] = contextvars.ContextVar("request_variable")

    def plan() -> weakref.ref[Request]:
        request = Request()
        request_variable.set(request)
        request.handle = schedule(loop, int)
        if cancels:
            request.handle.cancel()
        return weakref.ref(request)

    gone = contextvars.Context().run(plan)
    loop.run_until_complete(asyncio.sleep(0.01))
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(not REPORTED_IN_HANDLES, reason="Handle.get_context() came with 3.12")
@pytest.mark.parametrize("given", [False, True])
def test_a_handle_that_is_put_into_its_own_context_is_collected(loop, given):
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")

    class Callback:
        def __call__(self) -> None:
            pass

    def plan() -> weakref.ref[Any]:
        context = contextvars.Context()
        handle = loop.call_soon(Callback(), context=context if given else None)
        ended.append(handle)
        return weakref.ref(handle)

    ended: list[Any] = []
    gone = contextvars.Context().run(plan)
    loop.run_until_complete(turns(2))
    ended[0].get_context().run(variable.set, ended.pop())
    gc.collect()
    assert gone() is None
