"""loop.sendfile and loop.sock_sendfile, with the system call and with the fallback."""

from __future__ import annotations

import asyncio
import io
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Log, connected, pattern, reset, tcp_sockets, until, within

SIZE = 1_000_000
DATA = pattern(SIZE)
HAS_SENDFILE = sys.platform.startswith(("linux", "darwin", "freebsd"))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with open(path, "rb") as opened:
        yield opened


async def receive(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    received = bytearray()
    while len(received) < size:
        data = await within(loop.sock_recv(sock, 1 << 18))
        if not data:
            break
        received += data
    return bytes(received)


@pytest.mark.parametrize(
    ("offset", "count", "expected"),
    [
        (0, None, DATA),
        (1000, None, DATA[1000:]),
        (1000, 5000, DATA[1000:6000]),
        (0, 2 * SIZE, DATA),
        (SIZE, 1, b""),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_transport(run, tls, file, kind, offset, count, expected):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected(kind, tls=tls) as pair:
            pair.client_transport.write(b"before;")
            sent = await within(loop.sendfile(pair.client_transport, file, offset, count))
            assert sent == len(expected)
            if sent:
                assert file.tell() == offset + sent
            pair.client_transport.write(b";after")
            total = len(expected) + 13
            assert await pair.server.got(total) == b"before;" + expected + b";after"

    run(main())


@pytest.mark.parametrize(("offset", "count"), [(0, None), (1000, 5000)])
def test_socket(run, file, offset, count):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        expected = DATA[offset:][:count]
        receiving = asyncio.ensure_future(receive(right, len(expected)))
        assert await within(loop.sock_sendfile(left, file, offset, count)) == len(expected)
        assert await within(receiving) == expected
        assert file.tell() == offset + len(expected)
        left.close()
        right.close()

    run(main())


def test_fallback_of_a_file_without_descriptor(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp") as pair:
            assert (
                await within(loop.sendfile(pair.client_transport, io.BytesIO(DATA), 10, 100_000)) == 100_000
            )
            assert await pair.server.got(100_000) == DATA[10:100_010]
        left, right = tcp_sockets()
        receiving = asyncio.ensure_future(receive(right, SIZE))
        assert await within(loop.sock_sendfile(left, io.BytesIO(DATA))) == SIZE
        assert await within(receiving) == DATA
        left.close()
        right.close()

    run(main())


def test_no_fallback(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tls", tls=tls) as pair:
            with pytest.raises(RuntimeError):
                await within(loop.sendfile(pair.client_transport, io.BytesIO(DATA), fallback=False))
        left, right = tcp_sockets()
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await within(loop.sock_sendfile(left, io.BytesIO(DATA), fallback=False))
        left.close()
        right.close()

    run(main())


@pytest.mark.skipif(not HAS_SENDFILE, reason="no sendfile system call")
def test_the_system_call_is_used_without_fallback(run, file):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp") as pair:
            assert await within(loop.sendfile(pair.client_transport, file, fallback=False)) == SIZE
            assert await pair.server.got(SIZE) == DATA
        left, right = tcp_sockets()
        receiving = asyncio.ensure_future(receive(right, SIZE))
        assert await within(loop.sock_sendfile(left, file, fallback=False)) == SIZE
        assert await within(receiving) == DATA
        left.close()
        right.close()

    run(main())


def test_reading_goes_on_afterwards_and_was_held_meanwhile(run, file):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp", small_buffers=True) as pair:
            pair.server_transport.pause_reading()
            sending = asyncio.ensure_future(loop.sendfile(pair.client_transport, file))
            await until(lambda: not pair.client_transport.is_reading())
            pair.server_transport.write(b"question")
            pair.server_transport.resume_reading()
            assert await within(sending) == SIZE
            assert await pair.client.got(8) == b"question"
            assert pair.client_transport.is_reading()
            assert await pair.server.got(SIZE) == DATA

    run(main())


def test_a_reading_side_that_was_paused_stays_paused(run, file):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp") as pair:
            pair.client_transport.pause_reading()
            await within(loop.sendfile(pair.client_transport, file))
            assert not pair.client_transport.is_reading()

    run(main())


def test_a_peer_that_leaves(run, file):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets(small_buffers=True)
        transport, log = await loop.create_connection(Log, sock=left)
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await asyncio.sleep(0.01)
        reset(right)
        with pytest.raises(ConnectionError):
            await within(sending)
        transport.abort()
        await within(asyncio.wait([log.lost]))

    run(main())


def test_a_closing_transport_is_refused(run, file):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp") as pair:
            pair.client_transport.close()
            with pytest.raises(RuntimeError, match="closing"):
                await loop.sendfile(pair.client_transport, file)

    run(main())


def test_wrong_arguments(run, file, tmp_path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        with open(tmp_path / "text", "w+") as text:
            for arguments, error in (
                ((text,), ValueError),
                ((file, -1), ValueError),
                ((file, "0"), TypeError),
                ((file, 0, 0), ValueError),
                ((file, 0, -1), ValueError),
                ((file, 0, "1"), TypeError),
            ):
                with pytest.raises(error):
                    await loop.sock_sendfile(left, *arguments)
        with socket.socket(type=socket.SOCK_DGRAM) as datagram, pytest.raises(ValueError):
            datagram.setblocking(False)
            await loop.sock_sendfile(datagram, file)
        left.close()
        right.close()

    run(main())


def test_a_cancelled_sendfile_leaves_the_connection_whole(run, file):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp", small_buffers=True) as pair:
            pair.server_transport.pause_reading()
            sending = asyncio.ensure_future(loop.sendfile(pair.client_transport, file))
            await asyncio.sleep(0.01)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            pair.client_transport.write(b"<end>")
            pair.server_transport.resume_reading()
            await pair.server.when(lambda: pair.server.received.endswith(b"<end>"))
            received = bytes(pair.server.received[:-5])
            assert received == DATA[: len(received)]

    run(main())


def test_several_files_one_after_the_other(run, file):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp") as pair:
            for _ in range(5):
                assert await within(loop.sendfile(pair.client_transport, file, 0, 10_000)) == 10_000
            assert await pair.server.got(50_000) == DATA[:10_000] * 5

    run(main())
