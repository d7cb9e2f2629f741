"""R01-R09: one owner per descriptor, and cancellation that leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
from typing import Any

import pytest
from harness import Echo, Log, closed_port, listener, open_fds, tcp_sockets, turns, until, within


async def cancel_after(coroutine: Any, turns_before: int) -> Any:
    """Start it, let it make some turns, cancel it; its result if it was quicker."""
    task = asyncio.ensure_future(coroutine)
    await turns(turns_before)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


async def end(result: Any) -> None:
    if result is not None:
        transport, log = result
        transport.abort()
        await within(log.lost)


@pytest.mark.parametrize("method", ["create_connection", "create_unix_connection"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_r01_a_cancelled_connect_never_closes_a_strangers_descriptor(run, tls, method, secure):
    """uvloop #738, uvloop #740, uvloop #645; cpython #153133."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"ssl": tls.client, "server_hostname": "localhost"} if secure else {}
        for turns_before in range(1, 8):
            left, right = socket.socketpair() if "unix" in method else tcp_sockets()
            result = await cancel_after(getattr(loop, method)(Log, sock=left, **options), turns_before)
            cancelled = result is None
            await end(result)
            await turns(3)
            # the number is free now: whoever takes it must keep it
            reader, writer = os.pipe()
            if cancelled:
                left.close()
            del left
            gc.collect()
            await turns(3)
            os.write(writer, b"x")
            assert os.read(reader, 1) == b"x"
            os.close(reader)
            os.close(writer)
            right.close()

    run(main())


async def is_handed_over(left: socket.socket, right: socket.socket) -> None:
    await turns(3)
    number = left.fileno()
    left.close()
    right.settimeout(60)
    assert right.recv(1) == b""
    right.close()
    assert number == -1


@pytest.mark.only_zloop("asyncio's transport and its caller share one socket object")
def test_r01_the_socket_of_a_cancelled_connect_is_detached(run):
    """uvloop #738: the caller's object owns nothing that a stranger could get."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        await end(await cancel_after(loop.create_connection(Log, sock=left), 1))
        await is_handed_over(left, right)

    run(main())


def test_r01_the_socket_of_a_connect_whose_factory_raises_stays_with_its_caller(run):
    """uvloop #738: one owner at any time; as in asyncio it is the caller until there is a protocol."""

    async def main() -> None:
        def broken() -> Log:
            raise LookupError("factory")

        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        with pytest.raises(LookupError):
            await loop.create_connection(broken, sock=left)
        if left.fileno() == -1:
            # Later releases of asyncio close it there (gh-153133): the loop was the owner then.
            right.close()
            return
        transport, log = await loop.create_connection(Log, sock=left)
        right.sendall(b"still usable")
        assert await log.got(12) == b"still usable"
        await end((transport, log))
        right.close()

    run(main())


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.soak)])
def test_r02_connects_cancelled_at_random_moments(run, count):
    """uvloop #653; NVIDIA-NeMo/Gym #3521."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        rng = random.Random(2)
        server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=512)
        address = server.sockets[0].getsockname()
        before = len(open_fds())

        async def cancelled() -> None:
            await end(await cancel_after(loop.create_connection(Log, *address), rng.randrange(6)))

        async def good(number: int) -> None:
            transport, log = await loop.create_connection(Log, *address)
            transport.write(b"%06d" % number)
            assert await log.got(6) == b"%06d" % number
            transport.close()
            await within(log.lost)

        for start in range(0, count, 50):
            await asyncio.gather(*(cancelled() for _ in range(50)))
            await asyncio.gather(*(good(start + number) for number in range(5)))
        await until(lambda: len(open_fds()) <= before)
        server.close()
        await within(server.wait_closed())

    run(main())


@pytest.mark.parametrize("side", ["read", "write"])
def test_r03_a_closed_pipe_transport_forgets_its_number(run, side):
    """uvloop #763, uvloop #764."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reader, writer = os.pipe()
        files = {"read": os.fdopen(reader, "rb", 0), "write": os.fdopen(writer, "wb", 0)}
        connect = loop.connect_read_pipe if side == "read" else loop.connect_write_pipe
        transport, log = await connect(Log, files[side])
        transport.close()
        await within(log.lost)
        new_reader, new_writer = os.pipe()
        files.pop(side)
        del transport, log
        gc.collect()
        await turns(3)
        os.write(new_writer, b"x")
        assert os.read(new_reader, 1) == b"x"
        os.close(new_reader)
        os.close(new_writer)
        for file in files.values():
            file.close()

    run(main())


def test_r04_a_cancelled_sock_recv_called_again_at_once(run):
    """cpython #74250, cpython #20369."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        for number in range(100):
            first = asyncio.ensure_future(loop.sock_recv(left, 100))
            await turns(1)
            first.cancel()
            second = asyncio.ensure_future(loop.sock_recv(left, 100))  # without a turn between
            right.send(b"%d" % number)
            assert await within(second) == b"%d" % number
            assert first.cancelled()
        left.close()
        right.close()

    run(main())


def test_r05_a_cancelled_sock_connect_leaves_the_number_alone(run):
    """cpython #131728; python/asyncio #205."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener(backlog=0) as silent:
            waiting = []
            for _ in range(3):
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(silent.getsockname())
                waiting.append(sock)
            for _ in range(20):
                sock = socket.socket()
                sock.setblocking(False)
                connecting = asyncio.ensure_future(loop.sock_connect(sock, silent.getsockname()))
                await turns(2)
                connecting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await connecting
                number = sock.fileno()
                sock.close()
                left, right = socket.socketpair()
                fresh = left if left.fileno() == number else right
                writable = asyncio.Event()
                loop.add_writer(fresh, writable.set)
                await within(writable.wait())
                assert loop.remove_writer(fresh)
                left.close()
                right.close()
            for sock in waiting:
                sock.close()

    run(main())


def test_r06_a_cancelled_sock_accept_keeps_the_connection_in_the_backlog(run):
    """cpython #153761."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener() as listening:
            for _ in range(30):
                accepting = asyncio.ensure_future(loop.sock_accept(listening))
                await turns(2)
                client = socket.create_connection(listening.getsockname())
                accepting.cancel()  # the connection is there, the loop has not looked yet
                with pytest.raises(asyncio.CancelledError):
                    await accepting
                accepted, address = await within(loop.sock_accept(listening))
                assert address == client.getsockname()
                accepted.close()
                client.close()

    run(main())


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.soak)])
def test_r07_parallel_sock_connects(run, count):
    """uvloop #378, uvloop #389."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        port = closed_port()
        with listener(backlog=512) as listening:

            async def one(number: int) -> None:
                with socket.socket() as sock:
                    sock.setblocking(False)
                    if number % 3 == 0:
                        with pytest.raises(ConnectionRefusedError):
                            await loop.sock_connect(sock, ("127.0.0.1", port))
                    else:
                        await loop.sock_connect(sock, listening.getsockname())

            async def accept() -> None:
                while True:
                    (await loop.sock_accept(listening))[0].close()

            accepting = asyncio.ensure_future(accept())
            for start in range(0, count, 150):
                await within(asyncio.gather(*map(one, range(start, start + 150))))
            accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await accepting

    run(main())


def test_r08_a_socket_closed_under_a_pending_sock_recv(run):
    """uvloop #100."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(20):
            left, right = tcp_sockets()
            waiting = asyncio.ensure_future(loop.sock_recv(left, 10))
            await turns(2)
            left.close()
            await turns(2)
            right.close()
            await turns(2)
            # an error or patience are both right; what is forbidden is a crash or somebody else's data
            if not waiting.done():
                waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError, ValueError):
                assert await waiting == b""

    run(main())


def test_r09_a_timeout_in_the_middle_of_a_tls_handshake(run, tls):
    """python/asyncio #218; asyncpg #468."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        accepted: list[Log] = []

        def factory() -> Log:
            accepted.append(Log())
            return accepted[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)  # takes the hello, never answers
        address = server.sockets[0].getsockname()
        for _ in range(10):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(
                    loop.create_connection(Log, *address, ssl=tls.client, server_hostname="localhost"), 0.02
                )
        for log in accepted:
            await within(asyncio.wait([log.lost]))
        server.close()
        await within(server.wait_closed())

    run(main())
