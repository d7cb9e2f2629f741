"""R17-R24: reading, end of file, resets, and fairness between connections."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import Any

import pytest
from harness import BufferedLog, Echo, Log, Report, connected, pattern, reset, tcp_sockets, turns, within

TAKES_EMPTY_FOR_EOF = pytest.mark.asyncio_bug("takes it for the end of the data", kinds=("tls",), run=False)


def test_r17_no_further_chunk_after_data_received_raised(run, kind, tls):
    """zuvloop changelog."""
    reports: list[Report] = []

    class Broken(Log):
        chunks = 0

        def data_received(self, data: bytes) -> None:
            self.chunks += 1
            raise LookupError("mine")

    async def main() -> None:
        async with connected(kind, server=Broken, tls=tls) as pair:
            for _ in range(10):
                pair.client_transport.write(bytes(50_000))
                await turns(1)
            assert isinstance(await within(pair.server.lost), LookupError)
            assert pair.server.chunks == 1
            assert pair.server.events == ["made", "lost"]

    run(main(), reports=reports)
    assert len(reports) == 1


def test_r18_one_broken_callback_leaves_the_rest_of_the_poll(run):
    """talyn BUG-18; the connections' own version is in test_errors.py, this one is for bare readers."""
    reports: list[Report] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pairs = [socket.socketpair() for _ in range(20)]
        seen: list[int] = []

        def readable(number: int) -> None:
            pairs[number][0].recv(1)
            seen.append(number)
            if number % 2:
                raise LookupError(number)

        for number, (left, right) in enumerate(pairs):
            loop.add_reader(left, readable, number)
            right.send(b"x")
        await turns(5)
        assert sorted(seen) == list(range(20))
        for left, right in pairs:
            loop.remove_reader(left)
            left.close()
            right.close()

    run(main(), reports=reports)
    assert len(reports) == 10


def test_r19_pausing_holds_in_every_state(run, kind, tls):
    """cpython #89322; virtool #262; aiohttp #1211."""

    class Pausing(Log):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    async def main() -> None:
        async with connected(kind, server=Pausing, tls=tls) as pair:
            data = pattern(400_000)
            pair.client_transport.write(data)
            while len(pair.server.received) < len(data):
                have = len(pair.server.received)
                await pair.server.when(lambda have=have: len(pair.server.received) > have)
                have = len(pair.server.received)
                await turns(3)
                assert len(pair.server.received) == have
                pair.server_transport.resume_reading()
            pair.server_transport.close()
            pair.server_transport.pause_reading()
            await within(pair.server.lost)

    if kind == "tls" and sys.version_info < (3, 11):
        pytest.skip("rewritten in 3.11")
    run(main())


@pytest.mark.parametrize("what", ["eof", pytest.param("empty", marks=TAKES_EMPTY_FOR_EOF), "read only"])
def test_r20_buffered_protocols_in_trouble(run, kind, tls, what):
    """uvloop #177; aiofastnet 0.8.0."""
    reports: list[Report] = []

    class Trouble(BufferedLog):
        def get_buffer(self, sizehint: int) -> Any:
            if what == "empty":
                return bytearray()
            return b"x" * 100 if what == "read only" else super().get_buffer(sizehint)

    async def main() -> None:
        async with connected(kind, server=Trouble, tls=tls) as pair:
            if what == "eof":
                pair.client_transport.close()
                await within(pair.server.eof)
                assert await within(pair.server.lost) is None
            else:
                pair.client_transport.write(b"x")
                assert isinstance(await within(pair.server.lost), Exception)

    if kind == "tls" and sys.version_info < (3, 11):
        pytest.skip("rewritten in 3.11")
    run(main(), reports=reports)
    assert len(reports) == (0 if what == "eof" else 1)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_r21_what_eof_received_returns(run, kind):
    """aiofastnet 0.13.0; uvloop #385."""

    async def main() -> None:
        data = pattern(2_000_000)
        for keep in (True, False):
            async with connected(kind, small_buffers=True) as pair:
                pair.client.keep_open_after_eof = True
                pair.server.keep_open_after_eof = keep
                pair.server_transport.write(data)
                pair.client_transport.write_eof()
                await within(pair.server.eof)
                await turns(2)
                assert pair.server_transport.is_closing() is not keep
                if keep:
                    pair.server_transport.write(b"more")
                expected = data + (b"more" if keep else b"")
                assert await pair.client.got(len(expected)) == expected
                if keep:
                    pair.server_transport.close()
                assert await within(pair.server.lost) is None

    run(main())


def test_r22_exceptions_of_the_end(run):
    """zuvloop changelog: never ECANCELED."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for action in ("abort", "reset", "reset while writing"):
            left, right = tcp_sockets()
            transport, log = await loop.create_connection(Log, sock=left)
            if action == "abort":
                transport.abort()
                assert await within(log.lost) is None
                right.close()
                continue
            if action == "reset while writing":
                transport.write(bytes(10_000_000))
            reset(right)
            assert type(await within(log.lost)) in (ConnectionResetError, BrokenPipeError)

    run(main())


def test_r23_reads_cancelled_by_a_timeout_of_zero(run):
    """rsloop #106."""

    async def main() -> None:
        left, right = tcp_sockets()
        reader, writer = await asyncio.open_connection(sock=left)
        for number in range(200):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(reader.readexactly(4), 0)
            waiting = asyncio.ensure_future(reader.read(4))
            await turns(1)
            if number % 2:
                waiting.cancel()
            right.send(b"%04d" % number)
            if number % 2:
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                assert await within(reader.readexactly(4)) == b"%04d" % number
            else:
                assert await within(waiting) == b"%04d" % number
        writer.close()
        await within(writer.wait_closed())
        right.close()

    run(main())


def test_r24_one_sender_at_line_rate_does_not_starve_the_others(run):
    """aiofastnet #62, aiofastnet 1.0.3."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        sunk: list[Log] = []

        def swallow() -> Log:
            sunk.append(Log())
            return sunk[-1]

        sink = await loop.create_server(swallow, "127.0.0.1", 0)
        over = False

        async def flood() -> None:
            _, writer = await asyncio.open_connection(*sink.sockets[0].getsockname())
            while not over:
                writer.write(bytes(262_144))
                await writer.drain()
            writer.transport.abort()

        latencies: list[float] = []

        async def ping() -> None:
            transport, log = await loop.create_connection(Log, *server.sockets[0].getsockname())
            for _ in range(20):
                # All that can hold an answer up is done by this process; others on the machine do not count.
                started = time.process_time()
                transport.write(b"ping")
                await log.got(4)
                latencies.append(time.process_time() - started)
            transport.close()
            await within(log.lost)

        flooding = asyncio.ensure_future(flood())
        await within(asyncio.gather(*(ping() for _ in range(50))), 30)
        over = True
        await within(flooding)
        server.close()
        sink.close()
        for log in sunk:
            await within(asyncio.wait([log.lost]))
        await within(server.wait_closed())
        latencies.sort()
        assert latencies[int(len(latencies) * 0.99)] < 0.25

    run(main())


def test_r24_at_most_one_plain_read_per_turn(run):
    """aiofastnet #62: a protocol gets one chunk, then everybody else has his turn."""

    class Counting(Log):
        turn = -1
        turns_seen: list[int]

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.turns_seen.append(current)

    current = 0

    async def main() -> None:
        nonlocal current
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        right.setblocking(False)
        transport, log = await loop.create_connection(Counting, sock=left)
        log.turns_seen = []
        transport.pause_reading()
        try:
            while True:
                right.send(bytes(65536))
        except BlockingIOError:
            pass
        transport.resume_reading()

        def tick() -> None:
            nonlocal current
            current += 1
            if current < 500 and not log.lost.done():
                loop.call_soon(tick)

        tick()
        right.close()
        await within(log.lost)
        assert len(log.turns_seen) == len(set(log.turns_seen))

    run(main())
