"""What may come between the data: new keys, new handshakes, floods of small records, ends within a burst."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import platform
import socket
import ssl
import sys
import sysconfig
import types
from typing import Any

import pytest
from harness import BufferedLog, Echo, Log, connected, pattern, rss_bytes, tcp_sockets, turns, until, within
from tls_peer import OLD_SSLPROTO, Peer, begin, join, renegotiate, update_keys

pytestmark = pytest.mark.usefixtures("engine")

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

#: SSL_OP_ALLOW_CLIENT_RENEGOTIATION; OpenSSL 1.1.1 allows it anyhow.
ALLOW_CLIENT_RENEGOTIATION = 1 << 8
RENEGOTIATES_BY_DEFAULT = ssl.OPENSSL_VERSION_INFO < (3,)


def old_version(tls: Any) -> Any:
    """Contexts of TLS 1.2."""
    contexts = types.SimpleNamespace(client=tls.make_client(), server=tls.make_server())
    for context in (contexts.client, contexts.server):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return contexts


@pytest.mark.parametrize("both", [False, True], ids=["own", "both"])
def test_new_keys_between_the_data(run, tls, side, both):
    async def main() -> None:
        async with await join(side, tls) as joined:
            for index in range(40):
                update_keys(joined.peer.tls, both=both)
                data = pattern(1 + index * 700, index)
                await joined.peer.send(data)
                assert await joined.log.got(len(data)) == data
                joined.transport.write(data)
                assert await joined.peer.receive(len(data)) == data

    run(main())


@pytest.mark.parametrize("protocol", [Log, BufferedLog])
def test_a_storm_of_new_keys(run, tls, side, protocol):
    """In bursts, with wishes to be answered, while the program writes and does not."""

    async def main() -> None:
        async with await join(side, tls, protocol) as joined:
            for round_number in range(4):
                for _ in range(500):
                    update_keys(joined.peer.tls, both=True)
                    joined.peer.tls.do_handshake()
                joined.peer.tls.write(b"done")
                await joined.peer.flush()
                if round_number % 2:
                    joined.transport.write(b"from here")
                assert await joined.log.got(4) == b"done"
                if round_number % 2:
                    assert await joined.peer.receive(9) == b"from here"
            # Answers are one for many, and they have left.
            assert joined.transport.get_write_buffer_size() == 0
            joined.transport.write(b"last")
            assert await joined.peer.receive(4) == b"last"

    run(main())


@linux
@pytest.mark.parametrize("closing", [False, True], ids=["open", "closing"])
def test_a_storm_of_new_keys_whose_answers_nobody_reads(run, engine, tls, side, closing):
    """Such a peer gets no more memory than the kernel's buffers and a little."""
    if engine == "asyncio":
        pytest.skip("sslproto queues answers without end")

    async def main() -> None:
        async with await join(side, tls, small_buffers=True) as joined:
            if closing:
                joined.transport.write(bytes(1_000_000))
                joined.transport.close()
            before = rss_bytes()

            async def storm() -> None:
                while True:
                    for _ in range(500):
                        update_keys(joined.peer.tls, both=True)
                        joined.peer.tls.do_handshake()
                    await joined.peer.flush()

            storming = asyncio.ensure_future(storm())
            error = await within(joined.log.lost)
            assert rss_bytes() - before < 24 << 20
            if closing and error is None:  # cut off for what it sends after the goodbye
                assert joined.transport.is_closing()
            else:
                assert isinstance(error, ssl.SSLError)
                assert "does not read the answers" in str(error)
            storming.cancel()
            await asyncio.wait([storming])
            assert joined.log.lost_count == 1

    run(main())


def test_new_keys_for_a_program_that_does_not_read(run, tls, side):
    async def main() -> None:
        async with await join(side, tls) as joined:
            joined.transport.pause_reading()
            for index in range(20):
                update_keys(joined.peer.tls, both=True)
                await joined.peer.send(b"%02d" % index)
            await turns(5)
            joined.transport.write(b"one way")
            assert await joined.peer.receive(7) == b"one way"
            assert joined.log.received == b""
            joined.transport.resume_reading()
            assert await joined.log.got(40) == b"".join(b"%02d" % index for index in range(20))

    run(main())


def test_the_programs_own_new_keys(run, tls, side):
    """By way of `ssl_object`, as a program with ctypes or a later ssl module could."""

    async def main() -> None:
        async with await join(side, tls) as joined:
            ssl_object = joined.transport.get_extra_info("ssl_object")
            for index in range(10):
                update_keys(ssl_object, both=True)
                joined.transport.write(b"new keys %d" % index)
                assert await joined.peer.receive(10) == b"new keys %d" % index
                await joined.peer.send(b"%d" % index)
                assert await joined.log.got(1) == b"%d" % index

    run(main())


@pytest.mark.old_sslproto("keeps what is written during a renegotiation")
def test_a_server_renegotiates(run, tls):
    """The loop's client goes along, while both sides have data on the way."""

    async def main() -> None:
        async with await join("client", old_version(tls)) as joined:
            for index in range(5):
                data = pattern(50_000, index)
                renegotiate(joined.peer.tls)
                with contextlib.suppress(ssl.SSLWantReadError):
                    joined.peer.tls.do_handshake()
                await joined.peer.flush()
                await joined.peer.handshake()
                joined.transport.write(data)
                assert await joined.peer.receive(len(data)) == data
                await joined.peer.send(data)
                assert await joined.log.got(len(data)) == data
            cipher = joined.peer.tls.cipher()
            assert joined.transport.get_extra_info("ssl_object").cipher() == cipher

    run(main())


@pytest.mark.old_sslproto("does not count what waits for a handshake")
def test_what_is_written_while_a_server_renegotiates(run, tls):
    """Data that cannot be encrypted before the peer has spoken waits and keeps its order."""

    async def main() -> None:
        async with await join("client", old_version(tls)) as joined:
            loop = asyncio.get_running_loop()
            renegotiate(joined.peer.tls)
            with contextlib.suppress(ssl.SSLWantReadError):
                joined.peer.tls.do_handshake()
            # The request for a handshake leaves; its answer is held back from the server.
            await joined.peer.flush()
            await until(
                lambda: joined.peer.sock.recv(1, socket.MSG_PEEK) if _readable(joined.peer.sock) else b""
            )
            # sslproto gives up what it cannot encrypt at once only when the peer has spoken again.
            pieces = [pattern(size, size) for size in (1, 5000, 70_000, 300)]
            for piece in pieces:
                joined.transport.write(piece)
            joined.transport.writelines([b"end", b"ing"])
            assert joined.transport.get_write_buffer_size() > 75_000
            await joined.peer.handshake()
            expected = b"".join(pieces) + b"ending"
            assert await joined.peer.receive(len(expected)) == expected
            assert joined.transport.get_write_buffer_size() == 0
            assert loop.is_running()

    run(main())


def _readable(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


@pytest.mark.parametrize("words", [b"", b"last words"], ids=["silent", "writing"])
def test_a_program_closes_while_a_server_renegotiates(run, engine, tls, words):
    if engine == "asyncio":
        pytest.skip("sslproto drops what was written and ends with SHUTDOWN_WHILE_IN_INIT")

    async def main() -> None:
        async with await join("client", old_version(tls)) as joined:
            renegotiate(joined.peer.tls)
            with contextlib.suppress(ssl.SSLWantReadError):
                joined.peer.tls.do_handshake()
            await joined.peer.flush()
            await until(lambda: _readable(joined.peer.sock))
            joined.transport.write(words)
            joined.transport.close()
            await joined.peer.handshake()
            assert await within(joined.peer.receive_all()) == words
            await within(joined.peer.drive(joined.peer.tls.unwrap))
            assert await within(joined.log.lost) is None
            assert joined.log.lost_count == 1

    run(main())


def _short_shutdown() -> dict[str, float]:
    return {} if OLD_SSLPROTO else {"ssl_shutdown_timeout": 1.0}


def test_a_client_that_asks_to_renegotiate(run, tls):
    """OpenSSL 3 answers a client with a warning; the connection lives on. The older one goes along."""

    async def main() -> None:
        async with await join("server", old_version(tls)) as joined:
            for _ in range(5):
                renegotiate(joined.peer.tls)
                if RENEGOTIATES_BY_DEFAULT:
                    await joined.peer.handshake()
                else:
                    with pytest.raises(ssl.SSLError) as caught:
                        await joined.peer.handshake()
                    assert caught.value.reason == "NO_RENEGOTIATION"
                    break
            assert joined.log.events == ["made"]
            joined.transport.write(b"still here")
            await turns(3)
            assert not joined.transport.is_closing()

    run(main())


def test_a_client_that_is_allowed_to_renegotiate(run, tls):
    async def main() -> None:
        contexts = old_version(tls)
        contexts.server.options |= ALLOW_CLIENT_RENEGOTIATION
        async with await join("server", contexts, Echo) as joined:
            for index in range(30):
                renegotiate(joined.peer.tls)
                await joined.peer.handshake()
                data = pattern(3000, index)
                await joined.peer.send(data)
                assert await joined.peer.receive(3000) == data
            assert joined.log.events[0] == "made"

    run(main())


@pytest.mark.parametrize("deed", ["write", "close", "abort"])
def test_the_servers_callback_uses_the_transport_in_a_renegotiation(run, tls, engine, deed):
    """OpenSSL calls back in the middle of a read."""
    if engine == "asyncio" and deed == "write":
        pytest.skip("sslproto sends data in the middle of the handshake")

    async def main() -> None:
        contexts = old_version(tls)
        contexts.server.options |= ALLOW_CLIENT_RENEGOTIATION
        contexts.server.options |= ssl.OP_NO_TICKET
        transports: list[Any] = []

        def choose(*_: object) -> None:
            for transport in transports:
                transport.write(b"early") if deed == "write" else getattr(transport, deed)()

        contexts.server.sni_callback = choose
        async with await join("server", contexts, **_short_shutdown()) as joined:
            transports.append(joined.transport)
            renegotiate(joined.peer.tls)
            if deed == "write":
                await joined.peer.handshake()
                await joined.peer.send(b"hello")
                assert await joined.log.got(5) == b"hello"
                got = await joined.peer.receive(5)
                assert got == b"early"
            else:
                with contextlib.suppress(ssl.SSLError, OSError):
                    await joined.peer.handshake()
                    await within(joined.peer.receive_all())
                    await within(joined.peer.drive(joined.peer.tls.unwrap))
                joined.peer.sock.close()
                await within(asyncio.wait([joined.log.lost]))
                assert joined.log.lost_count == 1
                assert joined.log.lost.exception() is None

    run(main())


def test_a_storm_of_requests_to_renegotiate(run, tls):
    """A server asks its client thousands of times, with data in between: one handshake comes of it."""

    async def main() -> None:
        async with await join("client", old_version(tls)) as joined:
            for _ in range(3000):
                renegotiate(joined.peer.tls)
                with contextlib.suppress(ssl.SSLWantReadError):
                    joined.peer.tls.do_handshake()
            await joined.peer.flush()
            await joined.peer.handshake()
            joined.transport.write(b"still here")
            assert await joined.peer.receive(10) == b"still here"
            await joined.peer.send(b"me too")
            assert await joined.log.got(6) == b"me too"

    run(main())


@pytest.mark.parametrize("protocol", [Log, BufferedLog])
def test_a_flood_of_small_records(run, tls, side, protocol):
    """20,000 records of one byte."""

    async def main() -> None:
        async with await join(side, tls, protocol) as joined:
            data = pattern(20_000)
            for index in range(len(data)):
                joined.peer.tls.write(data[index : index + 1])
            sending = asyncio.ensure_future(joined.peer.flush())
            assert await joined.log.got(len(data)) == data
            await sending

    run(main())


@linux
def test_a_flood_of_small_records_for_a_program_that_does_not_read(run, tls, side):
    """What is kept is bounded, and the peer is stopped."""

    async def main() -> None:
        async with await join(side, tls) as joined:
            joined.transport.pause_reading()
            before = rss_bytes()
            total = 0

            async def flood() -> None:
                nonlocal total
                block = bytes(1)
                while True:
                    for _ in range(2000):
                        joined.peer.tls.write(block)
                    await joined.peer.flush()
                    total += 2000

            flooding = asyncio.ensure_future(flood())
            last = -1
            while total != last:
                last = total
                await turns(300)  # all of it happens in this loop and in the kernel
            assert not flooding.done()
            assert joined.log.received == b""
            assert rss_bytes() - before < 24 << 20
            flooding.cancel()
            await asyncio.wait([flooding])

    run(main())


def test_an_alert_in_the_middle(run, tls, side):
    """A warning is passed over, a fatal alert ends the connection with its name."""

    async def main() -> None:
        contexts = old_version(tls)
        async with await join(side, contexts) as joined:
            await joined.peer.send(b"before")
            assert await joined.log.got(6) == b"before"
            # A record that cannot be authentic makes the peer's OpenSSL send an alert.
            joined.peer.incoming.write(b"\x17\x03\x03\x00\x40" + bytes(64))
            with pytest.raises(ssl.SSLError):
                joined.peer.tls.read(1)
            await joined.peer.flush()
            error = await within(joined.log.lost)
            assert isinstance(error, ssl.SSLError)
            assert error.reason in {"SSLV3_ALERT_BAD_RECORD_MAC", "SSL/TLS_ALERT_BAD_RECORD_MAC"}
            assert joined.log.lost_count == 1

    run(main())


@pytest.mark.old_sslproto("forgets eof_received")
def test_data_and_end_in_one_segment(run, tls, side):
    """All that was sent is delivered ahead of the end, in order."""

    async def main() -> None:
        async with await join(side, tls) as joined:
            for index in range(50):
                joined.peer.tls.write(b"%02d" % index)
            with contextlib.suppress(ssl.SSLWantReadError):
                joined.peer.tls.unwrap()
            await joined.peer.flush()
            joined.peer.sock.shutdown(socket.SHUT_WR)
            await within(asyncio.wait([joined.log.lost]))
            assert joined.log.received == b"".join(b"%02d" % index for index in range(50))
            assert joined.log.events == ["made", "data", "eof", "lost"]

    run(main())


@pytest.mark.old_sslproto("forgets eof_received")
def test_an_answer_to_eof_means_nothing(run, tls, side, caplog):
    async def main() -> None:
        async with await join(side, tls) as joined:
            joined.log.keep_open_after_eof = True
            with contextlib.suppress(ssl.SSLWantReadError):
                joined.peer.tls.unwrap()
            await joined.peer.flush()
            await within(joined.log.eof)
            joined.peer.sock.shutdown(socket.SHUT_WR)
            await within(asyncio.wait([joined.log.lost]))
            assert joined.log.events == ["made", "eof", "lost"]

    run(main())
    messages = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert messages.count("returning true from eof_received() has no effect when using ssl") == 1


@linux
def test_memory_of_a_burst_over_tls_comes_back(run, engine, tls, side):
    if engine == "asyncio":
        pytest.skip("sslproto encrypts all of it at once, and the allocator keeps the pieces")

    async def main() -> None:
        async with await join(side, tls) as joined:
            gc.collect()
            before = rss_bytes()
            for _ in range(100):
                joined.transport.write(b"x" * 1_000_000)
            await turns(2)
            assert joined.transport.get_write_buffer_size() > 50 << 20
            joined.transport.abort()
            await within(joined.log.lost)
            await turns(3)
            gc.collect()
            assert joined.transport.get_write_buffer_size() == 0
            # The allocator of free-threaded builds keeps what the program's own objects leave.
            if not sysconfig.get_config_var("Py_GIL_DISABLED"):
                assert rss_bytes() - before < 40 << 20

    run(main())


@linux
def test_an_idle_connection_holds_little(run, engine, tls):
    """Both ends of it in this process: what OpenSSL needs for its state, and no buffers."""
    if engine == "asyncio":
        pytest.skip("sslproto holds 256 KiB a connection")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(False)
        logs: list[Log] = []

        def factory() -> Log:
            logs.append(Echo())
            return logs[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=tls.server)
        address = server.sockets[0].getsockname()
        ends: list[Any] = []

        async def open_up_to(count: int) -> None:
            while len(ends) < count:
                end = await loop.create_connection(Log, *address, ssl=tls.client, server_hostname="localhost")
                ends.append(end)
                end[0].write(pattern(20_000))
                assert await end[1].got(20_000) == pattern(20_000)

        await open_up_to(30)
        gc.collect()
        before = rss_bytes()
        await open_up_to(180)
        gc.collect()
        for log in logs:
            log.received.clear()
        grown = (rss_bytes() - before) / 150
        for transport, _ in ends:
            transport.abort()
        await within(asyncio.wait([log.lost for _, log in ends] + [log.lost for log in logs]))
        server.close()
        await within(server.wait_closed())
        # Some 80 KB, twice that in Python's development mode. One end of sslproto has three times as much.
        assert grown < 200_000

    run(main())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about what glibc keeps")
@pytest.mark.only_zloop("what asyncio holds is asyncio's business")
def test_memory_of_many_handshakes_at_once_comes_back(run, engine, tls):
    if engine == "asyncio":
        pytest.skip("sslproto holds 256 KiB a connection")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(False)
        logs: list[Log] = []

        def factory() -> Log:
            logs.append(Log())
            return logs[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=tls.server, backlog=300)
        address = server.sockets[0].getsockname()

        async def connect() -> Log:
            making = loop.create_connection(Log, *address, ssl=tls.client, server_hostname="localhost")
            return (await making)[1]

        async def burst(count: int) -> list[Log]:
            made = await within(asyncio.gather(*(connect() for _ in range(count))), 60)
            await until(lambda: len(logs) == count)
            return made

        async def leave(made: list[Log]) -> None:
            for log in [*made, *logs]:
                log.transport.abort()
            await within(asyncio.wait([log.lost for log in [*made, *logs]]))
            logs.clear()

        await leave(await burst(20))
        gc.collect()
        before = rss_bytes()
        made = await burst(200)
        gc.collect()
        # Both ends of each. With what the handshakes leave behind it would be 83,000, and 111,000.
        grown = (rss_bytes() - before) / 200
        assert grown < (65_000 if ssl.OPENSSL_VERSION_INFO < (3, 2) else 98_000)
        await leave(made)
        server.close()
        await within(server.wait_closed())

    run(main())


def test_a_tls_connection_inside_another_ends_in_order(run, tls):
    """The inner one says goodbye, and with it the outer one."""
    if OLD_SSLPROTO:
        pytest.skip("the TLS of 3.10 cannot be nested")

    async def main() -> None:
        async with connected("tls", tls=tls) as pair:
            loop = asyncio.get_running_loop()
            inner, other = Log(), Log()
            one, _ = await within(
                asyncio.gather(
                    loop.start_tls(pair.client_transport, inner, tls.client, server_hostname="localhost"),
                    loop.start_tls(pair.server_transport, other, tls.server, server_side=True),
                )
            )
            assert one.get_extra_info("peername") == pair.client_transport.get_extra_info("peername")
            assert one.get_extra_info("ssl_object") is not pair.client_transport.get_extra_info("ssl_object")
            data = pattern(300_000)
            one.write(data)
            one.close()
            assert await other.got(len(data)) == data
            await within(asyncio.wait([inner.lost, other.lost]))
            assert other.events[-2:] == ["eof", "lost"]
            assert pair.client_transport.is_closing()
            assert pair.server_transport.is_closing()
            for end in (pair.client, pair.server):
                if not end.lost.done():
                    end.lost.set_result(None)

    run(main())


def test_a_peer_of_the_other_kind(run, tls, side):
    """Half a handshake, then plain text: an error that names it."""

    async def main() -> None:
        left, right = tcp_sockets()
        peer = Peer(right, tls.server if side == "client" else tls.client, server_side=side == "client")
        making = begin(side, tls, Log, left)
        if side == "client":
            peer.incoming.write(await within(asyncio.get_running_loop().sock_recv(right, 65536)))
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        await peer.raw(peer.outgoing.read() + b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _, log = await within(making)
            raise await within(log.lost)
        right.close()

    run(main())
