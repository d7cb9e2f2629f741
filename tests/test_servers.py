"""Servers: life cycle, sockets, accepting, and what each Python version does with clients at close."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
import weakref
from typing import Any

import pytest
from harness import Echo, Log, Report, closed_port, descriptor_limit, has_ipv6, turns, until, within

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback")


async def shut(server: Any, *logs: Log) -> None:
    """Close a server and the connections that keep it waiting."""
    server.close()
    for log in logs:
        if not log.lost.done():
            log.transport.abort()
            await within(log.lost)
    await within(server.wait_closed())


def test_the_life_of_a_server(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        made: list[Echo] = []

        def factory() -> Echo:
            made.append(Echo())
            return made[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        assert isinstance(server, asyncio.AbstractServer)
        assert isinstance(server, asyncio.base_events.Server)
        assert weakref.ref(server)() is server
        assert server.is_serving()
        assert server.get_loop() is loop
        assert repr(server)
        (sock,) = server.sockets
        assert isinstance(sock, asyncio.trsock.TransportSocket)
        address = sock.getsockname()
        transport, log = await loop.create_connection(Log, *address)
        transport.write(b"x")
        assert await log.got(1) == b"x"
        server.close()
        assert not server.is_serving()
        assert not server.sockets
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Log, *address)
        # established connections go on
        transport.write(b"y")
        assert await log.got(1) == b"y"
        transport.close()
        await within(log.lost)
        await within(made[0].lost)
        await within(server.wait_closed())
        server.close()
        await within(server.wait_closed())
        assert repr(server)

    run(main())


def test_names_of_accepted_connections(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        accepted: list[Log] = []

        def factory() -> Log:
            accepted.append(Log())
            return accepted[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        transport, log = await loop.create_connection(Log, *server.sockets[0].getsockname())
        await until(lambda: accepted)
        other = await within(accepted[0].made)
        assert other.get_extra_info("peername") == transport.get_extra_info("sockname")
        assert other.get_extra_info("sockname") == transport.get_extra_info("peername")
        assert other.get_extra_info("socket").gettimeout() == 0
        transport.close()
        await within(log.lost)
        await within(accepted[0].lost)
        await shut(server)

    run(main())


def test_not_started(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, start_serving=False)
        assert not server.is_serving()
        await server.start_serving()
        await server.start_serving()
        assert server.is_serving()
        transport, log = await loop.create_connection(Log, *server.sockets[0].getsockname())
        transport.write(b"x")
        assert await log.got(1) == b"x"
        transport.close()
        await within(log.lost)
        await shut(server)
        with pytest.raises((RuntimeError, TypeError)):  # asyncio stumbles over its emptied list
            await server.start_serving()

    run(main())


def test_serve_forever_until_cancelled(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, start_serving=False)
        serving = loop.create_task(server.serve_forever())
        await until(server.is_serving)
        with pytest.raises(RuntimeError, match="already being awaited"):
            await server.serve_forever()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(serving)
        assert not server.is_serving()
        with pytest.raises(RuntimeError, match="closed"):
            await server.serve_forever()

    run(main())


def test_closing_ends_serve_forever(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        serving = loop.create_task(server.serve_forever())
        await turns(2)
        server.close()
        with pytest.raises(asyncio.CancelledError):
            await within(serving)

    run(main())


def test_async_with_closes(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with await loop.create_server(Echo, "127.0.0.1", 0) as server:
            assert server.is_serving()
        assert not server.is_serving()

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12, 1), reason="wait_closed waits for clients since 3.12.1")
def test_wait_closed_waits_for_clients(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        transport, log = await loop.create_connection(Log, *server.sockets[0].getsockname())
        transport.write(b"x")
        await log.got(1)
        server.close()
        waiting = asyncio.ensure_future(server.wait_closed())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        transport.close()
        await within(log.lost)
        await within(waiting)

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="close_clients came with 3.13")
@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
def test_clients_can_be_closed_with_the_server(run, method):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        made: list[Echo] = []

        def factory() -> Echo:
            made.append(Echo())
            return made[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        clients = [await loop.create_connection(Log, *server.sockets[0].getsockname()) for _ in range(5)]
        await until(lambda: len(made) == 5)
        server.close()
        getattr(server, method)()
        for _, log in clients:
            await within(log.lost)
        for echo in made:
            assert await within(echo.lost) is None
        await within(server.wait_closed())

    run(main())


def test_several_addresses(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        port = closed_port()
        server = await loop.create_server(Echo, ["127.0.0.1", "127.0.0.2"], port)
        assert sorted(sock.getsockname() for sock in server.sockets) == [
            ("127.0.0.1", port),
            ("127.0.0.2", port),
        ]
        for host in ("127.0.0.1", "127.0.0.2"):
            transport, log = await loop.create_connection(Log, host, port)
            transport.write(b"x")
            assert await log.got(1) == b"x"
            transport.close()
            await within(log.lost)
        await shut(server)

    if sys.platform == "darwin":
        pytest.skip("127.0.0.2 is not configured on macOS")
    run(main())


@needs_ipv6
def test_every_interface_both_families(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, None, closed_port())
        assert {sock.family for sock in server.sockets} == {socket.AF_INET, socket.AF_INET6}
        for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
            port = next(sock.getsockname()[1] for sock in server.sockets if sock.family == family)
            transport, log = await loop.create_connection(Log, host, port)
            transport.close()
            await within(log.lost)
        await shut(server)

    run(main())


def test_a_socket_given_by_the_user(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        server = await loop.create_server(Echo, sock=sock, backlog=5)
        transport, log = await loop.create_connection(Log, *sock.getsockname())
        transport.write(b"x")
        assert await log.got(1) == b"x"
        transport.close()
        await within(log.lost)
        await shut(server)
        assert sock.fileno() == -1

    run(main())


def test_argument_errors(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock, socket.socket(type=socket.SOCK_DGRAM) as datagram:
            for options in (
                {},
                {"host": "127.0.0.1", "port": 0, "sock": sock},
                {"sock": datagram},
                {"host": "127.0.0.1", "port": 0, "ssl_handshake_timeout": 1},
                {"host": "127.0.0.1", "port": 0, "ssl_shutdown_timeout": 1}
                if sys.version_info >= (3, 11)
                else {},
            ):
                with pytest.raises(ValueError):
                    await loop.create_server(Log, **options)
            with pytest.raises(TypeError):
                await loop.create_server(Log, "127.0.0.1", 0, ssl=True)

    run(main())


def test_a_busy_address(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        with pytest.raises(OSError) as caught:
            await loop.create_server(Echo, *server.sockets[0].getsockname())
        assert caught.value.errno == errno.EADDRINUSE
        await shut(server)

    run(main())


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT")
def test_reuse_port_and_address(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        first = await loop.create_server(Echo, "127.0.0.1", 0, reuse_port=True, reuse_address=True)
        second = await loop.create_server(Echo, *first.sockets[0].getsockname(), reuse_port=True)
        await shut(first)
        await shut(second)

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="keep_alive came with 3.13")
def test_keep_alive(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, keep_alive=True)
        assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await shut(server)

    run(main())


@pytest.mark.asyncio_bug("leaves the accepted socket to the garbage collector", run=False)
def test_a_protocol_factory_that_raises_is_reported_and_the_server_goes_on(run):
    reports: list[Report] = []
    calls = 0

    def factory() -> Echo:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise LookupError("factory")
        return Echo()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        first, first_log = await loop.create_connection(Log, *address)
        await until(lambda: calls == 1)
        second, second_log = await loop.create_connection(Log, *address)
        second.write(b"x")
        assert await second_log.got(1) == b"x"
        for transport, log in ((first, first_log), (second, second_log)):
            transport.close()
            await within(log.lost)
        await shut(server)

    run(main(), reports=reports, debug=True)  # asyncio reports it in debug mode only
    assert [str(report["exception"]) for report in reports] == ["factory"]


def test_a_storm_of_connections(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=512)
        address = server.sockets[0].getsockname()
        socks = []
        for _ in range(300):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(address)
            socks.append(sock)
        for number, sock in enumerate(socks):
            await within(loop.sock_sendall(sock, b"%03d" % number))
        for number, sock in enumerate(socks):
            assert await within(loop.sock_recv(sock, 10)) == b"%03d" % number
            sock.close()
        await shut(server)

    run(main())


def test_clients_that_leave_before_they_are_accepted(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        accepted: list[Echo] = []

        def factory() -> Echo:
            accepted.append(Echo())
            return accepted[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        names = []
        for _ in range(20):
            with socket.create_connection(address) as sock:
                names.append(sock.getsockname())
        await until(lambda: len(accepted) == 20)
        for echo in accepted:
            assert await within(echo.lost) is None
        assert [echo.transport.get_extra_info("peername") for echo in accepted] == names
        await shut(server)

    run(main())


def test_two_servers_one_loop(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(Echo, "127.0.0.1", 0) for _ in range(10)]
        for server in servers:
            transport, log = await loop.create_connection(Log, *server.sockets[0].getsockname())
            transport.write(b"x")
            assert await log.got(1) == b"x"
            transport.close()
            await within(log.lost)
        for server in servers:
            await shut(server)

    run(main())


def test_close_from_connection_made(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        servers: list[Any] = []

        class Last(Echo):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                servers[0].close()

        servers.append(await loop.create_server(Last, "127.0.0.1", 0))
        transport, log = await loop.create_connection(Log, *servers[0].sockets[0].getsockname())
        transport.write(b"x")
        assert await log.got(1) == b"x"
        assert not servers[0].is_serving()
        transport.close()
        await within(log.lost)
        await within(servers[0].wait_closed())

    run(main())


def test_connection_made_comes_behind_what_is_queued(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        order: list[str] = []

        class Noting(Log):
            def connection_made(self, transport: Any) -> None:
                order.append("connection_made")
                super().connection_made(transport)

        accepted: list[Noting] = []

        def factory() -> Noting:
            order.append("factory")
            loop.call_soon(order.append, "queued by the factory")
            accepted.append(Noting())
            return accepted[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        transport, log = await loop.create_connection(Log, *server.sockets[0].getsockname())
        transport.write(b"x")
        await until(lambda: accepted)
        assert await accepted[0].got(1) == b"x"
        assert order == ["factory", "queued by the factory", "connection_made"]
        transport.close()
        await within(log.lost)
        await shut(server, accepted[0])

    run(main())


def test_connections_are_accepted_in_a_crowd_of_events(run):
    """More descriptors are ready than one poll reports: the listener still gets its turns, and uses them."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        accepted: list[Log] = []
        rounds = 0
        everyone = loop.create_future()

        def factory() -> Log:
            accepted.append(Log())
            if len(accepted) == 60:
                everyone.set_result(rounds)
            return accepted[-1]

        def count() -> None:
            nonlocal rounds
            rounds += 1

        server = await loop.create_server(factory, "127.0.0.1", 0)
        readable, writable = os.pipe()
        crowd = [os.dup(readable) for _ in range(1200)]
        os.write(writable, b"x")
        try:
            for fd in crowd:
                loop.add_reader(fd, int)
            loop.add_reader(readable, count)
            with contextlib.ExitStack() as clients:
                for _ in range(60):
                    clients.enter_context(socket.create_connection(server.sockets[0].getsockname()))
                assert await within(everyone) < 20
                clients.close()
                await shut(server, *accepted)
        finally:
            for fd in (*crowd, readable):
                loop.remove_reader(fd)
                os.close(fd)
            os.close(writable)

    with descriptor_limit(4096):
        run(main())


def test_connections_that_waited_before_the_server_began_have_no_delay(run):
    """As with a socket that a supervisor passes on: clients are in its queue already."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        tcp = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        logs: list[Log] = []

        def factory() -> Log:
            logs.append(Log())
            return logs[-1]

        with contextlib.ExitStack() as clients:

            def connect() -> None:
                clients.enter_context(socket.create_connection(listener.getsockname()))

            listener = socket.socket(*tcp)
            listener.bind(("127.0.0.1", 0))
            listener.listen(10)
            for _ in range(4):
                connect()
            server = await loop.create_server(factory, sock=listener)
            await until(lambda: len(logs) == 4)
            await turns(2)
            for count in (5, 6, 7):
                connect()
                while len(logs) < count:
                    await turns(1)
            for log in logs:
                sock = (await within(log.made)).get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await shut(server, *logs)

    run(main())
