"""How long requests wait at a rate that the server can keep, and beside a handler that computes.

`python -m bench.latency [--quick | --tiny] [--rows REGEX] [--loops a,b]`

The load is an open loop: requests are due at fixed times, and a latency counts from then. The rates are parts
of what uvloop serves at most on this machine, measured at the start, and the same for all loops.
"""

from __future__ import annotations

import statistics
import sys

from bench import harness, loops
from bench.http import AIOHTTP, FASTAPI, UVICORN, Page
from bench.servers import CPU, MEDIAN, RATE, TAIL

FULL = (2.0, 5)
SHARES = (0.3, 0.6, 0.9)
SATURATION_ROUNDS = 3
PAGES = (UVICORN, FASTAPI, AIOHTTP)
STALL_CONNECTIONS = 50


class Saturation:
    """What the reference serves at most, measured when it is first asked for."""

    def __init__(self) -> None:
        self.rates: dict[str, float] = {}

    def rate(self, page: Page, effort: harness.Effort) -> float:
        if page.name not in self.rates:
            name = loops.CONTROL if loops.contender(loops.REFERENCE).missing_package() else loops.REFERENCE
            samples = [page.sample(name, effort)["rate"] for _ in range(SATURATION_ROUNDS)]
            self.rates[page.name] = statistics.median(samples)
        return self.rates[page.name]


def open_row(page: Page, share: float, saturation: Saturation) -> harness.Row:
    def sample(name: str, effort: harness.Effort) -> harness.Sample:
        rate = max(round(share * saturation.rate(page, effort)), 1)
        return {**page.sample(name, effort, rate=rate), "wanted_rate": rate}

    return harness.Row(f"{page.row_name}, at {share:.0%} of the load", (MEDIAN, TAIL, CPU), sample)


def stall_row(page: Page) -> harness.Row:
    """Connections that are answered at once, beside one whose handler computes for a millisecond."""

    def sample(name: str, effort: harness.Effort) -> harness.Sample:
        return page.sample(name, effort, others=1, other_path="/slow")

    return harness.Row(f"{page.row_name}, beside a handler that computes 1 ms", (MEDIAN, TAIL, RATE), sample)


def rows() -> list[harness.Row]:
    saturation = Saturation()
    paced = [open_row(page, share, saturation) for page in PAGES for share in SHARES]
    stalled = Page(UVICORN.name, UVICORN.application, connections=STALL_CONNECTIONS)
    return [*paced, stall_row(stalled)]


def main(arguments: list[str] | None = None) -> None:
    command_line = harness.parser(__doc__.splitlines()[0])
    harness.run_group("latency", rows(), command_line.parse_args(arguments), FULL)


if __name__ == "__main__":
    main(sys.argv[1:])
