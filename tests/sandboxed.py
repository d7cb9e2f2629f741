"""sandboxed.py CALLS ERRNO LOOP: use each feature of a loop once while the named system calls fail.

Prints the number of features that work, or what the loop could not be made for.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

from test_sandbox import refuse

TIMEOUT_S = 20


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.close()


async def echo_by(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    assert await reader.read() == b"hello"
    writer.close()
    await writer.wait_closed()


async def tcp() -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    await echo_by(*await asyncio.open_connection(*server.sockets[0].getsockname()))
    server.close()


async def accepted_sockets() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        listener.setblocking(False)
        client.setblocking(False)
        await loop.sock_connect(client, listener.getsockname())
        accepted, _ = await loop.sock_accept(listener)
        with accepted:
            assert not accepted.get_inheritable()
            await loop.sock_sendall(accepted, b"x")
            assert await loop.sock_recv(client, 10) == b"x"


async def unix() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = f"{folder}/s"
        server = await asyncio.get_running_loop().create_unix_server(Echo, path)
        await echo_by(*await asyncio.open_unix_connection(path))
        server.close()


async def datagrams() -> None:
    loop = asyncio.get_running_loop()
    received: asyncio.Queue[bytes] = asyncio.Queue()

    class Receiver(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            received.put_nowait(data)

    ours, _ = await loop.create_datagram_endpoint(Receiver, local_addr=("127.0.0.1", 0))
    theirs, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=ours.get_extra_info("sockname")
    )
    for size in (1, 30_000, 3):
        theirs.sendto(b"x" * size)
    assert [len(await received.get()) for _ in range(3)] == [1, 30_000, 3]
    ours.close()
    theirs.close()


async def children() -> None:
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec("/bin/sh", "-c", "cat; exit 3", stdin=pipe, stdout=pipe)
    assert await child.communicate(b"in") == (b"in", None)
    assert child.returncode == 3


async def signals() -> None:
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, seen.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await seen.wait()
    loop.remove_signal_handler(signal.SIGUSR1)


async def executor() -> None:
    assert await asyncio.get_running_loop().run_in_executor(None, lambda: 5) == 5


async def many_wake_ups() -> None:
    loop = asyncio.get_running_loop()
    count = 0
    done = asyncio.Event()

    def step() -> None:
        nonlocal count
        count += 1
        if count == 5000:
            done.set()

    def post() -> None:
        for _ in range(5000):
            loop.call_soon_threadsafe(step)

    await asyncio.gather(loop.run_in_executor(None, post), done.wait())


async def timers() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.sleep(0.0123)
    assert loop.time() - began >= 0.0123


async def sendfile() -> None:
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    with left, right, tempfile.TemporaryFile() as file:
        left.setblocking(False)
        right.setblocking(False)
        file.write(b"z" * 1000)
        file.flush()
        assert await loop.sock_sendfile(left, file, 0, 1000) == 1000
        assert len(await loop.sock_recv(right, 2000)) == 1000


async def pipes() -> None:
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe()
    stream = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reader, "rb", 0)
    )
    os.write(writer, b"q")
    os.close(writer)
    assert await stream.read() == b"q"
    transport.close()


async def names() -> None:
    assert await asyncio.get_running_loop().getaddrinfo("localhost", 80)


FEATURES: list[Callable[[], Awaitable[None]]] = [
    *(tcp, accepted_sockets, unix, datagrams, children, signals),
    *(executor, many_wake_ups, timers, sendfile, pipes, names),
]


async def main() -> None:
    count = 0
    for feature in FEATURES:
        try:
            await asyncio.wait_for(feature(), TIMEOUT_S)
            count += 1
        except Exception as error:
            print(f"{feature.__name__}: {type(error).__name__}: {error}")
    print(f"{count} features")


if __name__ == "__main__":
    calls, error, loop_name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    module, _, attribute = loop_name.partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    if calls:
        try:
            refuse(calls.split(","), error)
        except OSError as refusal:
            print(refusal, file=sys.stderr)
            sys.exit(77)
    try:
        loop = factory()
        loop.run_until_complete(main())
        loop.close()
    except OSError as failure:
        print(failure)
