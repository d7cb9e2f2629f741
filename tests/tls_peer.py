"""The other end of a TLS connection, scripted byte by byte.

A peer is an SSLObject of the test's own over a plain socket. What the ssl module has no method for (key
updates, renegotiation) is asked of the libssl that the interpreter has loaded.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import re
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from harness import Log, tcp_sockets, within

T = TypeVar("T")

#: asyncio's SSLProtocol was rewritten in 3.11; the one of 3.10 is another and misses much.
OLD_SSLPROTO = sys.version_info < (3, 11)


def reason_of(error: ssl.SSLError) -> str:
    """The reason by its name, also if OpenSSL is newer than the `ssl` module, which then has words only."""
    words = re.sub(r"^\[\w+\] (.*?)(?: \(.*)?$", r"\1", str(error.args[-1]))
    return error.reason or words.upper().replace(" ", "_")


class Peer:
    """The other end: an SSLObject, a socket, and a say in every byte that passes."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool, piece: int = 0
    ) -> None:
        self.sock = sock
        self.piece = piece
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        hostname = None if server_side else "localhost"
        self.tls = context.wrap_bio(
            self.incoming, self.outgoing, server_side=server_side, server_hostname=hostname
        )

    async def flush(self) -> None:
        data = self.outgoing.read()
        step = self.piece or len(data) or 1
        for start in range(0, len(data), step):
            await self.raw(data[start : start + step])

    async def raw(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def drive(self, operation: Callable[[], T]) -> T:
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                await self.flush()
                data = await within(asyncio.get_running_loop().sock_recv(self.sock, 65536))
                if data:
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()
            else:
                await self.flush()
                return result

    async def handshake(self) -> None:
        await self.drive(self.tls.do_handshake)

    async def send(self, data: bytes) -> None:
        done = 0
        while done < len(data):
            done += self.tls.write(data[done:])
        await self.flush()

    async def receive(self, count: int) -> bytes:
        got = bytearray()

        def read() -> bytes:
            return self.tls.read(count - len(got))

        while len(got) < count and (data := await self.drive(read)):
            got += data
        return bytes(got)

    async def receive_all(self) -> bytes:
        """Everything up to close_notify."""
        got = bytearray()
        while data := await self.drive(lambda: self.tls.read(65536)):
            got += data
        return bytes(got)


def begin(side: str, tls: Any, protocol: Any, left: socket.socket, **options: Any) -> asyncio.Task[Any]:
    loop = asyncio.get_running_loop()
    if side == "client":
        making = loop.create_connection(
            protocol, sock=left, ssl=tls.client, server_hostname="localhost", **options
        )
    else:
        making = loop.connect_accepted_socket(protocol, sock=left, ssl=tls.server, **options)
    return loop.create_task(making)


class Joined:
    """A transport of the loop and its scripted peer."""

    def __init__(self, transport: Any, log: Any, peer: Peer) -> None:
        self.transport, self.log, self.peer = transport, log, peer

    async def __aenter__(self) -> Joined:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.abort()
        await within(asyncio.wait([self.log.lost]))
        self.peer.sock.close()


async def join(
    side: str, tls: Any, protocol: Any = Log, *, piece: int = 0, small_buffers: bool = False, **options: Any
) -> Joined:
    left, right = tcp_sockets(small_buffers=small_buffers)
    peer = Peer(
        right, tls.server if side == "client" else tls.client, server_side=side == "client", piece=piece
    )
    making = begin(side, tls, protocol, left, **options)
    await peer.handshake()
    transport, log = await within(making)
    return Joined(transport, log, peer)


@functools.lru_cache(maxsize=1)
def _libssl() -> Any:
    """The interpreter's libssl, by way of `_ssl`'s own file."""
    import _ssl

    file = getattr(_ssl, "__file__", None)
    library = ctypes.CDLL(file) if file else None
    if library is None or not hasattr(library, "SSL_key_update"):
        pytest.skip("the libssl of this interpreter cannot be called from outside")
    for name, arguments in {"SSL_key_update": [ctypes.c_int], "SSL_renegotiate": []}.items():
        getattr(library, name).argtypes = [ctypes.c_void_p, *arguments]
    return library


def _pointer(tls: ssl.SSLObject) -> ctypes.c_void_p:
    """The `SSL *`: behind the header and the reference to a socket."""
    inner: Any = tls._sslobj
    offset = object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)
    return ctypes.c_void_p.from_address(id(inner) + offset)


def update_keys(tls: ssl.SSLObject, *, both: bool) -> None:
    """TLS 1.3: new keys from the next record on, for the other direction as well if both."""
    assert _libssl().SSL_key_update(_pointer(tls), 1 if both else 0) == 1


def renegotiate(tls: ssl.SSLObject) -> None:
    """TLS 1.2: a new handshake begins with the next call."""
    assert _libssl().SSL_renegotiate(_pointer(tls)) == 1
