"""An HTTP server on one loop, in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench import loops
from bench.certificates import Certificate
from bench.server_child import announce, end_with_parent
from bench.shapes import BACKLOG

SMALL = b"Hello, world!"
LARGE = b"x" * (100 * 1024)
SLOW_S = 0.001


def compute() -> None:
    """What a handler should not do: keeps the loop for a millisecond."""
    ends = time.perf_counter() + SLOW_S
    while time.perf_counter() < ends:
        pass


async def plain_asgi(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    if scope["path"] == "/slow":
        compute()
    body = LARGE if scope["path"] == "/large" else SMALL
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def serve_uvicorn(
    listener: socket.socket,
    certificate: Certificate | None,
    application: Any = plain_asgi,
    http: Any = "httptools",
) -> None:
    import uvicorn

    config = uvicorn.Config(
        application,
        http=http,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        ssl_certfile=certificate and certificate.chain,
        ssl_keyfile=certificate and certificate.key,
    )
    announce(listener.getsockname()[1])
    await uvicorn.Server(config).serve(sockets=[listener])


async def serve_fastapi(listener: socket.socket, certificate: Certificate | None) -> None:
    from fastapi import FastAPI

    application = FastAPI()

    @application.get("/")
    async def hello() -> dict[str, str]:
        return {"message": SMALL.decode()}

    await serve_uvicorn(listener, certificate, application)


async def serve_uvicorn_h11(listener: socket.socket, certificate: Certificate | None) -> None:
    await serve_uvicorn(listener, certificate, http="h11")


async def serve_starlette(listener: socket.socket, certificate: Certificate | None) -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse(SMALL)

    await serve_uvicorn(listener, certificate, Starlette(routes=[Route("/", hello)]))


async def serve_hypercorn(listener: socket.socket, certificate: Certificate | None) -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.accesslog = config.errorlog = None
    announce(listener.getsockname()[1])
    await serve(plain_asgi, config)  # type: ignore[arg-type]


async def serve_aiohttp(listener: socket.socket, certificate: Certificate | None) -> None:
    from aiohttp import web

    async def hello(request: web.Request) -> web.Response:
        body = LARGE if request.path == "/large" else SMALL
        return web.Response(body=body, content_type="text/plain")

    application = web.Application()
    application.router.add_get("/", hello)
    application.router.add_get("/large", hello)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
    await web.SockSite(runner, listener, backlog=BACKLOG, ssl_context=context).start()
    announce(listener.getsockname()[1])
    await asyncio.Event().wait()


APPLICATIONS: dict[str, Callable[[socket.socket, Certificate | None], Awaitable[None]]] = {
    "uvicorn": serve_uvicorn,
    "uvicorn_inherited": serve_uvicorn,
    "uvicorn_h11": serve_uvicorn_h11,
    "starlette": serve_starlette,
    "fastapi": serve_fastapi,
    "hypercorn": serve_hypercorn,
    "aiohttp": serve_aiohttp,
}


def main() -> None:
    command_line = argparse.ArgumentParser(description=__doc__)
    command_line.add_argument("--loop", required=True)
    command_line.add_argument("--application", choices=APPLICATIONS, required=True)
    command_line.add_argument("--certificate", type=Path)
    command_line.add_argument("--key", type=Path)
    options = command_line.parse_args()
    certificate = Certificate(options.certificate, options.key) if options.certificate else None
    end_with_parent()
    # asyncio sets TCP_NODELAY only on sockets that were made with the protocol's number, as those of a server
    # given a host and a port are. An inherited socket, as in uvicorn with several workers, is made without.
    protocol = 0 if options.application == "uvicorn_inherited" else socket.IPPROTO_TCP
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    loop = loops.current_loop_factory(options.loop)()
    loop.run_until_complete(APPLICATIONS[options.application](listener, certificate))


if __name__ == "__main__":
    main()
