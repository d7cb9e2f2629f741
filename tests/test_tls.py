"""TLS connections: handshakes, what they tell, shutdown, and peers that misbehave."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from harness import PATIENCE_S, Echo, Log, Tls, connected, pattern, reset, tcp_sockets, turns, until, within

needs_311 = pytest.mark.skipif(sys.version_info < (3, 11), reason="ssl_shutdown_timeout came with 3.11")
old_tls = pytest.mark.asyncio_bug("rewritten in 3.11", when=sys.version_info < (3, 11), run=False)


class Peer:
    """The other end of a TLS connection as a blocking socket in a thread, so that it can misbehave."""

    def __init__(self, sock: socket.socket, script: Callable[[socket.socket], None]) -> None:
        sock.setblocking(True)
        sock.settimeout(PATIENCE_S)
        self.problem: BaseException | None = None
        self._script = script
        self._thread = threading.Thread(target=self._work, args=[sock])
        self._thread.start()

    def _work(self, sock: socket.socket) -> None:
        try:
            self._script(sock)
        except BaseException as exc:
            self.problem = exc
        finally:
            sock.close()

    async def done(self) -> None:
        await until(lambda: not self._thread.is_alive())
        if self.problem is not None:
            raise self.problem


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_versions_and_what_the_transport_tells(run, tls, version):
    async def main() -> None:
        mine = Tls(tls.certificate, tls.authority)
        for context in (mine.client, mine.server):
            context.minimum_version = context.maximum_version = version
        async with connected("tls", tls=mine, server=Echo) as pair:
            transport = pair.client_transport
            assert isinstance(transport, asyncio.Transport)
            ssl_object = transport.get_extra_info("ssl_object")
            assert isinstance(ssl_object, ssl.SSLObject)
            assert ssl_object.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
            assert transport.get_extra_info("sslcontext") is mine.client
            assert transport.get_extra_info("cipher") == ssl_object.cipher()
            assert transport.get_extra_info("peercert")["subjectAltName"]
            assert transport.get_extra_info("compression") is None
            assert transport.get_extra_info("peername")[0] == "127.0.0.1"
            assert isinstance(transport.get_extra_info("socket"), asyncio.trsock.TransportSocket)
            assert ssl_object.getpeercert(binary_form=True)
            assert ssl_object.server_side is False
            assert pair.server_transport.get_extra_info("ssl_object").server_side is True
            assert repr(transport)
            data = pattern(1_000_000)
            transport.write(data)
            assert await pair.client.got(len(data)) == data

    run(main())


def test_alpn_and_sni(run, tls):
    async def main() -> None:
        mine = Tls(tls.certificate, tls.authority)
        names: list[str | None] = []
        mine.client.set_alpn_protocols(["h2", "http/1.1"])
        mine.server.set_alpn_protocols(["http/1.1"])
        mine.server.sni_callback = lambda _object, name, _context: names.append(name)
        async with connected("tls", tls=mine) as pair:
            for transport in (pair.client_transport, pair.server_transport):
                assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            assert names == ["localhost"]

    run(main())


def test_client_certificates(run, tls):
    async def main() -> None:
        mine = Tls(tls.certificate, tls.authority)
        mine.server.verify_mode = ssl.CERT_REQUIRED
        mine.server.load_verify_locations(tls.authority)
        mine.client.load_cert_chain(tls.certificate)
        async with connected("tls", tls=mine) as pair:
            assert pair.server_transport.get_extra_info("peercert")["subjectAltName"]

    run(main())


def test_sessions_can_be_read(run, tls):
    async def main() -> None:
        mine = Tls(tls.certificate, tls.authority)
        mine.client.maximum_version = ssl.TLSVersion.TLSv1_2
        async with connected("tls", tls=mine) as pair:
            ssl_object = pair.client_transport.get_extra_info("ssl_object")
            assert ssl_object.session is not None
            assert ssl_object.session_reused is False

    run(main())


def test_an_unknown_authority_is_refused(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        lost: list[Log] = []

        def factory() -> Log:
            lost.append(Log())
            return lost[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=tls.server)
        address = server.sockets[0].getsockname()
        for _ in range(3):
            with pytest.raises(ssl.SSLCertVerificationError):
                await within(
                    loop.create_connection(
                        Log, *address, ssl=ssl.create_default_context(), server_hostname="localhost"
                    )
                )
        with pytest.raises(ssl.SSLCertVerificationError):
            await within(loop.create_connection(Log, *address, ssl=tls.client, server_hostname="wrong.name"))
        # and a good one passes
        transport, log = await within(
            loop.create_connection(Log, *address, ssl=tls.client, server_hostname="localhost")
        )
        transport.close()
        await within(log.lost)
        server.close()
        await within(server.wait_closed())

    reports: list[Any] = []
    run(main(), reports=reports)
    # what the servers side says about a client that hung up is at most an SSL error with its transport
    assert all(isinstance(report.get("exception"), (ssl.SSLError, OSError)) for report in reports)


def test_the_host_name_is_taken_from_the_address(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=tls.server)
        port = server.sockets[0].getsockname()[1]
        transport, log = await within(
            loop.create_connection(Log, "localhost", port, ssl=tls.client, family=socket.AF_INET)
        )
        assert transport.get_extra_info("ssl_object").server_hostname == "localhost"
        transport.write(b"x")
        assert await log.got(1) == b"x"
        transport.close()
        await within(log.lost)
        server.close()
        await within(server.wait_closed())

    run(main())


def test_argument_errors(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        with pytest.raises(ValueError):
            await loop.create_connection(Log, sock=left, ssl=tls.client)  # which name?
        with pytest.raises(ValueError):
            await loop.create_connection(
                Log, sock=left, ssl=tls.client, server_hostname="localhost", ssl_handshake_timeout=0
            )
        left.close()
        right.close()

    run(main())


def test_a_silent_peer_runs_into_the_handshake_timeout(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        with pytest.raises(ConnectionAbortedError, match="handshake"):
            await within(
                loop.create_connection(
                    Log, sock=left, ssl=tls.client, server_hostname="localhost", ssl_handshake_timeout=0.05
                )
            )
        right.setblocking(True)
        right.settimeout(60)
        while right.recv(65536):  # the hello, then the end
            pass
        right.close()

    run(main())


def test_a_peer_that_speaks_something_else(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        right.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(ssl.SSLError):
            await within(loop.create_connection(Log, sock=left, ssl=tls.client, server_hostname="localhost"))
        right.close()

    run(main())


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_peer_that_leaves_during_the_handshake(run, tls, how):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        connecting = asyncio.ensure_future(
            loop.create_connection(Log, sock=left, ssl=tls.client, server_hostname="localhost")
        )
        await turns(5)
        if how == "close":
            right.setblocking(True)
            right.recv(65536)
            right.close()
        else:
            reset(right)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await within(connecting)

    run(main())


def test_a_cancelled_handshake_leaves_nothing(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for delay in (0, 0.001, 0.01):
            left, right = tcp_sockets()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(
                    loop.create_connection(Log, sock=left, ssl=tls.client, server_hostname="localhost"), delay
                )
            await turns(5)
            left.close()  # still the test's own where the coroutine never began
            right.setblocking(True)
            right.settimeout(60)
            try:
                while right.recv(65536):
                    pass
            except ConnectionResetError:
                pass
            right.close()

    run(main())


# --- shutdown ----


@old_tls
def test_close_says_goodbye(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        farewell: list[bytes] = []

        def script(sock: socket.socket) -> None:
            with tls.server.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as secure:
                farewell.append(secure.recv(100))
                farewell.append(secure.recv(100))  # an SSLEOFError without close_notify
                secure.unwrap().close()

        peer = Peer(right, script)
        transport, log = await within(
            loop.create_connection(Log, sock=left, ssl=tls.client, server_hostname="localhost")
        )
        transport.write(b"last words")
        transport.close()
        assert transport.is_closing()
        assert await within(log.lost) is None
        await peer.done()
        assert farewell == [b"last words", b""]

    run(main())


def test_the_peer_says_goodbye(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()

        def script(sock: socket.socket) -> None:
            with tls.server.wrap_socket(sock, server_side=True) as secure:
                secure.sendall(b"last words")
                secure.unwrap().close()

        peer = Peer(right, script)
        _, log = await within(
            loop.create_connection(Log, sock=left, ssl=tls.client, server_hostname="localhost")
        )
        assert await log.got(10) == b"last words"
        assert await within(log.lost) is None
        assert log.events == ["made", "data", "eof", "lost"]
        await peer.done()

    if sys.version_info < (3, 11):
        pytest.skip("3.10 does not report the peer's farewell")
    run(main())


@old_tls
def test_a_peer_that_ends_without_goodbye(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()

        def script(sock: socket.socket) -> None:
            with tls.server.wrap_socket(sock, server_side=True) as secure:
                secure.sendall(b"rude")

        peer = Peer(right, script)
        _, log = await within(
            loop.create_connection(Log, sock=left, ssl=tls.client, server_hostname="localhost")
        )
        assert await log.got(4) == b"rude"
        exc = await within(log.lost)
        assert exc is None or isinstance(exc, OSError)
        assert log.lost_count == 1
        await peer.done()

    run(main())


@needs_311
def test_a_peer_that_never_answers_the_goodbye(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        over = threading.Event()

        def script(sock: socket.socket) -> None:
            with tls.server.wrap_socket(sock, server_side=True):
                over.wait(PATIENCE_S)

        peer = Peer(right, script)
        transport, log = await within(
            loop.create_connection(
                Log, sock=left, ssl=tls.client, server_hostname="localhost", ssl_shutdown_timeout=0.05
            )
        )
        started = loop.time()
        transport.close()
        exc = await within(log.lost)
        assert loop.time() - started < 5
        assert exc is None or isinstance(exc, TimeoutError)
        over.set()
        await peer.done()

    reports: list[Any] = []
    run(main(), reports=reports)
    assert all(isinstance(report["exception"], TimeoutError) for report in reports)


def test_abort_is_at_once(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        over = threading.Event()

        def script(sock: socket.socket) -> None:
            with tls.server.wrap_socket(sock, server_side=True):
                over.wait(PATIENCE_S)

        peer = Peer(right, script)
        transport, log = await within(
            loop.create_connection(Log, sock=left, ssl=tls.client, server_hostname="localhost")
        )
        transport.write(bytes(5_000_000))
        transport.abort()
        assert await within(log.lost) is None
        over.set()
        await peer.done()

    run(main())


def test_a_reset_arrives_as_an_error(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()

        def script(sock: socket.socket) -> None:
            secure = tls.server.wrap_socket(sock, server_side=True)
            secure.recv(1)
            reset(secure)

        peer = Peer(right, script)
        transport, log = await within(
            loop.create_connection(Log, sock=left, ssl=tls.client, server_hostname="localhost")
        )
        transport.write(b"x")
        assert isinstance(await within(log.lost), ConnectionResetError)
        await peer.done()

    run(main())


def test_garbage_after_the_handshake_is_an_ssl_error(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        over = threading.Event()

        def script(sock: socket.socket) -> None:
            secure = tls.server.wrap_socket(sock, server_side=True)
            secure.recv(1)
            raw = socket.socket(fileno=secure.detach())
            raw.sendall(b"this is no TLS record at all, not even a little")
            over.wait(PATIENCE_S)
            raw.close()

        peer = Peer(right, script)
        transport, log = await within(
            loop.create_connection(Log, sock=left, ssl=tls.client, server_hostname="localhost")
        )
        transport.write(b"x")
        assert isinstance(await within(log.lost), ssl.SSLError)
        over.set()
        await peer.done()

    reports: list[Any] = []
    run(main(), reports=reports)
    assert all(isinstance(report["exception"], ssl.SSLError) for report in reports)


def test_records_that_arrive_in_pieces(run, tls):
    """Every TLS record is cut into single bytes on its way."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, middle_left = tcp_sockets()
        middle_right, right = tcp_sockets()

        async def forward(source: socket.socket, target: socket.socket) -> None:
            while data := await loop.sock_recv(source, 65536):
                for index in range(0, len(data), 1 + len(data) // 50):
                    await loop.sock_sendall(target, data[index : index + 1 + len(data) // 50])
                    await turns(1)
            target.shutdown(socket.SHUT_WR)

        forwarding = [
            asyncio.ensure_future(forward(middle_left, middle_right)),
            asyncio.ensure_future(forward(middle_right, middle_left)),
        ]
        (client, client_log), (_, server_log) = await within(
            asyncio.gather(
                loop.create_connection(Log, sock=left, ssl=tls.client, server_hostname="localhost"),
                loop.connect_accepted_socket(Echo, sock=right, ssl=tls.server),
            )
        )
        data = pattern(200_000)
        client.write(data)
        assert await client_log.got(len(data)) == data
        client.close()
        await within(client_log.lost)
        await within(server_log.lost)
        for task in forwarding:
            task.cancel()
        await asyncio.wait(forwarding)
        middle_left.close()
        middle_right.close()

    run(main())


def test_many_connections(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=tls.server)
        address = server.sockets[0].getsockname()

        async def one(number: int) -> None:
            transport, log = await loop.create_connection(
                Log, *address, ssl=tls.client, server_hostname="localhost"
            )
            data = pattern(20_000, seed=number)
            transport.write(data)
            assert await log.got(len(data)) == data
            transport.close()
            await within(log.lost)

        for _ in range(3):
            await within(asyncio.gather(*map(one, range(10))))
        server.close()
        await within(server.wait_closed())

    run(main())


@old_tls
def test_a_finished_connection_keeps_nothing_alive(run, tls):
    async def main() -> None:
        mine = Tls(tls.certificate, tls.authority)
        alive: list[weakref.ref[Any]] = [weakref.ref(mine.client), weakref.ref(mine.server)]
        async with connected("tls", tls=mine, server=Echo) as pair:
            pair.client_transport.write(b"x")
            await pair.client.got(1)
            for end in (pair.client, pair.server):
                alive += [weakref.ref(end), weakref.ref(end.transport)]
            pair.client_transport.close()
            await within(pair.client.lost)
            await within(pair.server.lost)
        del pair, end, mine
        await turns(3)
        gc.collect()
        assert [ref() for ref in alive if ref() is not None] == []

    run(main())
