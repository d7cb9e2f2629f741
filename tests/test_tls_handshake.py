"""Handshakes that fail, and what each side is told: on asyncio and on both engines."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Log, Tls, connected, reset, tcp_sockets, turns, within
from tls_peer import OLD_SSLPROTO, Peer, begin, join, reason_of

pytestmark = pytest.mark.usefixtures("engine")

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

#: X509_V_ERR_*
NO_CRL, NOT_YET_VALID, EXPIRED, UNKNOWN_CHAIN, NO_ISSUER, WRONG_HOST, WRONG_ADDRESS = 3, 9, 10, 19, 20, 62, 64


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


class Contexts:
    """A client's and a server's context of one version."""

    def __init__(self, tls: Tls, version: str) -> None:
        self.client, self.server = tls.make_client(), tls.make_server()
        for context in (self.client, self.server):
            context.minimum_version = context.maximum_version = VERSIONS[version]

    def of(self, side: str) -> ssl.SSLContext:
        return self.client if side == "client" else self.server


@pytest.fixture(scope="session")
def dated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Certificates that nobody may accept today, and the authority that signed them."""
    trustme = pytest.importorskip("trustme", reason="makes certificates of any date")
    folder = tmp_path_factory.mktemp("dated")
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority"))
    for name, start, end in (
        ("good", now - day, now + day),
        ("expired", now - 2 * day, now - day),
        ("early", now + day, now + 2 * day),
    ):
        certificate = authority.issue_cert("localhost", not_before=start, not_after=end)
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / name))
    return {path.name: path for path in folder.iterdir()}


async def fail(
    side: str, contexts: Any, *, hostname: str = "localhost"
) -> tuple[BaseException | None, BaseException | None]:
    """What a handshake that cannot succeed raises: for the loop's side, and for the scripted one."""
    left, right = tcp_sockets()
    peer = Peer(right, contexts.of("server" if side == "client" else "client"), server_side=side == "client")
    loop = asyncio.get_running_loop()
    if side == "client":
        coroutine = loop.create_connection(Log, sock=left, ssl=contexts.client, server_hostname=hostname)
        making = loop.create_task(coroutine)
    else:
        making = begin(side, contexts, Log, left)
    theirs: BaseException | None = None
    try:
        await peer.handshake()
        # The client of TLS 1.3 is done before the server has looked at its certificate.
        await peer.drive(lambda: peer.tls.read(1))
    except (ssl.SSLError, OSError) as error:
        theirs = error
    with contextlib.suppress(OSError):
        await peer.flush()
    try:
        transport, log = await within(making)
    except (ssl.SSLError, OSError) as error:
        right.close()
        return error, theirs
    ours = await within(log.lost)
    assert transport.is_closing()
    assert log.lost_count == 1
    right.close()
    return ours, theirs


def assert_told(error: BaseException | None, engine: str, alert: str = "ALERT") -> None:
    """The other side knows the reason by an alert. sslproto leaves without one."""
    if engine == "native":
        assert isinstance(error, ssl.SSLError)
        assert alert in (error.reason or "")
    else:
        assert isinstance(error, OSError)


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        ("expired", EXPIRED),
        ("early", NOT_YET_VALID),
        ("unknown authority", NO_ISSUER),
        ("no list of revoked ones", NO_CRL),
        ("wrong name", WRONG_HOST),
        ("wrong address", WRONG_ADDRESS),
    ],
)
def test_a_servers_certificate_is_refused(run, tls, engine, dated, version, trouble, code):
    async def main() -> None:
        contexts = Contexts(tls, version)
        hostname = "localhost"
        if trouble in dated:
            contexts.server.load_cert_chain(dated[trouble])
            contexts.client.load_verify_locations(dated["authority"])
        elif trouble == "unknown authority":
            contexts.server.load_cert_chain(dated["good"])
        elif trouble == "no list of revoked ones":
            contexts.client.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        else:
            hostname = "other.example" if trouble == "wrong name" else "10.1.2.3"
        ours, theirs = await fail("client", contexts, hostname=hostname)
        assert type(ours) is ssl.SSLCertVerificationError
        assert (ours.verify_code, ours.reason, ours.library) == (code, "CERTIFICATE_VERIFY_FAILED", "SSL")
        assert ours.verify_message
        assert ours.verify_message in str(ours)
        assert isinstance(ours, ValueError)
        assert_told(theirs, engine)

    run(main())


@pytest.mark.old_sslproto("its transport never says that it is closing")
@pytest.mark.parametrize(
    ("trouble", "code"),
    [("none", None), ("expired", EXPIRED), ("early", NOT_YET_VALID), ("other", UNKNOWN_CHAIN)],
)
def test_a_clients_certificate_is_refused(run, tls, engine, tls_files, dated, side, version, trouble, code):
    """Of TLS 1.3 a client hears it only after its handshake: as the end of a connection that was made."""

    async def main() -> None:
        contexts = Contexts(tls, version)
        contexts.server.verify_mode = ssl.CERT_REQUIRED
        contexts.server.load_verify_locations(dated["authority"])
        if trouble in dated:
            contexts.client.load_cert_chain(dated[trouble])
        elif trouble == "other":
            contexts.client.load_cert_chain(tls_files[0])
        ours, theirs = await fail(side, contexts)
        server, client = (ours, theirs) if side == "server" else (theirs, ours)
        if code is None:
            assert isinstance(server, ssl.SSLError)
            assert server.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
        else:
            assert isinstance(server, ssl.SSLCertVerificationError)
            # A chain that comes with its authority is told from one without.
            assert server.verify_code in ({UNKNOWN_CHAIN, NO_ISSUER} if code == UNKNOWN_CHAIN else {code})
        assert_told(client, "native" if side == "client" else engine)

    run(main())


def test_nothing_in_common(run, tls, engine, side):
    """No version, no cipher: an error with its reason on both sides."""

    async def main() -> None:
        contexts = Contexts(tls, "1.2")
        contexts.client.minimum_version = contexts.client.maximum_version = VERSIONS["1.3"]
        by_version = dict(zip(("ours", "theirs"), await fail(side, contexts), strict=True))
        contexts = Contexts(tls, "1.2")
        contexts.client.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256")
        contexts.server.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384")
        by_cipher = dict(zip(("ours", "theirs"), await fail(side, contexts), strict=True))
        server, client = ("ours", "theirs") if side == "server" else ("theirs", "ours")
        assert by_version[server].reason == "UNSUPPORTED_PROTOCOL"
        assert by_cipher[server].reason == "NO_SHARED_CIPHER"
        who = "native" if side == "client" else engine
        assert_told(by_version[client], who, "TLSV1_ALERT_PROTOCOL_VERSION")
        assert_told(by_cipher[client], who, "HANDSHAKE_FAILURE")

    run(main())


def test_no_protocol_in_common(run, tls, side, version):
    """ALPN without a match is no failure in the ssl module: nothing is selected."""

    async def main() -> None:
        contexts = Contexts(tls, version)
        contexts.client.set_alpn_protocols(["h2"])
        contexts.server.set_alpn_protocols(["http/1.1"])
        async with await join(side, contexts) as joined:
            assert joined.transport.get_extra_info("ssl_object").selected_alpn_protocol() is None
            assert joined.peer.tls.selected_alpn_protocol() is None
            await joined.peer.send(b"hello")
            assert await joined.log.got(5) == b"hello"

    run(main())


@pytest.mark.parametrize("alert", [ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME, "wrong type"])
def test_a_name_is_refused_by_the_servers_callback(run, tls, engine, side, version, alert, monkeypatch):
    async def main() -> None:
        contexts = Contexts(tls, version)
        contexts.server.sni_callback = lambda *_: alert
        ours, theirs = await fail(side, contexts)
        server, client = (ours, theirs) if side == "server" else (theirs, ours)
        assert isinstance(server, ssl.SSLError)
        assert server.reason == "CALLBACK_FAILED"
        assert_told(
            client,
            "native" if side == "client" else engine,
            "UNRECOGNIZED_NAME" if alert != "wrong type" else "ALERT_INTERNAL_ERROR",
        )

    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    run(main())
    assert [each.exc_type for each in unraisable] == ([TypeError] if alert == "wrong type" else [])


@pytest.mark.parametrize("deed", ["write", "close", "abort"])
def test_the_servers_callback_uses_the_transport(run, tls, engine, deed):
    """The connection is not made yet, but a program can have found its transport."""
    if engine == "asyncio" and deed != "write":
        pytest.skip("sslproto goes on with a handshake that was given up inside it")
    if OLD_SSLPROTO:
        pytest.skip("3.10 has no way to the transport before the handshake ends")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        context = tls.make_server()
        transports: list[Any] = []

        def choose(*_: object) -> None:
            (found,) = transports
            found.write(b"early") if deed == "write" else getattr(found, deed)()

        context.sni_callback = choose
        left, right = tcp_sockets()
        peer = Peer(right, tls.client, server_side=False)
        make = loop._make_ssl_transport

        def keep(*args: Any, **options: Any) -> Any:
            transports.append(make(*args, **options))
            return transports[0]

        loop._make_ssl_transport = keep
        making = loop.create_task(loop.connect_accepted_socket(Log, sock=left, ssl=context))
        if deed == "write":
            await peer.handshake()
            _, log = await within(making)
            assert await peer.receive(5) == b"early"
            transports[0].abort()
            await within(log.lost)
        else:
            with pytest.raises((ssl.SSLError, OSError)):
                await peer.handshake()
                await peer.drive(lambda: peer.tls.read(1) or pytest.fail("the end of the stream is an error"))
            with pytest.raises(ConnectionAbortedError):
                await within(making)
        right.close()

    run(main())


async def stop_after(
    side: str, contexts: Any, limit: int, end: Callable[[socket.socket], None]
) -> tuple[BaseException | None, int]:
    """A handshake whose scripted side ends behind `limit` bytes: what it raises, and the bytes that went."""
    left, right = tcp_sockets()
    loop = asyncio.get_running_loop()
    peer = Peer(right, contexts.of("server" if side == "client" else "client"), server_side=side == "client")
    making = begin(side, contexts, Log, left)
    sent = 0

    async def talk() -> None:
        nonlocal sent
        while True:
            try:
                peer.tls.do_handshake()
                finished = True
            except ssl.SSLWantReadError:
                finished = False
            data = peer.outgoing.read()[: limit - sent]
            await peer.raw(data)
            sent += len(data)
            if finished or sent == limit:
                return
            peer.incoming.write(await within(loop.sock_recv(right, 65536)))

    try:
        await talk()
        if sent < limit:
            right.setblocking(False)
            transport, log = await within(making)
            transport.abort()
            await within(log.lost)
            return None, sent
        end(right)
        transport, log = await within(making)
    except (ssl.SSLError, OSError) as error:
        return error, sent
    finally:
        right.close()
    await within(log.lost)
    return None, sent


@pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["end", "reset"])
def test_a_peer_leaves_at_each_point_of_the_handshake(run, tls, side, version, end):
    async def main() -> None:
        contexts = Contexts(tls, version)
        if version == "1.3":
            contexts.server.num_tickets = 0  # they come when the client has finished
        error, total = await stop_after(side, contexts, 1 << 20, end)
        assert error is None
        total -= 8  # signatures differ in length
        points = {1, 2, 4, 5, 6, 9, total // 2, *range(0, total, total // 25), total}
        for limit in sorted(points):
            error, _ = await stop_after(side, contexts, limit, end)
            expected: Any = ConnectionResetError
            if end is reset:
                # A send can be what finds out.
                expected = (ConnectionResetError, BrokenPipeError)
            assert isinstance(error, expected), (limit, total, error)

    run(main())


@pytest.mark.parametrize(
    ("opening", "reasons"),
    [
        # A message of 16 MiB; many alerts, or changes of ciphers, ahead of anything; records without content.
        (
            b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(16380),
            {"EXCESSIVE_MESSAGE_SIZE", "UNEXPECTED_MESSAGE"},
        ),
        (b"\x15\x03\x01\x00\x02\x01\x5a" * 2000, {"TOO_MANY_WARN_ALERTS", "UNEXPECTED_MESSAGE"}),
        (b"\x14\x03\x03\x00\x01\x01" * 2000, None),
        (b"\x16\x03\x01\x00\x00" * 2000, None),
        (
            b"\x16\x03\x01\xff\xff" + bytes(65535),
            {"PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"},
        ),
        (b"\x80\x2e\x01\x00\x02" + bytes(60), None),
        (bytes(4096), {"WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL", "UNKNOWN_PROTOCOL"}),
    ],
    ids=["huge message", "alerts", "cipher changes", "empty records", "huge record", "SSL 2", "zeros"],
)
def test_hostile_openings(run, tls, side, opening, reasons):
    async def main() -> None:
        left, right = tcp_sockets()
        with right:
            making = begin(side, tls, Log, left)
            await turns(2)
            with contextlib.suppress(ConnectionError):  # it may be cut off in the middle
                await asyncio.get_running_loop().sock_sendall(right, opening)
            with pytest.raises(ssl.SSLError) as caught:
                await within(making)
            assert caught.value.library == "SSL"
            assert reasons is None or reason_of(caught.value) in reasons

    run(main())


@pytest.mark.skipif(OLD_SSLPROTO, reason="3.10 has no ssl_shutdown_timeout")
def test_the_shutdown_timeout_by_name(run, tls, side):
    async def main() -> None:
        async with await join(side, tls, ssl_shutdown_timeout=0.05) as joined:
            joined.transport.close()
            error = await within(joined.log.lost)
            assert type(error) is TimeoutError or type(error) is asyncio.TimeoutError
            assert str(error) == "SSL shutdown timed out"

    run(main())


def test_a_connection_reset_in_the_handshake_has_no_words_of_ours(run, tls):
    """asyncio's ConnectionResetError for an early end carries no message."""

    async def main() -> None:
        left, right = tcp_sockets()
        making = begin("client", tls, Log, left)
        await turns(3)
        right.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError) as caught:
            await within(making)
        right.close()
        assert caught.value.args == ()

    run(main())


@pytest.mark.parametrize("resumed_version", VERSIONS)
def test_a_session_of_the_loops_client_is_resumed(run, tls, resumed_version):
    """`ssl_object.session` of a connection of the loop is good for another one, with a server of the loop."""

    async def main() -> None:
        contexts = Contexts(tls, resumed_version)
        loop = asyncio.get_running_loop()
        logs: list[Log] = []

        def factory() -> Log:
            logs.append(Log())
            return logs[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=contexts.server)
        address = server.sockets[0].getsockname()
        transport, log = await within(
            loop.create_connection(Log, *address, ssl=contexts.client, server_hostname="localhost")
        )
        # The tickets of TLS 1.3 come after the handshake, ahead of the data.
        await within(logs[0].made)
        logs[0].transport.write(b"hello")
        assert await log.got(5) == b"hello"
        ssl_object = transport.get_extra_info("ssl_object")
        session = ssl_object.session
        assert session is not None
        assert session.has_ticket or resumed_version == "1.2"
        assert ssl_object.session_reused is False
        transport.close()
        await within(log.lost)
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        peer = Peer(sock, contexts.client, server_side=False)
        peer.tls.session = session
        await peer.handshake()
        assert peer.tls.session_reused is True
        await within(logs[1].made) if len(logs) > 1 else await peer.send(b"")
        await peer.send(b"again")
        await logs[1].got(5)
        assert logs[1].transport.get_extra_info("ssl_object").session_reused is True
        assert logs[1].transport.get_extra_info("cipher") == peer.tls.cipher()
        logs[1].transport.abort()
        await within(logs[1].lost)
        await within(logs[0].lost)
        sock.close()
        server.close()
        await within(server.wait_closed())

    run(main())


def test_both_sides_log_their_keys(run, tls, tmp_path, version):
    async def main() -> None:
        contexts = Contexts(tls, version)
        contexts.client.keylog_filename = str(tmp_path / "client")
        contexts.server.keylog_filename = str(tmp_path / "server")
        left, right = tcp_sockets()
        loop = asyncio.get_running_loop()
        (one, log), (two, other) = await within(
            asyncio.gather(
                loop.create_connection(Log, sock=left, ssl=contexts.client, server_hostname="localhost"),
                loop.connect_accepted_socket(Log, sock=right, ssl=contexts.server),
            )
        )
        one.abort()
        two.abort()
        await within(asyncio.wait([log.lost, other.lost]))
        lines = [
            {line for line in (tmp_path / name).read_text().splitlines() if not line.startswith("#")}
            for name in ("client", "server")
        ]
        assert lines[0] == lines[1]
        word = "CLIENT_RANDOM" if version == "1.2" else "SERVER_TRAFFIC_SECRET_0"
        assert any(line.startswith(word) for line in lines[0])

    run(main())


def test_a_certificate_is_asked_for_after_the_handshake(run, tls, tls_files, side):
    """Post-handshake authentication of TLS 1.3, the loop on either side."""

    async def main() -> None:
        contexts = Contexts(tls, "1.3")
        contexts.client.post_handshake_auth = True
        contexts.client.load_cert_chain(tls_files[0])
        contexts.server.post_handshake_auth = True
        contexts.server.verify_mode = ssl.CERT_OPTIONAL
        contexts.server.load_verify_locations(tls_files[1])
        async with await join(side, contexts) as joined:
            transport, log, peer = joined.transport, joined.log, joined.peer
            mine = transport.get_extra_info("ssl_object")
            server = mine if side == "server" else peer.tls
            server.verify_client_post_handshake()
            if side == "server":
                transport.write(b"who are you")
                assert await peer.receive(11) == b"who are you"
                await peer.send(b"it is me")
                assert await log.got(8) == b"it is me"
            else:
                await peer.send(b"who are you")
                assert await log.got(11) == b"who are you"
                transport.write(b"it is me")
                assert await peer.receive(8) == b"it is me"
            certificate: Any = server.getpeercert()
            assert certificate["subjectAltName"]

    run(main())


def test_many_kinds_of_failure_leave_nothing(run, tls, dated):
    """Neither reports nor transports, whoever failed."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        contexts = Contexts(tls, "1.3")
        contexts.server.load_cert_chain(dated["expired"])
        server = await loop.create_server(Log, "127.0.0.1", 0, ssl=contexts.server)
        address = server.sockets[0].getsockname()
        loop.set_debug(False)
        for _ in range(20):
            with pytest.raises(ssl.SSLCertVerificationError):
                await within(
                    loop.create_connection(Log, *address, ssl=tls.client, server_hostname="localhost")
                )
        server.close()
        await within(server.wait_closed())
        async with connected("tls", tls=tls) as pair:
            pair.client_transport.write(b"fine")
            assert await pair.server.got(4) == b"fine"

    run(main())
