"""HTTP servers under load, and HTTP clients: what an application's author sees of the loop.

`python -m bench.http [--quick | --tiny] [--rows REGEX] [--loops a,b]`

Run it as a module: the file's name is a standard library module's too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from bench import harness, native
from bench.certificates import certificate
from bench.servers import CPU, RATE, SERVED, milliseconds
from bench.serving import python_command, running

FULL = (1.0, 5)
CONNECTIONS = 32
CLIENT_CONNECTIONS = 10
CLIENT_BODY_BYTES = 1024


@dataclass(frozen=True)
class Page:
    name: str
    application: str
    path: str = "/"
    connections: int = CONNECTIONS
    tls: bool = False
    keeps: bool = True
    """False: each request makes a connection of its own."""

    @property
    def row_name(self) -> str:
        plural = "" if self.connections == 1 else "s"
        return f"{self.name}, {self.connections} connection{plural}"

    def sample(self, name: str, effort: harness.Effort, **load: object) -> harness.Sample:
        """`load` are further options of the load generator."""
        command = python_command("bench.http_child", "--loop", name, "--application", self.application)
        if self.tls:
            command += certificate_options()
        with running(command, uses_tls=self.tls) as server:
            return server.load(
                "http",
                path=self.path,
                connections=self.connections,
                reconnect=not self.keeps,
                duration_ms=milliseconds(effort.duration_s),
                warmup_ms=milliseconds(effort.duration_s / 5),
                **load,
            )


@dataclass(frozen=True)
class Client:
    """A client on the loop, against the native server, so that the client is what is measured."""

    name: str
    package: str = "aiohttp"
    tls: bool = False
    keeps: bool = True
    """False: each request makes a connection of its own."""

    def sample(self, name: str, effort: harness.Effort) -> harness.Sample:
        command = [str(native.program("echo_epoll")), "--http-body", str(CLIENT_BODY_BYTES)]
        if self.tls:
            command += certificate_options()
        with running(command, uses_tls=self.tls) as server:
            options: list[object] = ["--loop", name, "--port", server.port, "--duration", effort.duration_s]
            options += ["--connections", CLIENT_CONNECTIONS, "--package", self.package]
            if self.tls:
                options += ["--authority", certificate().chain]
            if not self.keeps:
                options.append("--new-connections")
            return harness.run_child("bench.http_client_child", options)


def certificate_options() -> list[str]:
    pair = certificate()
    return ["--certificate", str(pair.chain), "--key", str(pair.key)]


UVICORN = Page("uvicorn, plain ASGI", "uvicorn")
FASTAPI = Page("uvicorn, FastAPI", "fastapi")
AIOHTTP = Page("aiohttp server", "aiohttp")
PAGES = [
    Page("uvicorn, plain ASGI", "uvicorn", connections=1),
    UVICORN,
    Page("uvicorn, plain ASGI", "uvicorn", connections=200),
    Page("uvicorn, plain ASGI, 100 KiB", "uvicorn", "/large"),
    Page("uvicorn, plain ASGI, inherited socket", "uvicorn_inherited"),
    Page("uvicorn, plain ASGI, a new connection each", "uvicorn", keeps=False),
    Page("uvicorn with h11, plain ASGI", "uvicorn_h11"),
    Page("uvicorn, Starlette", "starlette"),
    FASTAPI,
    Page("uvicorn, plain ASGI over TLS", "uvicorn", tls=True),
    Page("uvicorn, plain ASGI over TLS, 100 KiB", "uvicorn", "/large", tls=True),
    Page("hypercorn, plain ASGI", "hypercorn"),
    Page("aiohttp server", "aiohttp", connections=1),
    AIOHTTP,
    Page("aiohttp server", "aiohttp", connections=200),
    Page("aiohttp server, 100 KiB", "aiohttp", "/large"),
    Page("aiohttp server over TLS", "aiohttp", tls=True),
]
CLIENTS = [
    Client("aiohttp client"),
    Client("aiohttp client over TLS", tls=True),
    Client("aiohttp client over TLS, a new connection each", tls=True, keeps=False),
    Client("httpx client", "httpx"),
]


def rows() -> list[harness.Row]:
    pages = [harness.Row(page.row_name, SERVED, page.sample, cpu_metric=CPU) for page in PAGES]
    clients = [
        harness.Row(
            f"{client.name}, {CLIENT_CONNECTIONS} connections", (RATE, CPU), client.sample, cpu_metric=CPU
        )
        for client in CLIENTS
    ]
    return pages + clients


def main(arguments: list[str] | None = None) -> None:
    command_line = harness.parser(__doc__.splitlines()[0])
    harness.run_group("http", rows(), command_line.parse_args(arguments), FULL)


if __name__ == "__main__":
    main(sys.argv[1:])
