"""An HTTP client on one loop, in a process of its own: prints its rate and its CPU time a request as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable

from bench import loops

WARM_UP = 0.2
"""Share of the duration that is spent before the clocks are read."""


class Window:
    """Requests counted between two readings of both clocks."""

    def __init__(self, duration_s: float) -> None:
        self.starts = time.perf_counter() + duration_s * WARM_UP
        self.ends = self.starts + duration_s
        self.requests = 0
        self.first: tuple[float, float] | None = None
        self.last = (0.0, 0.0)

    def is_open(self) -> bool:
        """To be asked after each request, which counts it."""
        now = (time.perf_counter(), time.process_time())
        if self.first is None:
            if now[0] >= self.starts:
                self.first = now
            return True
        self.requests += 1
        self.last = now
        return now[0] < self.ends

    def sample(self) -> dict[str, float]:
        assert self.first is not None
        wall_s, cpu_s = (last - first for first, last in zip(self.first, self.last, strict=True))
        return {"rate": self.requests / wall_s, "cpu_us": cpu_s / self.requests * 1e6}


async def window_of(request: Callable[[], Awaitable[None]], options: argparse.Namespace) -> Window:
    """As many requests at a time as there are connections."""

    async def keep_requesting() -> None:
        await request()
        while window.is_open():
            await request()

    # Connections and what is imported late are nobody's business.
    await asyncio.gather(*(request() for _ in range(options.connections)))
    window = Window(options.duration)
    await asyncio.gather(*(keep_requesting() for _ in range(options.connections)))
    return window


async def with_aiohttp(options: argparse.Namespace) -> Window:
    import aiohttp

    context: ssl.SSLContext | bool = False
    if options.authority:
        context = ssl.create_default_context(cafile=options.authority)
        context.check_hostname = False  # the certificate has a common name only
    url = f"{'https' if options.authority else 'http'}://127.0.0.1:{options.port}/"
    connector = aiohttp.TCPConnector(ssl=context, limit=0, force_close=options.new_connections)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def request() -> None:
            async with session.get(url) as response:
                await response.read()

        return await window_of(request, options)


async def with_httpx(options: argparse.Namespace) -> Window:
    import httpx

    async with httpx.AsyncClient(timeout=None) as client:

        async def request() -> None:
            await client.get(f"http://127.0.0.1:{options.port}/")

        return await window_of(request, options)


PACKAGES = {"aiohttp": with_aiohttp, "httpx": with_httpx}


def main() -> None:
    command_line = argparse.ArgumentParser(description=__doc__)
    command_line.add_argument("--loop", required=True)
    command_line.add_argument("--port", type=int, required=True)
    command_line.add_argument("--package", choices=PACKAGES, default="aiohttp")
    command_line.add_argument("--authority")
    command_line.add_argument("--connections", type=int, default=1)
    command_line.add_argument("--new-connections", action="store_true")
    command_line.add_argument("--duration", type=float, default=0.3, help="seconds")
    options = command_line.parse_args()
    loop = loops.current_loop_factory(options.loop)()
    window = loop.run_until_complete(PACKAGES[options.package](options))
    print(json.dumps(window.sample()))


if __name__ == "__main__":
    main()
