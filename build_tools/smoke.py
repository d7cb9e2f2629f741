"""A wheel's first minutes: a greeting over TCP, over TLS, and a child process. Prints what it ran on."""

from __future__ import annotations

import asyncio
import platform
import ssl
import sys

import zloop
from zloop import _engine


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"Hello, " + await reader.readline())
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def greeting(**options: ssl.SSLContext | None) -> None:
    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=options.get("server"))
    address = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(*address, ssl=options.get("client"))
    writer.write(b"world\n")
    assert await reader.read() == b"Hello, world\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


def anonymous(protocol: int) -> ssl.SSLContext:
    """TLS without certificates: what matters here is that it runs."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("aNULL:@SECLEVEL=0")
    return context


async def main() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, zloop.Loop)
    await greeting()
    client, server = anonymous(ssl.PROTOCOL_TLS_CLIENT), anonymous(ssl.PROTOCOL_TLS_SERVER)
    await greeting(client=client, server=server)
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec("/bin/cat", stdin=pipe, stdout=pipe)
    assert await child.communicate(b"through a child") == (b"through a child", None)
    assert child.returncode == 0
    where = f"{platform.python_version()} {platform.machine()} {sys.byteorder}-endian"
    print(f"{zloop.__version__} runs on {where}, {_engine.backend}, TLS: {loop.tls_engine}")


zloop.run(main())
