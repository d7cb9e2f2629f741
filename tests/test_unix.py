"""Unix sockets: paths, abstract names, permissions, what happens to the file."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from pathlib import Path

import pytest
from harness import Echo, Log, pattern, within

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="abstract names are a Linux thing")


@pytest.mark.parametrize("as_path", [str, Path, os.fsencode], ids=["str", "Path", "bytes"])
def test_server_and_client_by_path(run, unix_path, as_path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        if as_path is os.fsencode:
            server = await loop.create_unix_server(Echo, unix_path)
        else:
            server = await loop.create_unix_server(Echo, as_path(unix_path))
        assert stat.S_ISSOCK(os.stat(unix_path).st_mode)
        transport, log = await loop.create_unix_connection(Log, as_path(unix_path))
        assert transport.get_extra_info("peername") in (unix_path, os.fsencode(unix_path))
        assert transport.get_extra_info("socket").family == socket.AF_UNIX
        data = pattern(500_000)
        transport.write(data)
        assert await log.got(len(data)) == data
        transport.close()
        await within(log.lost)
        server.close()
        await within(server.wait_closed())

    run(main())


def test_the_file_after_close(run, unix_path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(Echo, unix_path)
        server.close()
        await within(server.wait_closed())
        # removed by the loop since 3.13, left behind before
        assert os.path.exists(unix_path) == (sys.version_info < (3, 13))
        # either way the path can be used again
        server = await loop.create_unix_server(Echo, unix_path)
        transport, log = await loop.create_unix_connection(Log, unix_path)
        transport.write(b"again")
        assert await log.got(5) == b"again"
        transport.close()
        await within(log.lost)
        server.close()
        await within(server.wait_closed())

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="cleanup_socket came with 3.13")
def test_cleanup_socket(run, unix_path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(Echo, unix_path, cleanup_socket=False)
        server.close()
        await within(server.wait_closed())
        assert os.path.exists(unix_path)
        # a file that somebody else put in its place is not ours to remove
        server = await loop.create_unix_server(Echo, unix_path)
        os.unlink(unix_path)
        Path(unix_path).write_text("somebody else's")
        server.close()
        await within(server.wait_closed())
        assert Path(unix_path).read_text() == "somebody else's"

    run(main())


def test_a_socket_given_by_the_user(run, unix_path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(unix_path)
        server = await loop.create_unix_server(Echo, sock=sock)
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        client.connect(unix_path)
        transport, log = await loop.create_unix_connection(Log, sock=client)
        transport.write(b"x")
        assert await log.got(1) == b"x"
        transport.close()
        await within(log.lost)
        server.close()
        await within(server.wait_closed())

    run(main())


@linux
@pytest.mark.parametrize("kind", ["str", "bytes"])
def test_abstract_names(run, kind):
    name = f"\0zloop-test-{os.getpid()}-{kind}"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(Echo, name)
        address = name if kind == "str" else name.encode()
        transport, log = await loop.create_unix_connection(Log, address)
        assert transport.get_extra_info("peername") == name.encode()
        transport.write(b"x")
        assert await log.got(1) == b"x"
        transport.close()
        await within(log.lost)
        server.close()
        await within(server.wait_closed())

    run(main())


def test_a_name_with_a_surrogate(run, unix_path):
    path = os.fsdecode(os.fsencode(os.path.dirname(unix_path)) + b"/\xff")
    if sys.platform == "darwin":
        pytest.skip("APFS takes UTF-8 names only")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(Echo, path)
        transport, log = await loop.create_unix_connection(Log, path)
        transport.write(b"x")
        assert await log.got(1) == b"x"
        transport.close()
        await within(log.lost)
        server.close()
        await within(server.wait_closed())
        if os.path.exists(path):
            os.unlink(path)

    run(main())


def test_errors(run, unix_path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(FileNotFoundError):
            await loop.create_unix_connection(Log, unix_path)
        Path(unix_path).write_text("a file")
        with pytest.raises(OSError):
            await loop.create_unix_connection(Log, unix_path)
        with pytest.raises(OSError):
            await loop.create_unix_server(Log, unix_path)
        with pytest.raises(OSError):
            await loop.create_unix_server(Log, "/no/such/folder/s")
        with pytest.raises(OSError):
            await loop.create_unix_server(Log, "/tmp/" + "x" * 200)
        with pytest.raises(ValueError):
            await loop.create_unix_connection(Log)
        with pytest.raises(ValueError):
            await loop.create_unix_server(Log)
        with socket.socket() as tcp, pytest.raises(ValueError):
            await loop.create_unix_connection(Log, sock=tcp)
        with socket.socket() as tcp, pytest.raises(ValueError):
            await loop.create_unix_server(Log, sock=tcp)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram, pytest.raises(ValueError):
            await loop.create_unix_connection(Log, sock=datagram)
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ValueError):
            await loop.create_unix_connection(Log, unix_path, sock=sock)

    run(main())


def test_nobody_listens_any_more(run, unix_path):
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(unix_path)
            sock.listen(1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.get_running_loop().create_unix_connection(Log, unix_path)

    run(main())


def test_a_busy_path_is_refused_and_the_owner_keeps_it(run, unix_path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        # asyncio removes a stale socket file before it binds, and so takes the path from a living server too;
        # what it must not do is to take a path that is not a socket
        os.mkdir(unix_path)
        with pytest.raises(OSError):
            await loop.create_unix_server(Echo, unix_path)
        assert os.path.isdir(unix_path)

    run(main())


def test_tls_over_unix(run, unix_path, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(Echo, unix_path, ssl=tls.server)
        transport, log = await within(
            loop.create_unix_connection(Log, unix_path, ssl=tls.client, server_hostname="localhost")
        )
        assert transport.get_extra_info("ssl_object").version().startswith("TLS")
        transport.write(b"x")
        assert await log.got(1) == b"x"
        transport.close()
        await within(log.lost)
        server.close()
        await within(server.wait_closed())

    run(main())


def test_streams_over_unix(run, unix_path):
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readline()).upper())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_unix_server(serve, unix_path)
        reader, writer = await asyncio.open_unix_connection(unix_path)
        writer.write(b"line\n")
        assert await within(reader.read()) == b"LINE\n"
        writer.close()
        await within(writer.wait_closed())
        server.close()
        await within(server.wait_closed())

    run(main())
