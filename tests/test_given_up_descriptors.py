"""A program closes a socket object that a transport stands on: the number is not the transport's any more."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from typing import Any

import pytest
from harness import DatagramLog, Log, descriptor_limit, pattern, tcp_sockets, turns, until, within


class Stranger:
    """A socket pair of somebody else's, one end of which has got the number *fd*."""

    def __init__(self, fd: int) -> None:
        self.near, self.far = socket.socketpair()
        if self.far.fileno() == fd:
            self.near, self.far = self.far, self.near
        if self.near.fileno() != fd:
            os.dup2(self.near.fileno(), fd)
            self.near.close()
            self.near = socket.socket(fileno=fd)
        assert self.near.fileno() == fd
        self.far.setblocking(False)
        self.near.setblocking(False)

    def received(self) -> bytes:
        try:
            return self.far.recv(100)
        except BlockingIOError:
            return b""

    def is_open(self) -> bool:
        """Whether both directions still carry bytes."""
        self.near.send(b"there")
        self.far.send(b"back")
        return (self.far.recv(100), self.near.recv(100)) == (b"there", b"back")

    def close(self) -> None:
        self.near.close()
        self.far.close()


class OwnSocket(socket.socket):
    """A class of the program's, with the methods of its base."""


@pytest.mark.parametrize("kind", [socket.socket, OwnSocket])
@pytest.mark.parametrize("waits", [False, True], ids=["written before", "written after"])
def test_what_is_written_reaches_no_stranger(run, kind, waits):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, other = tcp_sockets()
        sock = kind(fileno=one.detach())
        with other:
            transport, log = await loop.create_connection(Log, sock=sock)
            fd = sock.fileno()
            sock.close()
            stranger = Stranger(fd)
            transport.write(b"secret")
            if waits:
                await turns(1)
                transport.write(b"more")
            error = await within(log.lost)
            assert isinstance(error, OSError) and error.errno == errno.EBADF
            assert stranger.received() == b""
            assert stranger.is_open()
            stranger.close()

    run(main())


def test_the_end_of_writing_shuts_no_stranger_down(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sock, other = tcp_sockets()
        with other:
            transport, log = await loop.create_connection(Log, sock=sock)
            fd = sock.fileno()
            sock.close()
            stranger = Stranger(fd)
            with pytest.raises(OSError) as caught:
                transport.write_eof()
            assert caught.value.errno == errno.EBADF
            assert stranger.is_open()
            transport.abort()
            await within(log.lost)
            assert stranger.is_open()
            stranger.close()

    run(main())


def test_datagrams_reach_no_stranger(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
        transport, log = await loop.create_datagram_endpoint(DatagramLog, sock=sock)
        fd = sock.fileno()
        sock.close()
        stranger = Stranger(fd)
        transport.sendto(b"secret", address)
        await until(lambda: log.errors)
        assert [error.errno for error in log.errors] == [errno.EBADF]
        assert stranger.received() == b""
        transport.abort()
        await turns(2)
        assert stranger.is_open()
        stranger.close()

    run(main())


def test_a_file_is_sent_while_the_transport_reads(run, tmp_path):
    """Told to read again in the middle, which takes the descriptor's number."""
    path = tmp_path / "file"
    data = pattern(20_000_000)
    path.write_bytes(data)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        sock, other = tcp_sockets(small_buffers=True)
        other.setblocking(False)
        with other, open(path, "rb") as file:
            transport, log = await loop.create_connection(Log, sock=sock)
            sending = loop.create_task(loop.sendfile(transport, file))
            await turns(5)
            transport.resume_reading()
            other.send(b"meanwhile")
            received = 0
            while received < len(data):
                chunk = await within(loop.sock_recv(other, 1 << 20))
                assert chunk == data[received : received + len(chunk)]
                received += len(chunk)
            assert await within(sending) == len(data)
            await until(lambda: log.received == b"meanwhile")
            transport.close()
            await within(log.lost)

    run(main())


def test_a_send_that_is_given_up_lets_its_buffer_go(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sock, other = tcp_sockets(small_buffers=True)
        sock.setblocking(False)
        with sock, other:
            data = bytearray(8 << 20)
            sending = loop.create_task(loop.sock_sendall(sock, data))
            await turns(3)
            sending.cancel()
            kept: Any = None
            try:
                await sending
            except asyncio.CancelledError as error:
                # With its traceback, and so the operation's frame.
                kept = error
            assert kept is not None
            data.append(1)

    run(main())


def test_an_exit_out_of_connection_lost_ends_the_run(loop):
    """The pipe is closed with bytes queued; what ends the run comes out of a report."""

    class Fails(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            raise ValueError("a bug of the program's")

    def leave(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        sys.exit(3)

    loop.set_exception_handler(leave)
    read, write = os.pipe()

    async def main() -> None:
        transport, _ = await loop.connect_write_pipe(Fails, os.fdopen(write, "wb", 0))
        transport.write(bytes(300_000))
        transport.close()
        loop.add_reader(read, os.read, read, 1 << 20)
        await asyncio.Event().wait()

    task = loop.create_task(main())
    with pytest.raises(SystemExit) as caught:
        loop.run_until_complete(task)
    assert caught.value.code == 3
    loop.set_exception_handler(None)
    loop.remove_reader(read)
    os.close(read)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)


def test_a_file_is_sent_when_no_descriptor_is_left(run, tmp_path):
    path = tmp_path / "file"
    data = pattern(200_000)
    path.write_bytes(data)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        sock, other = tcp_sockets()
        other.setblocking(False)
        with other, open(path, "rb") as file:
            transport, log = await loop.create_connection(Log, sock=sock)
            # What is opened for the loop itself, and for the thread that reads the file then, is opened now.
            await loop.run_in_executor(None, int)
            await loop.sock_sendall(other, b"x")
            await until(lambda: log.received == b"x")
            lowest_free = os.dup(other.fileno())
            os.close(lowest_free)
            with descriptor_limit(lowest_free):
                sending = loop.create_task(loop.sendfile(transport, file))
                received = 0
                while received < len(data):
                    chunk = await within(loop.sock_recv(other, 1 << 20))
                    assert chunk == data[received : received + len(chunk)]
                    received += len(chunk)
                assert await within(sending) == len(data)
            transport.close()
            await within(log.lost)

    run(main())
