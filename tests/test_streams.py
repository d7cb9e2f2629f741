"""StreamReader and StreamWriter: every read method, limits, flow control, end of file."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from harness import Log, Report, Tls, pattern, reset, tcp_sockets, turns, until, within

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def streams(
    kind: str = "tcp", tls: Tls | None = None, limit: int = 65536
) -> AsyncIterator[tuple[Ends, Ends]]:
    """Both ends of a connection as streams."""
    accepted: asyncio.Future[Ends] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result((reader, writer))
        await over.wait()

    server_tls: dict[str, Any] = {"ssl": tls.server} if kind == "tls" and tls else {}
    client_tls: dict[str, Any] = (
        {"ssl": tls.client, "server_hostname": "localhost"} if kind == "tls" and tls else {}
    )
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=limit, **server_tls)
    client = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=limit, **client_tls)
    other = await within(accepted)
    try:
        yield client, other
    finally:
        over.set()
        for _, writer in (client, other):
            writer.transport.abort()
            with contextlib.suppress(Exception):
                await within(writer.wait_closed())
        server.close()
        await within(server.wait_closed())


@pytest.fixture(params=["tcp", "tls"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_read_method(run, kind, tls):
    async def main() -> None:
        async with streams(kind, tls) as ((reader, _), (_, writer)):
            writer.write(b"line one\nline two\nuntil|exactly12345rest")
            assert await within(reader.readline()) == b"line one\n"
            assert await within(reader.readline()) == b"line two\n"
            assert await within(reader.readuntil(b"|")) == b"until|"
            assert await within(reader.readexactly(7)) == b"exactly"
            assert await within(reader.readexactly(0)) == b""
            assert await within(reader.read(0)) == b""
            assert await within(reader.readexactly(5)) == b"12345"
            assert await within(reader.read(2)) == b"re"
            assert await within(reader.read(100)) == b"st"
            writer.close()
            assert await within(reader.read(-1)) == b""
            assert reader.at_eof()

    run(main())


def test_read_to_the_end(run, kind, tls):
    async def main() -> None:
        data = pattern(3_000_000)
        async with streams(kind, tls) as ((reader, _), (_, writer)):
            writer.write(data)
            writer.close()
            assert await within(reader.read()) == data
            assert reader.at_eof()
            assert await within(reader.readline()) == b""

    run(main())


def test_iteration_gives_lines(run, kind, tls):
    async def main() -> None:
        async with streams(kind, tls) as ((reader, _), (_, writer)):
            writer.writelines([b"one\n", b"two\nthr", b"ee\nlast"])
            writer.close()
            assert [line async for line in reader] == [b"one\n", b"two\n", b"three\n", b"last"]

    run(main())


def test_what_is_missing_at_the_end(run, kind, tls):
    async def main() -> None:
        async with streams(kind, tls) as ((reader, _), (_, writer)):
            writer.write(b"abc")
            writer.close()
            with pytest.raises(asyncio.IncompleteReadError) as caught:
                await within(reader.readexactly(4))
            assert (caught.value.partial, caught.value.expected) == (b"abc", 4)
            with pytest.raises(asyncio.IncompleteReadError):
                await within(reader.readuntil(b"\n"))

    run(main())


def test_a_line_over_the_limit(run, kind, tls):
    async def main() -> None:
        async with streams(kind, tls, limit=1024) as ((reader, _), (_, writer)):
            writer.write(b"x" * 5000 + b"\nnext\n")
            with pytest.raises(ValueError):
                await within(reader.readline())
            await until(lambda: True)
            with pytest.raises(asyncio.LimitOverrunError):
                writer.write(b"y" * 5000)
                await within(reader.readuntil(b"|"))

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="several separators came with 3.13")
def test_several_separators(run):
    async def main() -> None:
        async with streams() as ((reader, _), (_, writer)):
            writer.write(b"a;b|")
            assert await within(reader.readuntil((b";", b"|"))) == b"a;"
            assert await within(reader.readuntil((b";", b"|"))) == b"b|"

    run(main())


def test_a_reader_that_does_not_read_stops_the_sender(run, kind, tls):
    async def main() -> None:
        async with streams(kind, tls, limit=1024) as ((reader, _), (_, writer)):
            data = pattern(16_000_000)

            async def send() -> None:
                for start in range(0, len(data), 64 * 1024):
                    writer.write(data[start : start + 64 * 1024])
                    await writer.drain()

            sender = asyncio.ensure_future(send())
            await asyncio.sleep(0.05)
            assert not sender.done()
            assert await within(reader.readexactly(len(data))) == data
            await within(sender)

    run(main())


def test_drain_returns_at_once_when_nothing_is_queued(run, kind, tls):
    async def main() -> None:
        async with streams(kind, tls) as ((reader, _), (_, writer)):
            writer.write(b"x")
            await within(writer.drain())
            await within(writer.drain())
            assert await within(reader.readexactly(1)) == b"x"

    run(main())


def test_several_tasks_may_drain(run):
    async def main() -> None:
        async with streams(limit=1024) as ((reader, _), (_, writer)):
            writer.write(bytes(20_000_000))
            drains = [asyncio.ensure_future(writer.drain()) for _ in range(5)]
            await turns(5)
            assert not any(drain.done() for drain in drains)
            await within(reader.readexactly(20_000_000))
            await within(asyncio.gather(*drains))

    run(main())


def test_drain_raises_when_the_peer_is_gone(run):
    async def main() -> None:
        left, right = tcp_sockets()
        _, writer = await asyncio.open_connection(sock=left)
        writer.write(bytes(20_000_000))
        drain = asyncio.ensure_future(writer.drain())
        await turns(3)
        reset(right)
        with pytest.raises(ConnectionError):
            await within(drain)
        with pytest.raises(ConnectionError):
            writer.write(b"x")
            await within(writer.drain())
        writer.close()
        with contextlib.suppress(ConnectionError):
            await within(writer.wait_closed())

    run(main())


def test_a_reset_reaches_the_reader(run):
    async def main() -> None:
        left, right = tcp_sockets()
        reader, writer = await asyncio.open_connection(sock=left)
        waiting = asyncio.ensure_future(reader.read(100))
        await turns(2)
        reset(right)
        with pytest.raises(ConnectionResetError):
            await within(waiting)
        with pytest.raises(ConnectionResetError):
            await within(reader.read(100))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await within(writer.wait_closed())

    run(main())


def test_half_close(run):
    async def main() -> None:
        async with streams() as ((reader, writer), (other_reader, other_writer)):
            assert writer.can_write_eof()
            writer.write(b"question")
            writer.write_eof()
            assert await within(other_reader.read()) == b"question"
            other_writer.write(b"answer")
            other_writer.close()
            assert await within(reader.read()) == b"answer"

    run(main())


def test_two_readers_at_once_are_refused(run):
    async def main() -> None:
        async with streams() as ((reader, _), (_, writer)):
            first = asyncio.ensure_future(reader.read(10))
            await turns(2)
            with pytest.raises(RuntimeError, match="already waiting"):
                await reader.read(10)
            writer.write(b"x")
            assert await within(first) == b"x"

    run(main())


def test_a_cancelled_read_loses_nothing(run, kind, tls):
    async def main() -> None:
        async with streams(kind, tls) as ((reader, _), (_, writer)):
            for number in range(50):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(reader.readexactly(5), 0 if number % 2 else 0.0005)
                writer.write(b"%05d" % number)
                assert await within(reader.readexactly(5)) == b"%05d" % number

    run(main())


def test_extra_info_and_transport(run):
    async def main() -> None:
        async with streams() as ((_, writer), (_, other)):
            assert writer.get_extra_info("peername") == other.get_extra_info("sockname")
            assert isinstance(writer.transport, asyncio.Transport)
            assert not writer.is_closing()
            writer.close()
            assert writer.is_closing()
            await within(writer.wait_closed())

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="StreamWriter.start_tls came with 3.11")
def test_start_tls_on_a_writer(run, tls):
    async def main() -> None:
        async with streams() as ((reader, writer), (other_reader, other)):

            async def upgrade_server() -> None:
                assert await within(other_reader.readline()) == b"STARTTLS\n"
                other.write(b"GO\n")
                await other.start_tls(tls.server)
                other.write((await within(other_reader.readline())).upper())

            serving = asyncio.ensure_future(upgrade_server())
            writer.write(b"STARTTLS\n")
            assert await within(reader.readline()) == b"GO\n"
            await within(writer.start_tls(tls.client, server_hostname="localhost"))
            assert writer.get_extra_info("ssl_object") is not None
            writer.write(b"secret\n")
            assert await within(reader.readline()) == b"SECRET\n"
            await within(serving)

    run(main())


def test_a_handler_that_raises_is_reported(run):
    reports: list[Report] = []

    async def main() -> None:
        async def broken(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            raise LookupError("handler")

        server = await asyncio.start_server(broken, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        if sys.version_info >= (3, 12):  # older ones leave the connection to the garbage collector
            assert await within(reader.read()) == b""
        writer.close()
        await within(writer.wait_closed())
        server.close()
        await within(server.wait_closed())
        await until(lambda: reports, 2) if sys.version_info >= (3, 12) else None

    run(main(), reports=reports)
    assert [str(report["exception"]) for report in reports] == ["handler"]


def test_a_synchronous_client_callback(run):
    async def main() -> None:
        connected: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda _, writer: connected.set_result(writer), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        other = await within(connected)
        other.write(b"hello")
        other.close()
        assert await within(reader.read()) == b"hello"
        await within(other.wait_closed())
        writer.close()
        await within(writer.wait_closed())
        server.close()
        await within(server.wait_closed())

    run(main())


class ShoutingReader(asyncio.StreamReader):
    """A subclass must get every byte through its own feed_data."""

    def feed_data(self, data: Any) -> None:
        super().feed_data(bytes(data).upper())


class CountingProtocol(asyncio.StreamReaderProtocol):
    chunks = 0

    def data_received(self, data: bytes) -> None:
        self.chunks += 1
        super().data_received(data)


@pytest.mark.parametrize("what", ["reader", "protocol", "patched"])
def test_subclasses_and_patched_instances_are_honoured(run, what):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        reader = (ShoutingReader if what == "reader" else asyncio.StreamReader)(loop=loop)
        if what == "patched":
            original = reader.feed_data
            reader.feed_data = lambda data: original(bytes(data).upper())  # type: ignore[method-assign]
        protocol = (CountingProtocol if what == "protocol" else asyncio.StreamReaderProtocol)(
            reader, loop=loop
        )
        transport, _ = await loop.create_connection(lambda: protocol, sock=left)
        right.send(b"quiet\n")
        line = await within(reader.readline())
        assert line == (b"quiet\n" if what == "protocol" else b"QUIET\n")
        if what == "protocol":
            assert protocol.chunks == 1  # type: ignore[attr-defined]
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        writer.close()
        await within(writer.wait_closed())
        right.close()

    run(main())


def test_data_fed_by_hand_and_by_the_transport_keep_their_order(run):
    async def main() -> None:
        left, right = tcp_sockets()
        reader, writer = await asyncio.open_connection(sock=left)
        reader.feed_data(b"by hand ")
        right.send(b"by wire\n")
        assert await within(reader.readline()) == b"by hand by wire\n"
        writer.close()
        await within(writer.wait_closed())
        right.close()

    run(main())


def test_an_exception_set_by_hand_is_raised(run):
    async def main() -> None:
        left, right = tcp_sockets()
        reader, writer = await asyncio.open_connection(sock=left)
        waiting = asyncio.ensure_future(reader.read(1))
        await turns(2)
        reader.set_exception(LookupError("by hand"))
        with pytest.raises(LookupError):
            await within(waiting)
        writer.close()
        with contextlib.suppress(LookupError):
            await within(writer.wait_closed())
        right.close()

    run(main())


def test_a_stream_pair_over_socketpair(run):
    async def main() -> None:
        left, right = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=left)
        other_reader, other_writer = await asyncio.open_unix_connection(sock=right)
        for number in range(200):
            writer.write(b"%d\n" % number)
            assert await within(other_reader.readline()) == b"%d\n" % number
            other_writer.write(b"%d\n" % -number)
            assert await within(reader.readline()) == b"%d\n" % -number
        for each in (writer, other_writer):
            each.close()
            await within(each.wait_closed())

    run(main())


def test_a_cancelled_connect_leaves_nothing(run, tls):
    async def main() -> None:
        silent: list[Log] = []

        def factory() -> Log:
            silent.append(Log())
            return silent[-1]

        loop = asyncio.get_running_loop()
        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        for timeout in (0, 0.0005, 0.01):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(
                    asyncio.open_connection(*address, ssl=tls.client, server_hostname="localhost"), timeout
                )
        server.close()
        for log in silent:
            assert await within(log.lost) is None
        await within(server.wait_closed())

    run(main())
