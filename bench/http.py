"""HTTP servers under load, and HTTP clients: what an application's author sees of the loop.

`python -m bench.http [--quick | --tiny] [--rows REGEX] [--loops a,b]`

Run it as a module: the file's name is a standard library module's too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from bench import harness, native
from bench.certificates import certificate
from bench.servers import CPU, RATE, milliseconds
from bench.serving import python_command, running

FULL = (1.0, 5)
CONNECTIONS = 50
CLIENT_CONNECTIONS = 10
CLIENT_BODY_BYTES = 1024


@dataclass(frozen=True)
class Page:
    name: str
    application: str
    path: str = "/"
    tls: bool = False

    def sample(self, name: str, effort: harness.Effort) -> harness.Sample:
        command = python_command("bench.http_child", "--loop", name, "--application", self.application)
        if self.tls:
            command += certificate_options()
        with running(command, uses_tls=self.tls) as server:
            return server.load(
                "http",
                path=self.path,
                connections=CONNECTIONS,
                duration_ms=milliseconds(effort.duration_s),
                warmup_ms=milliseconds(effort.duration_s / 5),
            )


@dataclass(frozen=True)
class Client:
    """A client on the loop, against the native server, so that the client is what is measured."""

    name: str
    tls: bool = False
    keeps: bool = True
    """False: each request makes a connection of its own."""

    def sample(self, name: str, effort: harness.Effort) -> harness.Sample:
        command = [str(native.program("echo_epoll")), "--http-body", str(CLIENT_BODY_BYTES)]
        if self.tls:
            command += certificate_options()
        with running(command, uses_tls=self.tls) as server:
            options: list[object] = ["--loop", name, "--port", server.port, "--duration", effort.duration_s]
            options += ["--connections", CLIENT_CONNECTIONS]
            if self.tls:
                options += ["--authority", certificate().chain]
            if not self.keeps:
                options.append("--new-connections")
            return harness.run_child("bench.http_client_child", options)


def certificate_options() -> list[str]:
    pair = certificate()
    return ["--certificate", str(pair.chain), "--key", str(pair.key)]


PAGES = [
    Page("uvicorn with httptools, plain ASGI", "uvicorn"),
    Page("uvicorn with httptools, plain ASGI, 100 KiB", "uvicorn", "/large"),
    Page("uvicorn with httptools, plain ASGI, inherited socket", "uvicorn_inherited"),
    Page("uvicorn with httptools, FastAPI", "fastapi"),
    Page("uvicorn with httptools, plain ASGI over TLS", "uvicorn", tls=True),
    Page("uvicorn with httptools, plain ASGI over TLS, 100 KiB", "uvicorn", "/large", tls=True),
    Page("aiohttp server", "aiohttp"),
    Page("aiohttp server over TLS", "aiohttp", tls=True),
]
CLIENTS = [
    Client("aiohttp client"),
    Client("aiohttp client over TLS", tls=True),
    Client("aiohttp client over TLS, a new connection each", tls=True, keeps=False),
]


def rows() -> list[harness.Row]:
    cells = [(page.name, CONNECTIONS, page.sample) for page in PAGES]
    cells += [(client.name, CLIENT_CONNECTIONS, client.sample) for client in CLIENTS]
    return [
        harness.Row(f"{name}, {connections} connections", RATE, sample, cpu_metric=CPU)
        for name, connections, sample in cells
    ]


def main(arguments: list[str] | None = None) -> None:
    command_line = harness.parser(__doc__.splitlines()[0])
    harness.run_group("http", rows(), command_line.parse_args(arguments), FULL)


if __name__ == "__main__":
    main(sys.argv[1:])
