"""The ways a Python server reads and answers. Each answers a request of known size with as many bytes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import NamedTuple

HEAD_BYTES = 64
"""First part of a response written in two pieces, about the length of a short HTTP head."""
BACKLOG = 4096


class Listener(NamedTuple):
    """Where a server listens: a TCP port on loopback chosen by the kernel, or a Unix path; TLS over TCP."""

    unix_path: str | None
    context: ssl.SSLContext | None


class Proto(asyncio.Protocol):
    """The shortest path: what arrives is written back."""

    transport: asyncio.Transport

    def __init__(self, size: int) -> None:
        pass

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Buffered(asyncio.BufferedProtocol):
    """Received into memory of the protocol's own."""

    transport: asyncio.Transport

    def __init__(self, size: int) -> None:
        self.memory = memoryview(bytearray(256 * 1024))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.memory

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(self.memory[:nbytes])


class HeadBody(asyncio.Protocol):
    """Two writes a response, as HTTP servers make them."""

    transport: asyncio.Transport

    def __init__(self, size: int) -> None:
        self.size = size
        self.received = 0
        self.head = bytes(min(HEAD_BYTES, size - 1))
        self.body = bytes(size - len(self.head))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.received >= self.size:
            self.received -= self.size
            self.transport.write(self.head)
            self.transport.write(self.body)


def protocol_server(protocol: type[Proto | Buffered | HeadBody]) -> Serve:
    async def serve(size: int, listener: Listener) -> asyncio.AbstractServer:
        loop = asyncio.get_running_loop()
        if listener.unix_path:
            return await loop.create_unix_server(lambda: protocol(size), listener.unix_path, backlog=BACKLOG)
        return await loop.create_server(
            lambda: protocol(size), "127.0.0.1", 0, ssl=listener.context, backlog=BACKLOG
        )

    return serve


async def serve_streams(size: int, listener: Listener) -> asyncio.AbstractServer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(await reader.readexactly(size))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    if listener.unix_path:
        return await asyncio.start_unix_server(answer, listener.unix_path, backlog=BACKLOG)
    return await asyncio.start_server(answer, "127.0.0.1", 0, ssl=listener.context, backlog=BACKLOG)


Serve = Callable[[int, Listener], Awaitable[asyncio.AbstractServer]]

SHAPES: dict[str, Serve] = {
    "proto": protocol_server(Proto),
    "buffered": protocol_server(Buffered),
    "streams": serve_streams,
    "head_body": protocol_server(HeadBody),
}
