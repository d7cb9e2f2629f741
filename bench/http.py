"""HTTP servers under load: what an application's author sees of the loop.

`python -m bench.http [--quick | --tiny] [--rows REGEX] [--loops a,b]`

Run it as a module: the file's name is a standard library module's too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from bench import harness
from bench.servers import CPU, RATE, milliseconds
from bench.serving import python_command, running

FULL = (1.0, 5)
CONNECTIONS = 50


@dataclass(frozen=True)
class Page:
    name: str
    application: str
    path: str = "/"

    def sample(self, name: str, effort: harness.Effort) -> harness.Sample:
        with running(
            python_command("bench.http_child", "--loop", name, "--application", self.application)
        ) as server:
            return server.load(
                "http",
                path=self.path,
                connections=CONNECTIONS,
                duration_ms=milliseconds(effort.duration_s),
                warmup_ms=milliseconds(effort.duration_s / 5),
            )


PAGES = [
    Page("uvicorn with httptools, plain ASGI", "uvicorn"),
    Page("uvicorn with httptools, plain ASGI, 100 KiB", "uvicorn", "/large"),
    Page("uvicorn with httptools, plain ASGI, inherited socket", "uvicorn_inherited"),
    Page("uvicorn with httptools, FastAPI", "fastapi"),
    Page("aiohttp server", "aiohttp"),
]


def rows() -> list[harness.Row]:
    return [
        harness.Row(f"{page.name}, {CONNECTIONS} connections", RATE, page.sample, cpu_metric=CPU)
        for page in PAGES
    ]


def main(arguments: list[str] | None = None) -> None:
    command_line = harness.parser(__doc__.splitlines()[0])
    harness.run_group("http", rows(), command_line.parse_args(arguments), FULL)


if __name__ == "__main__":
    main(sys.argv[1:])
