"""An ASGI application under uvicorn on zloop (`pip install uvicorn`).

Anywhere else it is started as `uvicorn --loop zloop:new_event_loop uvicorn_app:app`; here the program serves
itself, asks once and stops.
"""

import asyncio
import socket
from typing import Any

import uvicorn
import zloop


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    body = f"{scope['path']} served on {type(asyncio.get_running_loop()).__module__}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer.partition("\r\n\r\n")[2]


async def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    print(await get(listener.getsockname()[1], "/hello"), end="")
    server.should_exit = True
    await serving
    print("stopped")


if __name__ == "__main__":
    zloop.run(main())
