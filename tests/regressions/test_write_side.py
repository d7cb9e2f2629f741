"""R10-R16: writing to peers that read slowly, or not at all, or are gone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import sysconfig
from typing import Any

import pytest
from harness import (
    WRITELINES_USES,
    DatagramLog,
    Log,
    connected,
    old_tls_hangs,
    pattern,
    reset,
    rss_bytes,
    tcp_sockets,
    turns,
    within,
)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")


@pytest.mark.asyncio_bug(
    "writelines() forgets to ask whether the connection is lost",
    when=bool(WRITELINES_USES) and "_conn_lost" not in WRITELINES_USES,
    kinds=("tcp", "unix"),
)
@pytest.mark.parametrize("how", ["close", "abort", "reset"])
def test_r10_writes_after_the_end_are_dropped(run, kind, tls, how):
    """zuvloop #17; uvloop #506."""

    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            if how == "reset":
                pair.server_transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                )
                pair.server_transport.abort()
            else:
                getattr(pair.client_transport, how)()
            for _ in range(3):
                pair.client_transport.write(b"x")
                pair.client_transport.writelines([b"x", b"y"])
                await turns(1)
            await within(asyncio.wait([pair.client.lost]))
            for _ in range(8):
                pair.client_transport.write(b"x")
                pair.client_transport.writelines([b"x", b"y"])
            assert pair.client.lost_count == 1

    run(main())


@pytest.mark.asyncio_bug("fails on the socket it let go", run=False)
def test_r10_sendto_after_the_end_is_dropped(run):
    """zuvloop #17; uvloop #506."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, log = await loop.create_datagram_endpoint(DatagramLog, local_addr=("127.0.0.1", 0))
        address = transport.get_extra_info("sockname")
        transport.close()
        transport.sendto(b"x", address)
        await within(log.lost)
        for _ in range(8):
            transport.sendto(b"x", address)

    run(main())


PIECES = {"hundred": [pattern(6500)] * 100, "tiny": [b"%04d" % number for number in range(5000)]}
FORGETS_LIMITS = bool(WRITELINES_USES) and "_maybe_pause_protocol" not in WRITELINES_USES


@pytest.mark.asyncio_bug(
    "writelines() forgets the limits", when=FORGETS_LIMITS, kinds=("tcp", "unix"), run=False
)
@pytest.mark.asyncio_bug("counts no ciphertext that waits below", kinds=("tls",), run=False)
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_r11_writelines_to_a_slow_reader(run, kind, tls, pieces):
    """cpython #103462, cpython #127655, cpython #31871."""

    async def main() -> None:
        async with connected(kind, tls=tls, small_buffers=True) as pair:
            pair.server_transport.pause_reading()
            pair.client_transport.set_write_buffer_limits(high=4096)
            pair.client_transport.write(pattern(600_000))
            total = b"".join(pieces)
            pair.client_transport.writelines(pieces)
            assert pair.client.paused
            pair.server_transport.resume_reading()
            assert await pair.server.got(600_000) == pattern(600_000)
            assert await pair.server.got(len(total)) == total
            assert not pair.client.paused
        # and alone, into an empty queue
        async with connected(kind, tls=tls, small_buffers=True) as pair:
            pair.server_transport.pause_reading()
            pair.client_transport.set_write_buffer_limits(high=4096)
            sent = 0
            while not pair.client.paused:
                pair.client_transport.writelines(pieces)
                sent += 1
                assert sent < 200
            pair.server_transport.resume_reading()
            assert await pair.server.got(len(total) * sent) == total * sent

    run(main())


@pytest.mark.asyncio_bug(
    "its queue keeps views of the caller's buffers", when=sys.version_info >= (3, 12), kinds=("tcp", "unix")
)
def test_r12_buffers_changed_while_queued(run, kind, tls):
    """zuvloop #61."""

    async def main() -> None:
        async with connected(kind, tls=tls, small_buffers=True) as pair:
            pair.server_transport.pause_reading()
            expected = bytearray()
            for value in range(1, 20):
                array, view = bytearray([value]) * 50_000, memoryview(bytearray([value + 100]) * 50_000)
                pair.client_transport.write(array)
                pair.client_transport.write(view)
                expected += bytes(array) + bytes(view)
                array[:] = bytes(len(array))
                view[:] = bytes(len(view))
            pair.server_transport.resume_reading()
            assert await pair.server.got(len(expected)) == expected

    run(main())


@pytest.mark.asyncio_bug("TLS waits for a buffer below zero", kinds=("tls",), run=False)
def test_r13_limits_of_zero_in_a_relay(run, kind, tls):
    """cpython #102792."""

    async def main() -> None:
        loop = asyncio.get_running_loop()

        class Flow(Log):
            """drain() as StreamWriter does it."""

            async def drain(self) -> None:
                await turns(1)
                await self.when(lambda: not self.paused)

        async with connected(kind, client=Flow, server=Flow, tls=tls, small_buffers=True) as pair:
            for transport in (pair.client_transport, pair.server_transport):
                transport.set_write_buffer_limits(0)

            async def relay() -> None:
                total = 0
                while total < 1_000_000:
                    data = await pair.server.got(50_000)
                    pair.server_transport.write(data)
                    await pair.server.drain()
                    total += len(data)

            relaying = loop.create_task(relay())
            for _ in range(20):
                pair.client_transport.write(pattern(50_000))
                await pair.client.drain()
                assert await pair.client.got(50_000) == pattern(50_000)
            await within(relaying)

    run(main())


@linux
@pytest.mark.parametrize("size", [200_000_000, pytest.param(1 << 30, marks=pytest.mark.soak)])
def test_r14_a_flood_and_a_peer_that_disappears(run, size, loop_name):
    """uvloop #548."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        transport, log = await loop.create_connection(Log, sock=left)
        before = rss_bytes()
        for _ in range(size // 1_000_000):
            transport.write(b"x" * 1_000_000)
        assert transport.get_write_buffer_size() > size // 2
        reset(right)
        await within(asyncio.wait([log.lost]))
        await turns(2)
        assert transport.get_write_buffer_size() == 0
        # asyncio leaves it to the allocator when freed memory goes back to the system, and glibc may keep it.
        # So may the allocator of free-threaded builds, which has the program's own objects there.
        if not loop_name.startswith("asyncio:") and not sysconfig.get_config_var("Py_GIL_DISABLED"):
            assert rss_bytes() - before < 60_000_000

    run(main())


@old_tls_hangs
@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_r15_a_task_that_writes_without_awaiting_reads(run, kind, tls):
    """uvloop #639; cpython #118950."""

    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            pair.client_transport.pause_reading()
            pair.server_transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
            )
            pair.server_transport.abort()

            async def writer() -> None:
                while not pair.client_transport.is_closing():
                    pair.client_transport.write(b"x" * 100)
                    await asyncio.sleep(0)

            await within(writer())
            await within(asyncio.wait([pair.client.lost]))

    reports: list[Any] = []
    run(main(), reports=reports)
    assert all(isinstance(report["exception"], OSError) for report in reports)


def test_r16_a_full_child_stdin(run):
    """uvloop #317."""

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("/bin/sleep", "60", stdin=subprocess.PIPE)
        assert process.stdin is not None
        transport = process.stdin.transport
        total = 0
        with pytest.raises(asyncio.TimeoutError):
            while True:
                process.stdin.write(bytes(10_000))
                total += 10_000
                assert total < 100_000_000
                await asyncio.wait_for(process.stdin.drain(), 0.05)
        assert transport.get_write_buffer_size() > 0
        process.kill()
        await within(process.wait())
        process.stdin.close()
        with contextlib.suppress(ConnectionError):
            await within(process.stdin.wait_closed())

    run(main())
