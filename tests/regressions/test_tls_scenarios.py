"""R25-R33: TLS connections that end badly, upgrade late, or come in thousands."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import sys
import threading
import weakref
from typing import Any

import pytest
from harness import (
    PATIENCE_S,
    Echo,
    Log,
    Tls,
    connected,
    reset,
    rss_bytes,
    tcp_sockets,
    turns,
    until,
    within,
)

HANGS_WHEN_ABORTED = pytest.mark.asyncio_bug("leaves the waiter without an answer", run=False)
needs_311 = pytest.mark.skipif(sys.version_info < (3, 11), reason="TLS was rewritten in 3.11")


def in_thread(sock: socket.socket, script: Any) -> threading.Thread:
    sock.setblocking(True)
    sock.settimeout(PATIENCE_S)
    thread = threading.Thread(target=script, args=[sock])
    thread.start()
    return thread


@needs_311
@pytest.mark.only_zloop("asyncio goes on reading what nobody wants")
def test_r25_close_while_a_big_response_arrives(run, tls):
    """aiohttp #6762; uvloop #471."""
    sent = 0

    def script(sock: socket.socket) -> None:
        nonlocal sent
        try:
            with tls.server.wrap_socket(sock, server_side=True) as secure:
                while sent < 1 << 30:
                    sent += secure.send(bytes(65536))
        except OSError:
            pass

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        thread = in_thread(right, script)
        transport, log = await within(
            loop.create_connection(
                Log, sock=left, ssl=tls.client, server_hostname="localhost", ssl_shutdown_timeout=1
            )
        )
        await log.when(lambda: len(log.received) > 1_000_000)
        transport.close()
        before, started = sent, loop.time()
        await within(asyncio.wait([log.lost]))
        # by the timeout that was asked for; the usual one is 30 seconds
        assert loop.time() - started < PATIENCE_S / 2
        await until(lambda: not thread.is_alive())
        # what the sockets' own buffers hold was on its way already
        assert sent - before < 16_000_000
        assert log.lost_count == 1

    run(main())


@needs_311
@pytest.mark.parametrize("peer", ["silent", "sends more", "ends without farewell"])
def test_r26_peers_that_do_not_answer_the_farewell(run, tls, peer):
    """aiohttp #11091; uvloop #255, uvloop #257."""
    over = threading.Event()

    def script(sock: socket.socket) -> None:
        with tls.server.wrap_socket(sock, server_side=True) as secure, contextlib.suppress(OSError):
            secure.recv(1)
            if peer == "sends more":
                for _ in range(10):
                    secure.send(b"more")
            if peer != "ends without farewell":
                over.wait(PATIENCE_S)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        thread = in_thread(right, script)
        transport, log = await within(
            loop.create_connection(
                Log, sock=left, ssl=tls.client, server_hostname="localhost", ssl_shutdown_timeout=0.1
            )
        )
        transport.write(b"x")
        await turns(3)
        started = loop.time()
        transport.close()
        await within(asyncio.wait([log.lost]))
        assert loop.time() - started < PATIENCE_S / 2
        over.set()
        await until(lambda: not thread.is_alive())
        assert log.lost_count == 1

    reports: list[Any] = []
    run(main(), reports=reports)
    assert all(isinstance(report["exception"], (TimeoutError, ssl.SSLError)) for report in reports)


@needs_311
@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("count", [300, pytest.param(15_000, marks=pytest.mark.soak)])
def test_r27_peers_that_leave_before_the_handshake_ends(run, tls, how, count):
    """zuvloop #174; python/asyncio #472; cpython #109534; uvloop #565."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Log, "127.0.0.1", 0, ssl=tls.server, backlog=512)
        address = server.sockets[0].getsockname()

        async def batch() -> None:
            for _ in range(30):
                sock = socket.create_connection(address)
                if how == "reset":
                    reset(sock)
                else:
                    sock.close()
            await turns(10)

        for _ in range(5):
            await batch()
        if sys.platform.startswith("linux"):
            before = rss_bytes()
        for _ in range(count // 30):
            await batch()
        if sys.platform.startswith("linux"):
            gc.collect()
            assert rss_bytes() - before < 40 << 20
        # the server still serves
        transport, log = await within(
            loop.create_connection(Log, *address, ssl=tls.client, server_hostname="localhost")
        )
        transport.abort()
        await within(log.lost)
        # and a client whose server leaves is told so
        left, right = tcp_sockets()
        connecting = asyncio.ensure_future(
            loop.create_connection(Log, sock=left, ssl=tls.client, server_hostname="localhost")
        )
        await turns(4)
        reset(right)
        with pytest.raises(ConnectionError):
            await within(connecting)
        server.close()
        await turns(5)

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="StreamWriter.start_tls came with 3.11")
@pytest.mark.asyncio_bug(
    "older versions lose what the reader holds", when=sys.version_info < (3, 15), run=False
)
def test_r28_plain_header_and_client_hello_in_one_segment(run, tls):
    """cpython #142352; uvloop #707."""

    async def main() -> None:
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"
            await writer.start_tls(tls.server)
            answered.set_result(await reader.readline())
            writer.write(b"answer\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = tls.client.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + outgoing.read())
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await within(reader.read(65536)))
        client.write(b"question\n")
        writer.write(outgoing.read())
        assert await within(answered) == b"question\n"
        writer.transport.abort()
        server.close()
        await turns(5)

    run(main())


@needs_311
@pytest.mark.asyncio_bug("asserts that nobody was paused", run=False)
def test_r29_start_tls_while_paused_for_writing(run, tls):
    """uvloop #564; cpython #109603."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp", small_buffers=True) as pair:
            pair.server_transport.pause_reading()
            pair.client_transport.write(bytes(1_000_000))
            assert pair.client.paused
            client = Log()
            upgrading = asyncio.ensure_future(
                loop.start_tls(pair.client_transport, client, tls.client, server_hostname="localhost")
            )
            await turns(3)
            pair.server_transport.resume_reading()
            await pair.server.when(lambda: len(pair.server.received) >= 1_000_000)
            pair.server_transport.pause_reading()
            assert bytes(pair.server.received[:1_000_000]) == bytes(1_000_000)
            upgrading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await upgrading
            if not pair.client.lost.done():
                pair.client.lost.set_result(None)

    run(main())


@needs_311
@pytest.mark.parametrize(
    "how", [pytest.param("abort", marks=HANGS_WHEN_ABORTED), "peer leaves", "bad certificate"]
)
def test_r30_connection_lost_once_when_start_tls_fails(run, tls, how):
    """aiofastnet 0.22.0."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        transport, plain = await loop.create_connection(Log, sock=left)
        upgraded = Log()
        context = ssl.create_default_context() if how == "bad certificate" else tls.client
        upgrading = asyncio.ensure_future(
            loop.start_tls(transport, upgraded, context, server_hostname="localhost")
        )
        await turns(3)
        thread = None
        if how == "abort":
            transport.abort()
        elif how == "peer leaves":
            reset(right)
        else:

            def script(sock: socket.socket) -> None:
                try:
                    tls.server.wrap_socket(sock, server_side=True).close()
                except OSError:
                    sock.close()

            thread = in_thread(right, script)
        with pytest.raises((OSError, ssl.SSLError)):
            await within(upgrading)
        await turns(5)
        assert plain.lost_count + upgraded.lost_count <= 1
        transport.abort()
        await turns(3)
        assert plain.lost_count + upgraded.lost_count <= 1
        if thread is not None:
            await until(lambda: not thread.is_alive())
        right.close()

    reports: list[Any] = []
    run(main(), reports=reports)
    assert all(isinstance(report["exception"], OSError) for report in reports)


def test_r31_writes_from_every_callback_over_tls_keep_their_order(run, tls):
    """picows #40; cpython #81407."""

    class Subscriber(Log):
        number = 0

        def burst(self) -> None:
            for _ in range(50):
                self.transport.write(b"%06d;" % self.number)
                self.number += 1

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=1000)
            self.burst()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.number < 2000:
                self.burst()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.burst()

    async def main() -> None:
        for _ in range(5):  # reconnects
            async with connected("tls", client=Subscriber, tls=tls) as pair:
                for _ in range(5):
                    pair.server_transport.write(b"go")
                    await turns(5)
                await pair.server.when(lambda: len(pair.server.received) >= 300 * 7)
                count = len(pair.server.received) // 7
                numbers = bytes(pair.server.received[: count * 7]).split(b";")[:-1]
                assert numbers == [b"%06d" % number for number in range(count)]

    run(main())


@needs_311
@pytest.mark.only_zloop("asyncio's TLS needs the collector")
def test_r32_no_cycle_keeps_connections_alive(run, tls):
    """uvloop #237, uvloop #220."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        mine = Tls(tls.certificate, tls.authority)
        server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=mine.server)
        address = server.sockets[0].getsockname()
        alive: list[weakref.ref[Any]] = []

        async def request() -> None:
            transport, log = await loop.create_connection(
                Log, *address, ssl=mine.client, server_hostname="localhost"
            )
            alive.append(weakref.ref(transport))
            alive.append(weakref.ref(log))
            transport.write(b"x")
            await log.got(1)
            transport.close()
            await within(log.lost)
            log.transport = None
            log.made = loop.create_future()

        gc.collect()
        gc.disable()
        try:
            for _ in range(100):
                await request()
            await turns(10)
            assert sum(ref() is not None for ref in alive) <= 2
        finally:
            gc.enable()
        server.close()
        await turns(5)

    run(main())


@pytest.mark.parametrize("count", [1])
def test_r33_every_keyword_is_honoured(run, tls, count):
    """talyn BUG-19."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=tls.server)
        port = server.sockets[0].getsockname()[1]
        options: dict[str, Any] = {}
        if sys.version_info >= (3, 11):
            options["ssl_shutdown_timeout"] = 5
        if sys.version_info >= (3, 12):
            options["all_errors"] = True
        for _ in range(count):
            transport, log = await within(
                loop.create_connection(
                    Log, "localhost", port, ssl=tls.client, family=socket.AF_INET, proto=socket.IPPROTO_TCP,
                    flags=socket.AI_ADDRCONFIG, local_addr=("127.0.0.1", 0), server_hostname="localhost",
                    ssl_handshake_timeout=10, happy_eyeballs_delay=0.1, interleave=1, **options,
                )
            )  # fmt: skip
            transport.write(b"x")
            assert await log.got(1) == b"x"
            assert transport.get_extra_info("sockname")[0] == "127.0.0.1"
            transport.close()
            await within(log.lost)
        server.close()
        await turns(5)

    run(main())
