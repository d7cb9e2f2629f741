"""loop.start_tls: a plain connection becomes a TLS one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from typing import Any

import pytest
from harness import BufferedLog, Log, Pair, connected, pattern, turns, within


async def upgrade(pair: Pair[Any, Any], tls: Any, **options: Any) -> tuple[Any, Any, Log, Log]:
    """TLS over both ends of a plain pair; new protocols take over."""
    loop = asyncio.get_running_loop()
    client, server = Log(), Log()
    new_client, new_server = await within(
        asyncio.gather(
            loop.start_tls(pair.client_transport, client, tls.client, server_hostname="localhost", **options),
            loop.start_tls(pair.server_transport, server, tls.server, server_side=True, **options),
        )
    )
    return new_client, new_server, client, server


async def finish(pair: Pair[Any, Any], *ends: tuple[Any, Log]) -> None:
    for transport, log in ends:
        transport.close()
        await within(asyncio.wait([log.lost]))
    for log in (pair.client, pair.server):  # the protocols of the plain connection were replaced
        if not log.lost.done():
            log.lost.set_result(None)


@pytest.mark.parametrize("plain", ["tcp", "unix"])
def test_upgrade(run, tls, plain):
    async def main() -> None:
        async with connected(plain) as pair:
            pair.client_transport.write(b"STARTTLS")
            assert await pair.server.got(8) == b"STARTTLS"
            client_transport, server_transport, client, server = await upgrade(pair, tls)
            assert isinstance(client_transport, asyncio.Transport)
            assert client_transport.get_extra_info("ssl_object") is not None
            assert client_transport.get_extra_info("sslcontext") is tls.client
            assert client_transport.get_protocol() is client
            assert client.events == []  # connection_made is not called again
            data = pattern(1_000_000)
            client_transport.write(data)
            assert await server.got(len(data)) == data
            server_transport.write(data)
            assert await client.got(len(data)) == data
            await finish(pair, (client_transport, client), (server_transport, server))

    run(main())


def test_tls_inside_tls(run, tls):
    async def main() -> None:
        async with connected("tls", tls=tls) as pair:
            client_transport, server_transport, client, server = await upgrade(pair, tls)
            client_transport.write(b"twice encrypted")
            assert await server.got(15) == b"twice encrypted"
            await finish(pair, (client_transport, client), (server_transport, server))

    if sys.version_info < (3, 11):
        pytest.skip("came with 3.11")
    run(main())


def test_a_buffered_protocol_takes_over(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp") as pair:
            client, server = Log(), BufferedLog(1000)
            new_client, new_server = await within(
                asyncio.gather(
                    loop.start_tls(pair.client_transport, client, tls.client, server_hostname="localhost"),
                    loop.start_tls(pair.server_transport, server, tls.server, server_side=True),
                )
            )
            data = pattern(300_000)
            new_client.write(data)
            assert await server.got(len(data)) == data
            await finish(pair, (new_client, client), (new_server, server))

    run(main())


def test_a_failed_handshake(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp") as pair:
            client, server = Log(), Log()
            results = await within(
                asyncio.gather(
                    loop.start_tls(pair.client_transport, client, tls.client, server_hostname="wrong.name"),
                    loop.start_tls(pair.server_transport, server, tls.server, server_side=True),
                    return_exceptions=True,
                )
            )
            assert isinstance(results[0], ssl.SSLCertVerificationError)
            await turns(5)
            for log, result in ((client, results[0]), (server, results[1])):
                if not isinstance(result, BaseException):
                    result.abort()
                    await within(asyncio.wait([log.lost]))
                assert log.lost_count <= 1
            for log in (pair.client, pair.server):
                if not log.lost.done():
                    log.lost.set_result(None)

    reports: list[Any] = []
    run(main(), reports=reports)
    assert all(isinstance(report["exception"], OSError) for report in reports)


def test_the_handshake_timeout(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp") as pair:
            with pytest.raises(ConnectionAbortedError):
                await within(
                    loop.start_tls(
                        pair.client_transport,
                        Log(),
                        tls.client,
                        server_hostname="localhost",
                        ssl_handshake_timeout=0.05,
                    )
                )
            await within(pair.server.lost)
            if not pair.client.lost.done():
                pair.client.lost.set_result(None)

    run(main())


def test_an_upgrade_of_a_transport_that_is_closing_gives_nothing(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp") as pair:
            pair.client_transport.close()
            # In this very turn: a task of wait_for's own would come when all is over.
            upgraded = await loop.start_tls(
                pair.client_transport, Log(), tls.client, server_hostname="localhost"
            )
            assert upgraded is None
            await within(pair.server.lost)
            pair.client.lost.set_result(None)  # its protocol was replaced

    run(main())


def test_a_cancelled_upgrade(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp") as pair:
            upgrading = asyncio.ensure_future(
                loop.start_tls(pair.client_transport, Log(), tls.client, server_hostname="localhost")
            )
            await turns(5)
            upgrading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await upgrading
            await within(pair.server.lost)
            if not pair.client.lost.done():
                pair.client.lost.set_result(None)

    run(main())


def test_wrong_arguments(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp") as pair:
            with pytest.raises(TypeError):
                await loop.start_tls(pair.client_transport, Log(), None)
            with pytest.raises(TypeError):
                await loop.start_tls(pair.client_transport, Log(), "context")
            with contextlib.suppress(AttributeError), pytest.raises(TypeError):
                await loop.start_tls(object(), Log(), tls.client)
            pair.client_transport.write(b"unharmed")
            assert await pair.server.got(8) == b"unharmed"

    run(main())


def test_after_much_plain_data(run, tls):
    async def main() -> None:
        async with connected("tcp") as pair:
            data = pattern(2_000_000)
            pair.client_transport.write(data)
            assert await pair.server.got(len(data)) == data
            client_transport, server_transport, client, server = await upgrade(pair, tls)
            client_transport.write(data)
            assert await server.got(len(data)) == data
            await finish(pair, (client_transport, client), (server_transport, server))

    run(main())
