"""TLS on both engines: the direct one and asyncio's sslproto over zloop's transports.

What a peer does is scripted with an SSLObject of the test's own over a plain socket, so that every byte and
every moment can be chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import sys
import types
import warnings
import weakref
from typing import Any

import pytest
from harness import (
    BufferedLog,
    Echo,
    Log,
    child_env,
    connected,
    pattern,
    reset,
    rss_bytes,
    run_python,
    tcp_sockets,
    turns,
    until,
    within,
)
from tls_peer import OLD_SSLPROTO, Joined, Peer, begin, join, reason_of

RECORD_MAX = 16384
SIZES = (1, 2, 255, 1024, RECORD_MAX - 1, RECORD_MAX, RECORD_MAX + 1, 3 * RECORD_MAX + 7, 1_000_003)

pytestmark = [
    pytest.mark.usefixtures("engine"),
    pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning"),
]


@pytest.mark.only_zloop("asyncio has no engines")
def test_the_loop_tells_its_engine(run, engine, tls):
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        assert loop.tls_engine == engine
        async with connected("tls", tls=tls) as pair:
            is_direct = type(pair.client_transport).__name__ == "SSLTransport"
            assert is_direct == (engine == "native")
            assert isinstance(pair.client_transport, asyncio.Transport)

    run(main())


@pytest.mark.only_zloop("asyncio has no engines")
def test_an_unknown_engine_is_refused(loop_factory, engine, monkeypatch):
    monkeypatch.setenv("ZLOOP_TLS", "fast")
    with pytest.raises(ValueError, match="auto, native, asyncio"):
        loop_factory()


FOREIGN_SSL = """
import _ssl, asyncio, ssl, sys
{change}
import zloop
loop = zloop.new_event_loop()
assert loop.tls_engine == "asyncio", loop.tls_engine
assert loop._tls_unavailable() == {reason!r}, loop._tls_unavailable()

async def main():
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(sys.argv[1])
    async def serve(reader, writer):
        writer.write(await reader.readexactly(5))
        writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context)
    port = server.sockets[0].getsockname()[1]
    context = ssl.create_default_context(cafile=sys.argv[2])
    reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
    writer.write(b"hello")
    print(await reader.read())
    writer.close()
    server.close()

loop.run_until_complete(main())
loop.close()
import os
os.environ["ZLOOP_TLS"] = "native"
try:
    zloop.new_event_loop()
except RuntimeError as error:
    print(error)
"""


@pytest.mark.only_zloop("asyncio has no engines")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        # A library that is loaded, but not linked to OpenSSL.
        (
            "import zloop._engine\n_ssl.__file__ = zloop._engine.__file__",
            "_ssl does not share its OpenSSL: SSL_read_ex was not found",
        ),
        ("_ssl._SSLSocket = int", "the layout of _ssl's objects is not known"),
        ("ssl.SSLObject = type('Other', (ssl.SSLObject,), {})", "ssl.SSLObject is not itself"),
        ("del ssl.MemoryBIO", "an object of the ssl module is not what it is expected to be"),
    ],
)
def test_anything_unexpected_gets_asyncios_engine(loop_name, engine, tls_files, change, reason):
    if engine == "native":
        pytest.skip("the child decides")
    if "MemoryBIO" in change:
        # asyncio needs it as well: it comes back after the look.
        change = "kept = ssl.MemoryBIO\n" + change + "\nimport zloop\nzloop.new_event_loop().tls_engine\n"
        change += "ssl.MemoryBIO = kept"
    code = FOREIGN_SSL.format(change=change, reason=reason)
    done = run_python("-c", code, *tls_files, env={**child_env(), "ZLOOP_TLS": "auto"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "b'hello'"
    assert reason in done.stdout


@pytest.mark.only_zloop("asyncio has no engines")
def test_a_context_with_its_own_objects_gets_asyncios_engine(run, tls):
    class Object(ssl.SSLObject):
        pass

    async def main() -> None:
        context = tls.make_client()
        context.sslobject_class = Object
        left, right = tcp_sockets()
        peer = Peer(right, tls.server, server_side=True)
        loop = asyncio.get_running_loop()
        making = loop.create_task(
            loop.create_connection(Log, sock=left, ssl=context, server_hostname="localhost")
        )
        await peer.handshake()
        transport, log = await within(making)
        async with Joined(transport, log, peer):
            assert type(transport.get_extra_info("ssl_object")) is Object
            await peer.send(b"hello")
            assert await log.got(5) == b"hello"

    run(main())


@pytest.mark.parametrize("protocol", [Echo, lambda: BufferedEcho(100), lambda: BufferedEcho(200_000)])
def test_echo_around_record_boundaries(run, tls, side, protocol):
    async def main() -> None:
        async with await join(side, tls, protocol) as joined:
            for size in SIZES:
                data = pattern(size, size)
                sending = asyncio.ensure_future(joined.peer.send(data))
                assert await within(joined.peer.receive(size)) == data
                await sending

    run(main())


class BufferedEcho(BufferedLog):
    def buffer_updated(self, nbytes: int) -> None:
        super().buffer_updated(nbytes)
        self.transport.write(bytes(self.buffer[:nbytes]))


def test_streams_echo_and_pieces_keep_their_order(run, tls):
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(70_000):
                writer.writelines([data[:3], memoryview(data)[3:10], bytearray(data[10:])])
                await writer.drain()
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls.server)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=tls.client, server_hostname="localhost"
        )
        for size in SIZES:
            data = pattern(size, size)
            writer.write(data)
            assert await within(reader.readexactly(size)) == data
        writer.close()
        await within(writer.wait_closed())
        server.close()
        await within(server.wait_closed())

    run(main())


@pytest.mark.parametrize("piece", [1, 7])
def test_a_peer_that_sends_in_crumbs(run, tls, side, piece):
    async def main() -> None:
        async with await join(side, tls, piece=piece) as joined:
            for size in (1, 50, 700):
                await joined.peer.send(pattern(size))
                assert await joined.log.got(size) == pattern(size)
            joined.transport.write(b"answer")
            assert await joined.peer.receive(6) == b"answer"

    run(main())


def test_garbage_instead_of_a_handshake(run, tls, side):
    async def main() -> None:
        left, right = tcp_sockets()
        with right:
            making = begin(side, tls, Log, left)
            await turns(2)
            await asyncio.get_running_loop().sock_sendall(right, b"GET / HTTP/1.0\r\n\r\n" * 10)
            with pytest.raises(ssl.SSLError) as caught:
                await within(making)
            assert caught.value.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST"}
            assert caught.value.library == "SSL"

    run(main())


@pytest.mark.old_sslproto("its transport never says that it is closing")
@pytest.mark.parametrize(
    "junk", [b"junk" * 20, b"\x17\x03\x03\x00\x40" + bytes(64), b"\x17\x03\x03\xff\xff" + bytes(64)]
)
def test_garbage_after_the_handshake(run, tls, side, junk):
    async def main() -> None:
        async with await join(side, tls) as joined:
            await joined.peer.send(b"before")
            assert await joined.log.got(6) == b"before"
            await joined.peer.raw(junk)
            error = await within(joined.log.lost)
            assert isinstance(error, ssl.SSLError)
            assert reason_of(error) in {
                "WRONG_VERSION_NUMBER",
                "DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
                "PACKET_LENGTH_TOO_LONG",
                "ENCRYPTED_LENGTH_TOO_LONG",
                "RECORD_LAYER_FAILURE",
            }
            assert joined.log.lost_count == 1
            assert joined.transport.is_closing()
            joined.transport.write(b"dropped")

    run(main())


def test_the_stream_ends_at_each_point_of_the_handshake(run, tls, side):
    async def main() -> None:
        context = tls.server if side == "client" else tls.client
        for cut in (0, 1, 5, 6, 60, 200):
            left, right = tcp_sockets()
            peer = Peer(right, context, server_side=side == "client")
            making = begin(side, tls, Log, left)
            if side == "client":
                peer.incoming.write(await within(asyncio.get_running_loop().sock_recv(right, 65536)))
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            await peer.raw(peer.outgoing.read()[:cut])
            right.close()
            with pytest.raises(ConnectionResetError):
                await within(making)

    run(main())


def test_the_stream_ends_without_close_notify(run, tls, side):
    async def main() -> None:
        async with await join(side, tls) as joined:
            await joined.peer.send(b"last")
            joined.peer.sock.shutdown(socket.SHUT_WR)
            assert await within(joined.log.lost) is None
            assert joined.log.received == b"last"
            assert joined.log.events == ["made", "data", "eof", "lost"]

    run(main())


def test_a_record_cut_short(run, tls, side):
    async def main() -> None:
        async with await join(side, tls) as joined:
            joined.peer.tls.write(b"x" * 100)
            await joined.peer.raw(joined.peer.outgoing.read()[:50])
            joined.peer.sock.shutdown(socket.SHUT_WR)
            assert await within(joined.log.lost) is None
            assert joined.log.received == b""

    run(main())


@pytest.mark.old_sslproto("does not answer a farewell")
def test_close_notify_from_the_peer(run, tls, side):
    async def main() -> None:
        async with await join(side, tls) as joined:
            joined.peer.tls.write(b"bye")
            with pytest.raises(ssl.SSLWantReadError):
                joined.peer.tls.unwrap()
            await joined.peer.flush()
            await within(joined.peer.drive(joined.peer.tls.unwrap))
            assert await within(joined.log.lost) is None
            assert joined.log.events == ["made", "data", "eof", "lost"]

    run(main())


def test_close_sends_what_was_written_and_says_so(run, tls, side):
    async def main() -> None:
        async with await join(side, tls) as joined:
            data = pattern(3_000_000)
            joined.transport.write(data)
            joined.transport.close()
            assert joined.transport.is_closing()
            assert await within(joined.peer.receive_all()) == data
            await within(joined.peer.drive(joined.peer.tls.unwrap))
            assert await within(joined.log.lost) is None

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 has no ssl_shutdown_timeout")
@pytest.mark.parametrize("talks", [False, True])
def test_a_peer_that_ignores_close_notify(run, tls, side, talks):
    async def main() -> None:
        async with await join(side, tls, ssl_shutdown_timeout=0.3) as joined:
            loop = asyncio.get_running_loop()
            joined.transport.write(b"x")
            began = loop.time()
            joined.transport.close()
            if talks:
                await joined.peer.send(b"still here")
            error = await within(joined.log.lost)
            assert loop.time() - began < 5
            if error is not None:
                assert isinstance(error, (TimeoutError, asyncio.TimeoutError, ssl.SSLError))
            assert joined.log.lost_count == 1

    run(main())


def test_close_stops_a_flood(run, engine, tls, side):
    """A gigabyte on its way to a program that has had enough."""
    if engine == "asyncio":
        pytest.skip("sslproto ends the connection at the first record after its close_notify, or delivers")

    async def main() -> None:
        async with await join(side, tls) as joined:
            loop = asyncio.get_running_loop()
            sent = 0
            block = bytes(256 * 1024)

            async def flood() -> None:
                nonlocal sent
                while True:
                    await joined.peer.send(block)
                    sent += len(block)

            flooding = asyncio.ensure_future(flood())
            await joined.log.when(lambda: len(joined.log.received) > 1_000_000)
            joined.transport.close()
            at_close, delivered = sent, len(joined.log.received)
            began = loop.time()
            assert await within(joined.log.lost) is None
            assert loop.time() - began < asyncio.constants.SSL_HANDSHAKE_TIMEOUT / 4  # not by a timeout
            assert len(joined.log.received) == delivered
            with pytest.raises(ConnectionError):
                await within(flooding)
            # The kernel's buffers on both sides take some megabytes by themselves.
            assert sent - at_close < 16_000_000

    run(main())


def test_aborted_handshakes_leave_nothing(run, engine, tls):
    async def main(count: int) -> None:
        reports: list[Any] = []
        loop = asyncio.get_running_loop()
        # In debug mode asyncio shows the trouble of each.
        loop.set_debug(False)
        loop.set_exception_handler(lambda _, context: reports.append(context))
        server = await loop.create_server(Log, "127.0.0.1", 0, ssl=tls.server)
        address = server.sockets[0].getsockname()
        before = 0
        for index in range(count):
            sock = socket.create_connection(address)
            if index % 3 == 1:
                sock.sendall(b"\x16\x03\x01\x02\x00\x01")
            if index % 2:
                reset(sock)
            else:
                sock.close()
            if index % 20 == 19:
                await turns(4)
            if index == count // 3:
                before = rss_bytes()
        await turns(10)
        grown = rss_bytes() - before
        server.close()
        await within(server.wait_closed())
        assert reports == []
        # sslproto's buffers of 256 KiB come back when the allocator likes.
        assert grown < (4_000_000 if engine == "native" else 32_000_000)

    run(main(int(os.environ.get("ZLOOP_TEST_ABORTED", "1500"))))


def test_a_reset_in_the_clients_handshake(run, tls):
    async def main() -> None:
        left, right = tcp_sockets()
        making = begin("client", tls, Log, left)
        await turns(3)
        reset(right)
        with pytest.raises(ConnectionResetError):
            await within(making)

    run(main())


@pytest.mark.parametrize("bad", ["hostname", "authority"])
def test_certificate_errors_have_their_attributes(run, tls, bad):
    async def main() -> None:
        context = tls.make_client() if bad == "hostname" else ssl.create_default_context()
        left, right = tcp_sockets()
        peer = Peer(right, tls.server, server_side=True)
        loop = asyncio.get_running_loop()
        name = "example.invalid" if bad == "hostname" else "localhost"
        making = loop.create_task(loop.create_connection(Log, sock=left, ssl=context, server_hostname=name))
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            with pytest.raises((ssl.SSLError, OSError)):
                await peer.handshake()
            await within(making)
        assert caught.value.verify_code == (62 if bad == "hostname" else 20)
        assert caught.value.reason == "CERTIFICATE_VERIFY_FAILED"
        assert caught.value.verify_message
        right.close()

    run(main())


def test_handshake_timeout(run, tls, side):
    async def main() -> None:
        left, right = tcp_sockets()
        with (
            right,
            pytest.raises(ConnectionAbortedError, match=r"SSL handshake is taking longer than 0\.1 seconds"),
        ):
            await within(begin(side, tls, Log, left, ssl_handshake_timeout=0.1))

    run(main())


@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
def test_timeouts_must_be_positive(run, tls, name):
    if OLD_SSLPROTO:
        pytest.skip("3.10 does not check")

    async def main() -> None:
        left, right = tcp_sockets()
        with left, right, pytest.raises(ValueError, match="should be a positive number, got 0"):
            await begin("client", tls, Log, left, **{name: 0})

    run(main())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_what_get_extra_info_knows(run, tls, version):
    async def main() -> None:
        client, server = tls.make_client(), tls.make_server()
        client.maximum_version = client.minimum_version = version
        client.set_alpn_protocols(["h2", "http/1.1"])
        server.set_alpn_protocols(["http/1.1"])
        left, right = tcp_sockets()
        loop = asyncio.get_running_loop()
        (one, log), (two, other) = await within(
            asyncio.gather(
                loop.create_connection(Log, sock=left, ssl=client, server_hostname="localhost"),
                loop.connect_accepted_socket(Log, sock=right, ssl=server),
            )
        )
        for transport, context in ((one, client), (two, server)):
            ssl_object = transport.get_extra_info("ssl_object")
            assert isinstance(ssl_object, ssl.SSLObject)
            assert ssl_object.version() == version.name.replace("_", ".")
            assert ssl_object.selected_alpn_protocol() == "http/1.1"
            assert transport.get_extra_info("sslcontext") is context
            assert transport.get_extra_info("cipher") == ssl_object.cipher()
            assert transport.get_extra_info("compression") is None
            assert transport.get_extra_info("socket").fileno() >= 0
            assert transport.get_extra_info("peername")
            assert transport.get_extra_info("nothing", 7) == 7
        assert ("DNS", "localhost") in one.get_extra_info("peercert")["subjectAltName"]
        assert one.get_extra_info("peercert") is one.get_extra_info("peercert")
        assert not two.get_extra_info("peercert")
        one.close()
        assert await within(log.lost) is None
        await within(other.lost)
        assert one.get_extra_info("cipher")
        assert one.get_extra_info("sslcontext") is client

    run(main())


def test_a_server_chooses_the_context_by_name(run, tls):
    async def main() -> None:
        outer, inner = tls.make_server(), tls.make_server()
        inner.set_alpn_protocols(["inner"])
        asked: list[Any] = []

        def choose(ssl_object: ssl.SSLObject, name: str, context: ssl.SSLContext) -> None:
            asked.append((name, context is outer))
            ssl_object.context = inner

        outer.sni_callback = choose
        server_tls = types.SimpleNamespace(server=outer, client=tls.client)
        async with await join("server", server_tls) as joined:
            assert asked == [("localhost", True)]
            await joined.peer.send(b"hello")
            assert await joined.log.got(5) == b"hello"
            assert joined.transport.get_extra_info("ssl_object").context is inner

    run(main())


def test_a_callback_of_the_handshake_that_raises(run, tls, monkeypatch):
    async def main() -> None:
        context = tls.make_server()

        def choose(*_: object) -> None:
            raise RuntimeError("no")

        context.sni_callback = choose
        left, right = tcp_sockets()
        peer = Peer(right, tls.client, server_side=False)
        making = begin("server", types.SimpleNamespace(server=context), Log, left)
        with pytest.raises((ssl.SSLError, OSError)):
            await peer.handshake()
        with pytest.raises(ssl.SSLError, match="CALLBACK_FAILED"):
            await within(making)
        right.close()

    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    run(main())
    assert [type(each.exc_value) for each in unraisable] == [RuntimeError]


def test_client_certificate(run, tls, tls_files):
    async def main() -> None:
        client, server = tls.make_client(), tls.make_server()
        client.load_cert_chain(tls_files[0])
        server.load_verify_locations(tls_files[1])
        server.verify_mode = ssl.CERT_REQUIRED
        contexts = types.SimpleNamespace(client=client, server=server)
        async with await join("server", contexts) as joined:
            assert joined.transport.get_extra_info("peercert")["subjectAltName"]

    run(main())


@pytest.mark.old_sslproto("does not answer a farewell")
def test_session_resumption(run, tls):
    async def main() -> None:
        client = tls.make_client()
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        server = await asyncio.get_running_loop().create_server(Log, "127.0.0.1", 0, ssl=tls.server)
        address = server.sockets[0].getsockname()
        session = None
        for reused in (False, True):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            sock = socket.socket()
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, address)
            peer = Peer(sock, client, server_side=False)
            peer.incoming, peer.outgoing = incoming, outgoing
            peer.tls = client.wrap_bio(incoming, outgoing, server_hostname="localhost", session=session)
            await peer.handshake()
            session = peer.tls.session
            assert peer.tls.session_reused is reused
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.unwrap()
            await within(peer.drive(peer.tls.unwrap))
            sock.close()
        server.close()
        await within(server.wait_closed())

    run(main())


def test_keys_are_logged(run, tls, tmp_path):
    async def main() -> None:
        client = tls.make_client()
        client.keylog_filename = str(tmp_path / "keys")
        # Not a class: free-threaded 3.13 keeps those for good, and this one would keep the keys' file open.
        contexts = types.SimpleNamespace(client=client, server=tls.server)
        async with await join("client", contexts):
            pass
        assert "CLIENT_TRAFFIC_SECRET_0" in (tmp_path / "keys").read_text()

    run(main())


@pytest.mark.parametrize("protocol", [Log, BufferedLog])
def test_nothing_is_delivered_while_reading_is_paused(run, tls, side, protocol):
    async def main() -> None:
        async with await join(side, tls, protocol) as joined:
            data = pattern(300_000)
            assert joined.transport.is_reading()
            joined.transport.pause_reading()
            joined.transport.pause_reading()
            assert not joined.transport.is_reading()
            sending = asyncio.ensure_future(joined.peer.send(data))
            for _ in range(50):
                await turns(1)
            assert joined.log.received == b""
            joined.transport.resume_reading()
            joined.transport.resume_reading()
            assert await joined.log.got(len(data)) == data
            await sending

    run(main())


def test_a_protocol_that_pauses_in_each_delivery(run, tls, side):
    class Hesitant(Log):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.transport.resume_reading)

    async def main() -> None:
        async with await join(side, tls, Hesitant) as joined:
            data = pattern(500_000)
            sending = asyncio.ensure_future(joined.peer.send(data))
            assert await joined.log.got(len(data)) == data
            await sending

    run(main())


def test_a_paused_reader_stops_the_peer_and_gets_all_at_its_end(run, tls, side):
    async def main() -> None:
        async with await join(side, tls) as joined:
            joined.transport.pause_reading()
            data = pattern(100_000)
            await joined.peer.send(data)
            joined.peer.sock.shutdown(socket.SHUT_WR)
            for _ in range(20):
                await turns(1)
            assert joined.log.events == ["made"]
            joined.transport.resume_reading()
            assert await within(joined.log.lost) is None
            assert joined.log.received == data

    run(main())


def test_writing_pauses_and_resumes_over_the_whole_stack(run, tls, side):
    async def main() -> None:
        async with await join(side, tls) as joined:
            data = pattern(65536)
            count = 0
            while not joined.log.paused:
                joined.transport.write(data)
                count += 1
                await turns(1)
                assert count < 2000
            assert joined.transport.get_write_buffer_size() > 0
            got = await within(joined.peer.receive(count * len(data)))
            assert got == data * count
            await joined.log.when(lambda: not joined.log.paused)

    run(main())


@pytest.mark.only_zloop("asyncio encrypts and keeps all of it")
def test_a_huge_write_is_encrypted_as_it_leaves(run, engine, tls, side):
    if engine == "asyncio":
        pytest.skip("sslproto encrypts all at once")

    async def main() -> None:
        async with await join(side, tls) as joined:
            data = b"x" * 64_000_000
            gc.collect()
            before = rss_bytes()
            joined.transport.write(data)
            await turns(3)
            assert joined.transport.get_write_buffer_size() > 32_000_000
            assert rss_bytes() - before < 16_000_000

    run(main())


def test_abort_and_write_after_it(run, tls, side):
    async def main() -> None:
        async with await join(side, tls) as joined:
            joined.transport.write(b"x" * 1000)
            joined.transport.abort()
            for _ in range(3):
                joined.transport.write(b"dropped")
            joined.transport.close()
            assert await within(joined.log.lost) is None
            assert joined.log.lost_count == 1

    run(main())


@pytest.mark.parametrize("wrong", ["text", None, 5, ["list"]])
def test_write_refuses_what_is_not_bytes(run, tls, wrong):
    async def main() -> None:
        async with await join("client", tls) as joined:
            with pytest.raises(TypeError, match="data: expecting a bytes-like instance, got "):
                joined.transport.write(wrong)
            with pytest.raises(NotImplementedError):
                joined.transport.write_eof()
            assert not joined.transport.can_write_eof()
            joined.transport.write(b"")
            joined.transport.writelines([])
            joined.transport.writelines([b"", memoryview(b"ab"), bytearray(b"c")])
            assert await joined.peer.receive(3) == b"abc"

    run(main())


def test_writes_before_and_inside_callbacks_keep_their_order(run, tls, side):
    class Eager(Log):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            for index in range(100):
                transport.write(b"%04d" % index)

        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.write(b"resumed!")

    async def main() -> None:
        async with await join(side, tls, Eager, small_buffers=True) as joined:
            assert await joined.peer.receive(400) == b"".join(b"%04d" % index for index in range(100))
            joined.transport.set_write_buffer_limits(high=100_000)
            data = pattern(2_000_000)
            # sslproto counts what it has not handed on yet: the first piece fills what lies below.
            joined.transport.write(data[:1_000_000])
            joined.transport.write(data[1_000_000:])
            await joined.log.when(lambda: "pause" in joined.log.events)
            assert await within(joined.peer.receive(len(data) + 8)) == data + b"resumed!"

    run(main())


@pytest.mark.old_sslproto("tells nobody that connection_made failed")
@pytest.mark.parametrize("method", ["connection_made", "data_received"])
def test_exceptions_of_the_protocol_end_the_connection(run, tls, side, method):
    class Broken(Log):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if method == "connection_made":
                raise ZeroDivisionError("broken")

        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError("broken")

    async def main() -> None:
        reports: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        left, right = tcp_sockets()
        peer = Peer(right, tls.server if side == "client" else tls.client, server_side=side == "client")
        logs: list[Broken] = []

        def factory() -> Broken:
            logs.append(Broken())
            return logs[0]

        making = begin(side, tls, factory, left)
        with contextlib.suppress(ssl.SSLError, OSError):
            await peer.handshake()
        if method == "connection_made":
            with pytest.raises(ZeroDivisionError):
                await within(making)
        else:
            await within(making)
            await peer.send(b"x")
        await within(asyncio.wait([logs[0].lost]))
        assert isinstance(logs[0].lost.result(), ZeroDivisionError)
        assert [type(each["exception"]) for each in reports] == [ZeroDivisionError]
        right.close()

    run(main())


@pytest.mark.only_zloop("asyncio's start_tls() leaves them in the reader")
@pytest.mark.parametrize("early", [False, True])
def test_a_client_hello_that_a_reader_holds(run, tls, early):
    """It came in one segment with the last plain line, or comes by itself."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        reader, writer = await asyncio.open_connection(sock=left)
        peer = Peer(right, tls.client, server_side=False)
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        await peer.raw(b"STARTTLS\n" + (peer.outgoing.read() if early else b""))
        assert await within(reader.readline()) == b"STARTTLS\n"
        upgrading = loop.create_task(
            loop.start_tls(writer.transport, writer.transport.get_protocol(), tls.server, server_side=True)
        )
        await peer.handshake()
        transport = await within(upgrading)
        await peer.send(b"secret\n")
        assert await within(reader.readline()) == b"secret\n"
        transport.write(b"answer")
        assert await peer.receive(6) == b"answer"
        transport.abort()
        await turns(3)
        right.close()

    run(main())


@pytest.mark.parametrize("side_of_tls", ["client", "server"])
def test_start_tls_over_streams(run, tls, side_of_tls):
    if sys.version_info < (3, 11):
        pytest.skip("StreamWriter.start_tls is new in 3.11")

    async def main() -> None:
        left, right = tcp_sockets()
        reader, writer = await asyncio.open_connection(sock=left)
        peer = Peer(
            right, tls.server if side_of_tls == "client" else tls.client, server_side=side_of_tls == "client"
        )
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(right, b"220 ready\r\n")
        assert await within(reader.readline()) == b"220 ready\r\n"
        writer.write(b"STARTTLS\r\n")
        assert await loop.sock_recv(right, 100) == b"STARTTLS\r\n"
        if side_of_tls == "client":
            upgrading = loop.create_task(writer.start_tls(tls.client, server_hostname="localhost"))
        else:
            # Newer versions know by `_client_connected_cb` which side a writer is on.
            protocol = writer.transport.get_protocol()
            upgrading = loop.create_task(
                loop.start_tls(writer.transport, protocol, tls.server, server_side=True)
            )
        await peer.handshake()
        new = await within(upgrading)
        transport = writer.transport if side_of_tls == "client" else new
        transport.write(b"secret")
        assert await peer.receive(6) == b"secret"
        await peer.send(b"answer")
        assert await within(reader.readexactly(6)) == b"answer"
        transport.abort()
        await turns(5)
        right.close()

    run(main())


@pytest.mark.only_zloop("asyncio lost these bytes until lately")
def test_start_tls_with_the_client_hello_already_read(run, tls):
    """A PROXY line and a ClientHello in one segment."""

    async def main() -> None:
        left, right = tcp_sockets()
        reader, writer = await asyncio.open_connection(sock=left)
        peer = Peer(right, tls.client, server_side=False)
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        await peer.raw(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + peer.outgoing.read())
        assert (await within(reader.readline())).startswith(b"PROXY")
        loop = asyncio.get_running_loop()
        protocol = writer.transport.get_protocol()
        upgrading = loop.create_task(loop.start_tls(writer.transport, protocol, tls.server, server_side=True))
        await peer.handshake()
        transport = await within(upgrading)
        await peer.send(b"hello")
        assert await within(reader.readexactly(5)) == b"hello"
        transport.abort()
        await turns(5)
        right.close()

    run(main())


@pytest.mark.only_zloop("asyncio fails an assertion")
def test_start_tls_while_writing_is_paused(run, tls):
    async def main() -> None:
        left, right = tcp_sockets(small_buffers=True)
        loop = asyncio.get_running_loop()
        transport, log = await loop.create_connection(Log, sock=left)
        plain = pattern(500_000)
        transport.write(plain)
        assert log.paused
        peer = Peer(right, tls.server, server_side=True)
        upgrading = loop.create_task(loop.start_tls(transport, log, tls.client, server_hostname="localhost"))
        await turns(3)
        got = bytearray()
        while len(got) < len(plain):
            got += await within(loop.sock_recv(right, len(plain) - len(got)))
        assert got == plain
        await peer.handshake()
        upper = await within(upgrading)
        await log.when(lambda: not log.paused)
        upper.write(b"secret")
        assert await peer.receive(6) == b"secret"
        upper.abort()
        await within(log.lost)
        right.close()

    run(main())


@pytest.mark.old_sslproto("does not end the protocol")
@pytest.mark.parametrize("how", ["garbage", "end", "cancel"])
def test_connection_lost_once_after_a_failed_start_tls(run, tls, engine, how):
    if engine == "asyncio" and how != "garbage":
        pytest.skip("sslproto does not call it while the handshake runs")

    async def main() -> None:
        left, right = tcp_sockets()
        loop = asyncio.get_running_loop()
        transport, log = await loop.create_connection(Log, sock=left)
        upgrading = loop.create_task(loop.start_tls(transport, log, tls.client, server_hostname="localhost"))
        await turns(4)
        if how == "garbage":
            await loop.sock_sendall(right, b"junk" * 100)
        elif how == "end":
            right.close()
        else:
            upgrading.cancel()
        with pytest.raises((OSError, asyncio.CancelledError)):
            await within(upgrading)
        await within(asyncio.wait([log.lost]))
        await turns(5)
        assert log.lost_count == 1
        right.close()

    run(main())


@pytest.mark.old_sslproto("cannot be upgraded itself")
def test_tls_inside_tls(run, tls):
    async def main() -> None:
        async with connected("tls", tls=tls, server=Echo) as pair:
            loop = asyncio.get_running_loop()
            inner, other = Log(), Echo()
            one, two = await within(
                asyncio.gather(
                    loop.start_tls(pair.client_transport, inner, tls.client, server_hostname="localhost"),
                    loop.start_tls(pair.server_transport, other, tls.server, server_side=True),
                )
            )
            other.transport = two
            data = pattern(200_000)
            one.write(data)
            assert await inner.got(len(data)) == data
            one.abort()
            two.abort()
            pair.client.lost.set_result(None) if not pair.client.lost.done() else None
            pair.server.lost.set_result(None) if not pair.server.lost.done() else None
            await within(asyncio.wait([inner.lost, other.lost]))

    run(main())


def test_no_cycle_keeps_a_connection(run, tls):
    """With the collector off, what was closed must be gone."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(4))
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls.server)
        port = server.sockets[0].getsockname()[1]
        context = tls.make_client()
        watched = []
        for _ in range(20):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname="localhost"
            )
            watched.append(weakref.ref(writer.transport))
            watched.append(weakref.ref(writer.get_extra_info("ssl_object")))
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
            assert await reader.read() == b""
            writer.close()
            await within(writer.wait_closed())
        watched.append(weakref.ref(context))
        del reader, writer, context
        server.close()
        await within(server.wait_closed())
        await until(lambda: not any(each() for each in watched))

    gc.collect()
    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_every_keyword_of_create_connection(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Log, "127.0.0.1", 0, ssl=tls.server)
        port = server.sockets[0].getsockname()[1]
        transport, log = await within(
            loop.create_connection(
                Log,
                "localhost",
                port,
                ssl=tls.client,
                family=socket.AF_INET,
                local_addr=("127.0.0.1", 0),
                happy_eyeballs_delay=0.1,
                ssl_handshake_timeout=50,
            )
        )
        assert transport.get_extra_info("sockname")[0] == "127.0.0.1"
        transport.close()
        await within(log.lost)
        server.close()
        await within(server.wait_closed())

    run(main())


def test_an_ssl_object_outlives_its_connection(run, tls):
    async def main() -> Any:
        async with await join("client", tls) as joined:
            return joined.transport.get_extra_info("ssl_object")

    ssl_object = run(main())
    gc.collect()
    assert ssl_object.version() == "TLSv1.3"
    with pytest.raises((ssl.SSLError, OSError)):
        ssl_object.read(1)


@pytest.mark.only_zloop("asyncio names its own class")
def test_an_unclosed_transport_is_reported(loop, tls):
    async def main() -> None:
        left, right = tcp_sockets()
        peer = Peer(right, tls.server, server_side=True)
        making = begin("client", tls, Log, left)
        await peer.handshake()
        await within(making)
        right.close()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.run_until_complete(main())
        loop.close()
        gc.collect()
    assert any("unclosed transport" in str(each.message) for each in caught)
