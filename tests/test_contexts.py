"""Which ContextVars a protocol's methods see of each other, on each version of Python.

Each method notes what it finds in a variable and adds its own letter: (f)actory, (m)ade, (d)ata, (e)of,
(l)ost. Up to 3.14 asyncio's transports have a context for each of connection_made, reading and
connection_lost; since 3.15 a stream has one for life, taken when its maker was called.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import resource
import socket
import sys
from typing import Any

import harness
import pytest

ONE_CONTEXT = sys.version_info >= (3, 15)

trail: contextvars.ContextVar[str] = contextvars.ContextVar("trail", default="")


class Trail:
    """What each call found, as `name=found`, and a way to wait for the next call."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.transport: Any = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()

    def note(self, what: str) -> None:
        self.found.append(f"{what}={trail.get()}")
        trail.set(trail.get() + what[0])
        self._changed.set()

    async def until(self, count: int) -> None:
        while len(self.found) < count:
            self._changed.clear()
            await harness.within(self._changed.wait())

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.note("made")

    def eof_received(self) -> None:
        self.note("eof")

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        self.note("resume")

    def connection_lost(self, _exc: BaseException | None) -> None:
        self.note("lost")
        self.lost.set_result(None)


class Stream(Trail, asyncio.Protocol):
    def data_received(self, _data: bytes) -> None:
        self.note("data")


class Buffered(Trail, asyncio.BufferedProtocol):
    def get_buffer(self, _sizehint: int) -> bytearray:
        return bytearray(100)

    def buffer_updated(self, _nbytes: int) -> None:
        self.note("data")


class Datagrams(Trail, asyncio.DatagramProtocol):
    def datagram_received(self, _data: bytes, _addr: Any) -> None:
        self.note("data")


@contextlib.asynccontextmanager
async def client(kind, protocol, tls):
    """One end's protocol, made by a task whose trail is "T", and the other end."""

    def factory():
        made = protocol()
        made.note("factory")
        return made

    trail.set("T")
    async with harness.connected(kind, factory, harness.Log, tls=tls) as pair:
        trail.set("U")
        yield pair.client, pair.server_transport


@pytest.mark.parametrize("protocol", [Stream, Buffered])
@pytest.mark.parametrize("by", ["close", "abort", "peer"])
def test_what_a_client_connection_sees(run, kind, tls, protocol, by):
    async def main():
        async with client(kind, protocol, tls) as (ours, peer):
            for count in (3, 4):
                peer.write(b"x")
                await ours.until(count)
            trail.set("E")
            if by == "abort":
                ours.transport.abort()
            elif by == "close":
                ours.transport.close()
            else:
                peer.abort()
            await harness.within(ours.lost)
            return [line for line in ours.found if not line.startswith("eof=")]

    # Whether the end of the data is told before the end of the connection is the peer's business.
    if ONE_CONTEXT:
        expected = "factory=T made=T data=Tm data=Tmd lost=Tmdd"
    elif kind == "tls":
        # connection_made is called by the handshake's last read.
        expected = f"factory=T made=Tf data=Tfm data=Tfmd lost={'E' if by == 'abort' else 'Tfmdd'}"
    else:
        expected = f"factory=T made=Tf data=Tf data=Tfd lost={'Tfdd' if by == 'peer' else 'E'}"
    assert " ".join(run(main())).removesuffix("e") == expected


def test_reading_that_is_resumed(run):
    async def main():
        async with client("tcp", Stream, None) as (ours, peer):
            peer.write(b"x")
            await ours.until(3)
            ours.transport.pause_reading()
            trail.set("R")
            ours.transport.resume_reading()
            peer.write(b"x")
            await ours.until(4)
            return ours.found

    assert run(main())[2:4] == (["data=Tm", "data=Tmd"] if ONE_CONTEXT else ["data=Tf", "data=R"])


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_resume_writing_sees_the_context_of_the_write_that_had_to_wait(run, kind, tls):
    """Up to 3.14, that is; since then the connection's, which has one."""

    async def main():
        trail.set("T")
        async with harness.connected(kind, Stream, harness.Log, tls=tls, small_buffers=True) as pair:
            pair.server_transport.write(b"x")
            await pair.client.until(2)
            trail.set("W")
            pair.client.transport.write(bytes(4 << 20))
            await pair.client.until(3)
            return pair.client.found[2]

    assert run(main()) == ("resume=Tmd" if ONE_CONTEXT else "resume=W")


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
def test_what_an_accepted_connection_sees(run, tls, engine, secure):
    """Each connection for itself: what its protocol factory sets does not reach the next one."""

    async def main():
        loop = asyncio.get_running_loop()
        protocols: asyncio.Queue[Stream] = asyncio.Queue()

        def factory():
            made = Stream()
            made.note("factory")
            protocols.put_nowait(made)
            return made

        trail.set("S")
        server = await loop.create_server(
            factory, "127.0.0.1", 0, ssl=tls.server if secure else None, start_serving=False
        )
        trail.set("Z")
        await server.start_serving()
        trail.set("Y")
        found = []
        options = {"ssl": tls.client, "server_hostname": "localhost"} if secure else {}
        async with server:
            for _ in range(2):
                transport, _ = await loop.create_connection(
                    asyncio.Protocol, *server.sockets[0].getsockname(), **options
                )
                transport.write(b"x")
                accepted = await harness.within(protocols.get())
                await accepted.until(3)
                transport.abort()
                await harness.within(accepted.lost)
                found.append(" ".join(accepted.found[:3]))
        return found

    # Of the server's context: when it was made, or when it began to serve.
    start = "S" if ONE_CONTEXT else "Z"
    sees_made = ONE_CONTEXT or secure
    expected = f"factory={start} made={start}f data={start}f{'m' if sees_made else ''}"
    assert run(main()) == [expected, expected]


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
def test_a_server_that_paused_accepting_serves_in_the_same_context(run, tls, engine, monkeypatch, secure):
    """Out of descriptors it stops for a while and begins again."""

    async def main():
        loop = asyncio.get_running_loop()
        seen = loop.create_future()

        class Noting(asyncio.Protocol):
            def connection_made(self, transport):
                seen.set_result(trail.get())
                transport.abort()

        trail.set("S")
        server = await loop.create_server(Noting, "127.0.0.1", 0, ssl=tls.server if secure else None)
        trail.set("Y")
        peer = socket.socket()
        peer.setblocking(False)
        reported = loop.create_future()
        loop.set_exception_handler(lambda _loop, context: reported.set_result(context["message"]))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(harness.open_fds()) + 1, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(peer.fileno()))
            await loop.sock_connect(peer, server.sockets[0].getsockname())
            message = await harness.within(reported)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in taken:
                os.close(fd)
        async with server:
            if secure:
                made = await loop.create_connection(
                    asyncio.Protocol, sock=peer, ssl=tls.client, server_hostname="localhost"
                )
                found = await harness.within(seen)
                made[0].abort()
            else:
                found = await harness.within(seen)
                peer.close()
        return message, found

    monkeypatch.setattr(asyncio.constants, "ACCEPT_RETRY_DELAY", 0.01)
    assert run(main()) == ("socket.accept() out of system resource", "S")


def test_a_context_given_to_the_private_reader(run):
    """asyncio's own transports ask for it, over sockets with methods of their own too."""

    class Counting(socket.socket):
        received = 0

        def recv(self, *args):
            self.received += 1
            return super().recv(*args)

    async def main():
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        ours = Counting(fileno=left.detach())
        ours.setblocking(False)
        trail.set("T")
        transport, protocol = await loop.create_connection(Stream, sock=ours)
        with right:
            for count in (2, 3):
                right.send(b"x")
                await protocol.until(count)
        assert ours.received >= 2
        transport.abort()
        await harness.within(protocol.lost)
        return protocol.found[:3]

    assert run(main()) == ["made=T", *(["data=Tm", "data=Tmd"] if ONE_CONTEXT else ["data=T", "data=Td"])]


@pytest.mark.asyncio_bug("cannot pause reading of datagrams", when=sys.version_info < (3, 11))
def test_datagrams(run):
    """No version's datagram transports have one context for life."""

    async def main():
        trail.set("T")
        transport, ours = await asyncio.get_running_loop().create_datagram_endpoint(
            Datagrams, local_addr=("127.0.0.1", 0)
        )
        trail.set("U")
        for count in (2, 3):
            transport.sendto(b"x", transport.get_extra_info("sockname"))
            await ours.until(count)
        transport.pause_reading()
        trail.set("R")
        transport.resume_reading()
        transport.sendto(b"x", transport.get_extra_info("sockname"))
        await ours.until(4)
        trail.set("E")
        transport.close()
        await harness.within(ours.lost)
        return " ".join(ours.found)

    assert run(main()) == "made=T data=T data=Td data=R lost=E"


@pytest.mark.parametrize("by", ["close", "peer"])
def test_pipes(run, by):
    """Nor have pipes."""

    async def main():
        trail.set("T")
        reading, writing = os.pipe()
        transport, ours = await asyncio.get_running_loop().connect_read_pipe(
            Stream, os.fdopen(reading, "rb", 0)
        )
        with os.fdopen(writing, "wb", 0) as peer:
            trail.set("U")
            for count in (2, 3):
                peer.write(b"x")
                await ours.until(count)
            transport.pause_reading()
            trail.set("R")
            transport.resume_reading()
            peer.write(b"x")
            await ours.until(4)
            trail.set("E")
            if by == "close":
                transport.close()
        await harness.within(ours.lost)
        return " ".join(ours.found)

    end = "lost=E" if by == "close" else "eof=Rd lost=Rd"
    assert run(main()) == f"made=T data=T data=Td data=R {end}"
