"""What the engine is in the middle of using goes away: finalizers, comparisons and callbacks of the program's
that cancel, close or replace it at that very moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import gc
import logging
import os
import socket
import ssl
import sys
import time
import warnings
import weakref
from typing import Any

import harness
import pytest
from harness import Log, connected, turns, until

VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")


class LastWords:
    """Calls back when it goes."""

    def __init__(self, say: Any) -> None:
        self.say = say

    def __del__(self) -> None:
        self.say()


def test_a_value_that_cancels_the_next_handle_when_it_goes(loop: asyncio.AbstractEventLoop) -> None:
    said: list[str] = []
    victims: list[asyncio.Handle] = []

    class Victim:
        def __call__(self) -> None:
            said.append("victim")

    def go() -> None:
        said.append("gone")
        victims.pop().cancel()

    def main() -> None:
        for _ in range(2):
            loop.call_soon(lambda: None)
        # Ends with the context it was set in, which is when the next handle gets its own.
        loop.call_soon(lambda: VARIABLE.set(LastWords(go)) and None)
        victims.append(loop.call_soon(Victim()))
        loop.call_soon(loop.stop)

    loop.call_soon(main)
    loop.run_forever()
    assert said == ["gone"]


@pytest.mark.only_zloop("asyncio's own slots are used by their names")
@pytest.mark.parametrize("count", [0, 3, 4])
@pytest.mark.parametrize(
    "slot", sorted({*asyncio.Handle.__slots__, *asyncio.TimerHandle.__slots__} - {"__weakref__"})
)
def test_a_slot_of_the_base_that_is_written_to(
    loop: asyncio.AbstractEventLoop, slot: str, count: int
) -> None:
    """Around the names, which the engine has for itself, by the descriptors of asyncio's classes."""
    descriptor = vars(asyncio.Handle).get(slot) or vars(asyncio.TimerHandle)[slot]
    ran: list[int] = []
    loop.set_exception_handler(lambda loop, context: None)
    handles: list[asyncio.Handle] = []
    for _ in range(2):
        handles.append(loop.call_soon(max, *range(count)))
        handles.append(loop.call_soon_threadsafe(max, *range(count)))
        handles.append(loop.call_later(0, max, *range(count)))
    for handle in handles:
        if isinstance(handle, descriptor.__objclass__):
            descriptor.__set__(handle, object())
        # What is not a text, a callback or a traceback is not shown as one.
        with contextlib.suppress(TypeError):
            repr(handle)
    for handle in handles[:3]:
        handle.cancel()
    for _ in range(20):
        loop.call_soon(loop.stop)
        with contextlib.suppress(TypeError):
            loop.run_forever()
    loop.call_soon(ran.append, 1)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == [1]


@pytest.mark.only_zloop("asyncio's handles share no context")
def test_a_value_that_asks_for_the_context_it_goes_with(loop: asyncio.AbstractEventLoop) -> None:
    if not hasattr(asyncio.Handle, "get_context"):
        pytest.skip("Handle.get_context() came with 3.12")
    answers: list[Any] = []
    handles: list[Any] = []

    def inside() -> None:
        VARIABLE.set(LastWords(lambda: answers.append(handles[1].get_context())))
        handles.extend(loop.call_soon(lambda: None) for _ in range(3))

    contextvars.copy_context().run(inside)
    # The latest context that handles share is another one now.
    contextvars.Context().run(lambda: [loop.call_soon(lambda: None) for _ in range(3)])
    # A closed loop takes the contexts of what was queued, one after another.
    loop.close()
    assert answers == [None]


@pytest.mark.only_zloop("an object of the engine's own")
def test_a_comparison_that_ends_the_operation(run: Any) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        left, right = socket.socketpair()
        with left, right:
            left.setblocking(False)
            waiter = loop._try_recv(left, 10)

            class Callback:
                __hash__ = None  # type: ignore[assignment]

                def __call__(self, _waiter: Any) -> None:
                    pass

                def __eq__(self, other: object) -> Any:
                    waiter.cancel()
                    loop._ready.clear()
                    return True

            waiter.add_done_callback(Callback())
            assert waiter.remove_done_callback(object()) == 0
            assert waiter.cancelled()
            await turns(2)

    run(main())


def test_a_write_that_is_only_counted_keeps_nothing(run: Any) -> None:
    class Refuses(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise ZeroDivisionError

    async def main() -> int:
        async with connected("unix") as pair:
            pair.client_transport.abort()
            data = b"".join([b"only", b"once"])
            before = sys.getrefcount(data)
            for _ in range(20):
                try:
                    pair.client_transport.write(data)
                except ZeroDivisionError:
                    pass
            return sys.getrefcount(data) - before

    refuses = Refuses()
    logging.getLogger("asyncio").addHandler(refuses)
    try:
        assert run(main()) == 0
    finally:
        logging.getLogger("asyncio").removeHandler(refuses)


def test_a_listener_whose_number_is_anothers_accepts_nothing(run: Any) -> None:
    accepted: list[Any] = []

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            accepted.append(transport.get_extra_info("sockname"))
            transport.abort()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with harness.listener() as ours, harness.listener() as stranger:
            number = ours.fileno()
            server = await loop.create_server(Server, sock=ours)
            with socket.create_connection(stranger.getsockname()), socket.socket() as client:

                def replace() -> None:
                    ours.close()
                    os.dup2(stranger.fileno(), number)

                def knock() -> None:
                    client.connect(ours.getsockname())
                    # The next turn polls, and finds the connection, before it replaces the socket.
                    time.sleep(0.001)
                    loop.call_soon(replace)

                loop.call_soon(knock)
                await turns(8)
                os.close(number)
                await turns(8)
            # asyncio asks the closed socket for its number.
            with contextlib.suppress(ValueError):
                server.close()

    reports: list[Any] = []
    run(main(), reports=reports)
    assert accepted == []


# TLS.


def _counts(bio: ssl.MemoryBIO) -> list[int]:
    """The numbers in OpenSSL's object behind a MemoryBIO, its count of references among them."""
    address = ctypes.c_void_p.from_address(id(bio) + object.__basicsize__).value
    assert address is not None
    return list((ctypes.c_int * 32).from_address(address))


@pytest.fixture
def native(loop_factory: harness.LoopFactory) -> None:
    loop: Any = loop_factory()
    name = loop.tls_engine
    loop.close()
    if name != "native":
        pytest.skip("the direct engine cannot run here")


@pytest.mark.only_zloop("asyncio makes a pair of BIOs for each connection")
@pytest.mark.usefixtures("native")
def test_connections_leave_no_reference_in_openssl(loop: Any, tls: harness.Tls) -> None:
    """OpenSSL's counts have 32 bits: one left behind by each connection would overflow them some day."""
    from zloop import _engine

    def connect() -> None:
        loop._make_tls_transport(
            asyncio.Protocol(), tls.client, None, False, "localhost", True, False, 1.0, 1.0
        ).abort()

    connect()
    bios = [found for found in gc.get_referents(_engine) if isinstance(found, ssl.MemoryBIO)]
    assert bios
    before = [_counts(bio) for bio in bios]
    for _ in range(50):
        connect()
    assert [_counts(bio) for bio in bios] == before


@pytest.mark.only_zloop("the attribute is asyncio's to use, too")
@pytest.mark.usefixtures("native")
def test_an_ssl_object_that_is_taken_apart(run: Any, tls: harness.Tls) -> None:
    async def main() -> None:
        async with connected("tls", tls=tls) as pair:
            pair.client_transport.get_extra_info("ssl_object")._sslobj = None
            pair.client_transport.write(b"still there")
            assert await pair.server.got(11) == b"still there"
            pair.server_transport.write(b"so am I")
            assert await pair.client.got(7) == b"so am I"

    run(main())


@pytest.mark.usefixtures("native")
@pytest.mark.only_zloop("asyncio has no transport below that a program could reach by name")
def test_resume_writing_takes_the_transport_away(run: Any, tls: harness.Tls) -> None:
    gone: list[None] = []

    class Writer(Log):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport = self.transport._transport
            del self.made
            self.transport.set_protocol(asyncio.Protocol())
            # Takes the place of what is freed too early.
            self.kept = [b"\xff" * size for size in range(256, 2048, 8) for _ in range(8)]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = harness.tcp_sockets(small_buffers=True)
        writer, reader = Writer(), Log()
        accepting = asyncio.ensure_future(
            loop.connect_accepted_socket(lambda: reader, sock=right, ssl=tls.server)
        )
        await loop.create_connection(lambda: writer, sock=left, ssl=tls.client, server_hostname="localhost")
        await accepting
        weakref.finalize(writer.transport, gone.append, None)
        reader.transport.pause_reading()
        writer.transport.set_write_buffer_limits(1000)
        writer.transport.write(bytes(2_000_000))
        assert writer.paused
        reader.transport.resume_reading()
        await writer.when(lambda: not writer.paused)
        writer.transport.abort()
        await until(reader.lost.done)
        assert gone

    with warnings.catch_warnings():
        # Nobody closes the SSLTransport.
        warnings.simplefilter("ignore", ResourceWarning)
        run(main(), reports=[])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__() came with 3.12")
@pytest.mark.parametrize("method", ["sock_sendall", "sock_recv_into"])
def test_a_buffer_that_closes_the_socket(run: Any, method: str) -> None:
    """The number is a stranger's by the time the buffer is there."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        stranger, friend = socket.socketpair()
        left.setblocking(False)
        number = left.fileno()
        opened: list[int] = []

        class Closes:
            def __buffer__(self, flags: int) -> memoryview:
                if not opened:
                    left.close()
                    opened.append(os.dup2(stranger.fileno(), number))
                return memoryview(bytearray(b"secret"))

        friend.setblocking(False)
        friend.send(b"theirs")
        with right, stranger, friend:
            try:
                with pytest.raises(OSError):
                    await getattr(loop, method)(left, Closes())
                stranger.setblocking(False)
                assert stranger.recv(10) == b"theirs"
                with pytest.raises(BlockingIOError):
                    friend.recv(10)
            finally:
                os.close(opened[0])

    run(main())
