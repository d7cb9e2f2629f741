"""An HTTP request over plain streams, against a server of a few lines in the same program."""

import asyncio

import zloop


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = (await reader.readuntil(b"\r\n\r\n")).decode()
    method, path, _ = request.split(" ", 2)
    body = f"you asked with {method} for {path}\n".encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body))
    writer.write(body)
    writer.close()
    await writer.wait_closed()


async def get(host: str, port: int, path: str) -> tuple[str, str]:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    status = (await reader.readline()).decode().strip()
    length = 0
    while (line := (await reader.readline()).decode().strip()) != "":
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            length = int(value)
    body = (await reader.readexactly(length)).decode()
    writer.close()
    await writer.wait_closed()
    return status, body


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    status, body = await get("127.0.0.1", server.sockets[0].getsockname()[1], "/some/path")
    print(status)
    print(body, end="")
    server.close()
    await server.wait_closed()


zloop.run(main())
