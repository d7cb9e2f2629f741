"""The sock_* coroutines: plain non-blocking sockets awaited on the loop."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Log, closed_port, has_ipv6, listener, pattern, reset, tcp_sockets, turns, within

#: zloop has them on every version.
came_with_311 = pytest.mark.asyncio_bug(
    "the datagram sock_* came with 3.11", when=sys.version_info < (3, 11), run=False
)


@pytest.fixture(params=["tcp", "unix"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = tcp_sockets() if request.param == "tcp" else socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    yield left, right
    left.close()
    right.close()


def test_send_and_receive(run, ends):
    left, right = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(left, b"hello")
        assert await within(loop.sock_recv(right, 100)) == b"hello"
        waiting = asyncio.ensure_future(loop.sock_recv(right, 3))
        await turns(3)
        assert not waiting.done()
        await loop.sock_sendall(left, b"abcdef")
        assert await within(waiting) == b"abc"
        buffer = bytearray(10)
        assert await within(loop.sock_recv_into(right, buffer)) == 3
        assert buffer[:3] == b"def"
        waiting_into = asyncio.ensure_future(loop.sock_recv_into(right, memoryview(buffer)[5:]))
        await turns(3)
        await loop.sock_sendall(left, b"12345678")
        assert await within(waiting_into) == 5
        assert buffer[5:] == b"12345"

    run(main())


@pytest.mark.parametrize("size", [0, 1, 100_000, 5_000_000])
def test_sendall_sends_all(run, ends, size):
    left, right = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        data = pattern(size)
        for given in (data, bytearray(data), memoryview(data)):
            sending = asyncio.ensure_future(loop.sock_sendall(left, given))
            received = bytearray()
            while len(received) < size:
                received += await within(loop.sock_recv(right, 1 << 20))
            assert received == data
            assert await within(sending) is None

    run(main())


def test_end_of_file(run, ends):
    left, right = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(loop.sock_recv(right, 10))
        await turns(2)
        left.shutdown(socket.SHUT_WR)
        assert await within(waiting) == b""
        assert await within(loop.sock_recv_into(right, bytearray(5))) == 0

    run(main())


def test_accept_and_connect(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener() as listening:
            accepting = asyncio.ensure_future(loop.sock_accept(listening))
            await turns(2)
            client = socket.socket()
            client.setblocking(False)
            assert await within(loop.sock_connect(client, listening.getsockname())) is None
            accepted, address = await within(accepting)
            assert address == client.getsockname()
            assert accepted.gettimeout() == 0
            await loop.sock_sendall(client, b"x")
            assert await within(loop.sock_recv(accepted, 10)) == b"x"
            client.close()
            accepted.close()

    run(main())


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback")
def test_connect_ipv6(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener(socket.AF_INET6) as listening:
            client = socket.socket(socket.AF_INET6)
            client.setblocking(False)
            await within(loop.sock_connect(client, listening.getsockname()[:2]))
            accepted, _ = await within(loop.sock_accept(listening))
            client.close()
            accepted.close()

    run(main())


def test_connect_resolves_names(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener() as listening:
            client = socket.socket()
            client.setblocking(False)
            await within(loop.sock_connect(client, ("localhost", listening.getsockname()[1])))
            client.close()

    run(main())


def test_connect_unix(run, unix_path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(unix_path)
            listening.listen()
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            await within(loop.sock_connect(client, unix_path))
            client.close()

    run(main())


def test_connect_refused(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            with pytest.raises(ConnectionRefusedError):
                await within(loop.sock_connect(client, ("127.0.0.1", closed_port())))

    run(main())


def test_reset_and_broken_pipe(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        waiting = asyncio.ensure_future(loop.sock_recv(left, 10))
        await turns(2)
        reset(right)
        with pytest.raises(ConnectionResetError):
            await within(waiting)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await within(loop.sock_sendall(left, b"x"))
        left.close()

    run(main())


def test_a_reset_in_the_middle_of_sendall(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        sending = asyncio.ensure_future(loop.sock_sendall(left, bytes(50_000_000)))
        await turns(3)
        assert not sending.done()
        reset(right)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await within(sending)
        left.close()

    run(main())


def test_cancelled_calls_can_be_repeated(run, ends):
    left, right = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in range(20):
            waiting = asyncio.ensure_future(loop.sock_recv(right, 10))
            await turns(2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            again = asyncio.ensure_future(loop.sock_recv(right, 10))
            await loop.sock_sendall(left, b"%d" % number)
            assert await within(again) == b"%d" % number

    run(main())


def test_a_cancelled_accept_leaves_the_listener_usable(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener() as listening:
            for _ in range(5):
                accepting = asyncio.ensure_future(loop.sock_accept(listening))
                await turns(2)
                accepting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await accepting
            client = socket.create_connection(listening.getsockname())
            accepted, _ = await within(loop.sock_accept(listening))
            accepted.close()
            client.close()

    run(main())


def test_a_cancelled_connect_leaves_no_watch(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener(backlog=0) as listening:
            waiting = []
            for _ in range(3):  # fill the queue so that the next connect has to wait
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(listening.getsockname())
                waiting.append(sock)
            client = socket.socket()
            client.setblocking(False)
            connecting = asyncio.ensure_future(loop.sock_connect(client, listening.getsockname()))
            await asyncio.sleep(0.01)
            if not connecting.done():
                connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            assert not loop.remove_writer(client)
            for sock in [client, *waiting]:
                sock.close()

    run(main())


def test_receive_and_send_on_one_socket_at_once(run, ends):
    left, right = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        data = pattern(3_000_000)

        async def receive(sock: socket.socket) -> bytes:
            received = bytearray()
            while len(received) < len(data):
                received += await loop.sock_recv(sock, 1 << 18)
            return bytes(received)

        results = await within(
            asyncio.gather(
                loop.sock_sendall(left, data), loop.sock_sendall(right, data), receive(left), receive(right)
            )
        )
        assert results[2] == results[3] == data

    run(main())


@came_with_311
def test_datagrams(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
        for sock in (left, right):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        waiting = asyncio.ensure_future(loop.sock_recvfrom(right, 100))
        await turns(2)
        assert await loop.sock_sendto(left, b"one", right.getsockname()) == 3
        assert await within(waiting) == (b"one", left.getsockname())
        await loop.sock_sendto(left, b"two", right.getsockname())
        assert await within(loop.sock_recvfrom(right, 100)) == (b"two", left.getsockname())
        buffer = bytearray(10)
        waiting_into = asyncio.ensure_future(loop.sock_recvfrom_into(right, buffer))
        await turns(2)
        await loop.sock_sendto(left, b"three", right.getsockname())
        assert await within(waiting_into) == (5, left.getsockname())
        assert buffer[:5] == b"three"
        await loop.sock_sendto(left, b"forty-two", right.getsockname())
        assert await within(loop.sock_recvfrom_into(right, buffer, 5)) == (5, left.getsockname())
        left.close()
        right.close()

    run(main())


@came_with_311
def test_sendto_waits_for_room(run, unix_path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        )
        right.bind(unix_path)
        for sock in (left, right):
            sock.setblocking(False)

        async def send() -> None:
            for number in range(1000):
                await loop.sock_sendto(left, b"%d" % number, unix_path)

        sending = asyncio.ensure_future(send())
        await turns(5)
        for number in range(1000):
            assert await within(loop.sock_recv(right, 100)) == b"%d" % number
        await within(sending)
        left.close()
        right.close()

    run(main())


@came_with_311
def test_cancelled_datagram_calls_can_be_repeated(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            for call in (loop.sock_recvfrom(sock, 10), loop.sock_recvfrom_into(sock, bytearray(10))):
                task = asyncio.ensure_future(call)
                await turns(2)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await loop.sock_sendto(sock, b"x", sock.getsockname())
            assert await within(loop.sock_recvfrom(sock, 10)) == (b"x", sock.getsockname())

    run(main())


def test_blocking_sockets_are_refused_in_debug_mode(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            calls: list[Any] = [
                loop.sock_recv(sock, 1),
                loop.sock_recv_into(sock, bytearray(1)),
                loop.sock_sendall(sock, b"x"),
                loop.sock_connect(sock, ("127.0.0.1", 1)),
                loop.sock_accept(sock),
            ]
            if sys.version_info >= (3, 11):
                calls += [
                    loop.sock_recvfrom(sock, 1),
                    loop.sock_recvfrom_into(sock, bytearray(1)),
                    loop.sock_sendto(sock, b"x", ("127.0.0.1", 1)),
                ]
            for call in calls:
                with pytest.raises(ValueError, match="non-blocking"):
                    await call

    run(main(), debug=True)


def test_tls_sockets_are_refused(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with tls.client.wrap_socket(
            socket.socket(), server_hostname="localhost", do_handshake_on_connect=False
        ) as sock:
            sock.setblocking(False)
            calls: list[Any] = [
                loop.sock_recv(sock, 1),
                loop.sock_sendall(sock, b"x"),
                loop.sock_accept(sock),
            ]
            for call in calls:
                with pytest.raises(TypeError, match="SSLSocket"):
                    await call

    run(main())


def test_a_socket_of_a_transport_is_refused(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        transport, log = await loop.create_connection(Log, sock=left)
        with socket.socket(fileno=transport.get_extra_info("socket").fileno()) as alias:
            alias.setblocking(False)
            with pytest.raises(RuntimeError, match="used by transport"):
                await within(loop.sock_recv(alias, 1))
            alias.detach()
        transport.abort()
        await within(log.lost)
        right.close()

    run(main())


def test_a_closed_socket_is_an_error(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        sock.close()
        for call in (loop.sock_recv(sock, 1), loop.sock_sendall(sock, b"x"), loop.sock_accept(sock)):
            with pytest.raises((OSError, ValueError)):
                await within(call)

    run(main())


def test_many_at_once(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener(backlog=200) as listening:

            async def client(number: int) -> bytes:
                with socket.socket() as sock:
                    sock.setblocking(False)
                    await loop.sock_connect(sock, listening.getsockname())
                    await loop.sock_sendall(sock, b"%d" % number)
                    return await loop.sock_recv(sock, 100)

            async def serve() -> None:
                for _ in range(100):
                    sock, _ = await loop.sock_accept(listening)
                    with sock:
                        await loop.sock_sendall(sock, await loop.sock_recv(sock, 100))

            serving = asyncio.ensure_future(serve())
            answers = await within(asyncio.gather(*map(client, range(100))))
            await within(serving)
            assert answers == [b"%d" % number for number in range(100)]

    run(main())


def test_data_that_came_before_the_cancellation_is_kept(run, ends):
    left, right = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(20):
            task = asyncio.ensure_future(loop.sock_recv(left, 10))
            await turns(2)
            right.send(b"kept")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await within(loop.sock_recv(left, 10)) == b"kept"

    run(main())


def test_the_last_of_two_receivers_gets_the_data(run, ends):
    left, right = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        first = asyncio.ensure_future(loop.sock_recv(left, 10))
        await turns(2)
        second = asyncio.ensure_future(loop.sock_recv(left, 10))
        await turns(2)
        right.send(b"one")
        assert await within(second) == b"one"
        await turns(3)
        assert not first.done()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        right.send(b"two")
        assert await within(loop.sock_recv(left, 10)) == b"two"

    run(main())


def test_a_reader_takes_the_place_of_a_receiver(run, ends):
    left, right = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        receiving = asyncio.ensure_future(loop.sock_recv(left, 10))
        await turns(2)
        ready = asyncio.Event()
        loop.add_reader(left, ready.set)
        right.send(b"x")
        await within(ready.wait())
        assert loop.remove_reader(left)
        assert not receiving.done()
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        assert await within(loop.sock_recv(left, 10)) == b"x"
        assert not loop.remove_reader(left)

    run(main())


def test_a_reader_is_added_in_the_step_that_received(run, ends):
    left, right = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        receiving = asyncio.ensure_future(loop.sock_recv(left, 10))
        await turns(2)
        loop.call_soon(right.send, b"x")
        assert await within(receiving) == b"x"
        ready = asyncio.Event()

        async def receive_then_watch() -> None:
            assert await loop.sock_recv(left, 10) == b"y"
            loop.add_reader(left, ready.set)

        watching = asyncio.ensure_future(receive_then_watch())
        await turns(2)
        right.send(b"y")
        await within(watching)
        right.send(b"z")
        await within(ready.wait())
        assert loop.remove_reader(left)

    run(main())


def test_a_number_reused_in_the_step_that_received(run):
    """The socket is closed and another takes its number before the loop gets back control."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        left.setblocking(False)

        async def swap() -> tuple[socket.socket, socket.socket]:
            assert await loop.sock_recv(left, 10) == b"x"
            number = left.fileno()
            left.close()
            new_left, new_right = socket.socketpair()
            assert number in (new_left.fileno(), new_right.fileno())
            if new_right.fileno() == number:
                new_left, new_right = new_right, new_left
            new_left.setblocking(False)
            receiving = loop.sock_recv(new_left, 10)
            loop.call_soon(new_right.send, b"y")
            assert await receiving == b"y"
            return new_left, new_right

        swapping = asyncio.ensure_future(swap())
        await turns(2)
        right.send(b"x")
        new_left, new_right = await within(swapping)
        for sock in (right, new_left, new_right):
            sock.close()

    run(main())


@pytest.mark.only_zloop("asyncio never tells the new socket from the old one")
def test_a_socket_closed_under_a_receiver_is_an_error_once_its_number_is_reused(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        left.setblocking(False)
        abandoned = asyncio.ensure_future(loop.sock_recv(left, 10))
        await turns(2)
        number = left.fileno()
        left.close()
        new_left, new_right = socket.socketpair()
        assert number in (new_left.fileno(), new_right.fileno())
        if new_right.fileno() == number:
            new_left, new_right = new_right, new_left
        new_left.setblocking(False)
        receiving = asyncio.ensure_future(loop.sock_recv(new_left, 10))
        await turns(2)
        new_right.send(b"mine")
        assert await within(receiving) == b"mine"
        with pytest.raises(OSError, match="Bad file descriptor"):
            await within(abandoned)
        for sock in (right, new_left, new_right):
            sock.close()

    run(main())


def test_a_coroutine_like_any_other(run, ends):
    left, right = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        receiving = loop.sock_recv(left, 10)
        assert asyncio.iscoroutine(receiving)
        waiting = receiving.send(None)
        assert asyncio.isfuture(waiting)
        assert waiting.get_loop() is loop
        assert not waiting.done()
        with pytest.raises(asyncio.InvalidStateError):
            waiting.result()
        called: list[Any] = []
        waiting.add_done_callback(called.append)
        waiting.add_done_callback(called.append)
        assert waiting.cancel()
        assert waiting.cancelled()
        assert not waiting.cancel()
        await turns(2)
        assert called == [waiting, waiting]
        with pytest.raises(asyncio.CancelledError):
            receiving.send(None)
        thrown = loop.sock_recv(left, 10)
        thrown.send(None)
        with pytest.raises(ZeroDivisionError):
            thrown.throw(ZeroDivisionError())
        closed = loop.sock_recv(left, 10)
        closed.send(None)
        closed.close()
        right.send(b"x")
        assert await within(loop.sock_recv(left, 10)) == b"x"

    run(main())


def test_a_timeout_ends_the_wait(run, ends):
    left, right = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.sock_recv(left, 10), 0.01)
        right.send(b"x")
        assert await asyncio.wait_for(loop.sock_recv(left, 10), 10) == b"x"

    run(main())


def test_sizes_and_types_of_arguments(run, ends):
    left, right = ends

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(left, 0) == b""
        assert await loop.sock_recv_into(left, bytearray()) == 0
        with pytest.raises(ValueError, match="negative buffersize"):
            await loop.sock_recv(left, -1)
        with pytest.raises(TypeError):
            await loop.sock_recv(left, "10")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await loop.sock_recv_into(left, b"read-only")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await loop.sock_sendall(left, "text")  # type: ignore[arg-type]
        right.send(bytes(1000))
        assert await within(loop.sock_recv(left, 1 << 20)) == bytes(1000)

    run(main())


def test_connecting_again_after_a_refused_attempt_was_cancelled(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as listener, socket.socket() as sock:
            listener.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            attempt = asyncio.ensure_future(loop.sock_connect(sock, listener.getsockname()))
            await asyncio.sleep(0)
            attempt.cancel()
            listener.listen(1)
            # The refusal is still the socket's to report, once.
            with pytest.raises(ConnectionRefusedError):
                await within(loop.sock_connect(sock, listener.getsockname()))
            await within(loop.sock_connect(sock, listener.getsockname()))
            assert sock.getpeername() == listener.getsockname()
            with pytest.raises(asyncio.CancelledError):
                await attempt

    run(main())
