"""Does one greedy connection starve the others? 50 pinging connections beside one that floods.

`python -m bench.fairness [--quick | --tiny] [--rows REGEX] [--loops a,b]`
"""

from __future__ import annotations

import sys

from bench import harness
from bench.servers import milliseconds
from bench.serving import echo_server

FULL = (2.0, 5)
PINGS = 50
PING_BYTES = 64
FLOOD_BYTES = 64 * 1024
LATENCY = harness.Metric("p99_us", "µs, 99th percentile of a ping", lower_is_better=True)


def row(name: str, flood_bytes: int) -> harness.Row:
    def sample(contender: str, effort: harness.Effort) -> harness.Sample:
        with echo_server(contender, "tcp", "proto", PING_BYTES) as server:
            return server.load(
                "fairness",
                connections=PINGS,
                size=PING_BYTES,
                flood_size=flood_bytes,
                duration_ms=milliseconds(effort.duration_s),
                warmup_ms=milliseconds(effort.duration_s / 5),
            )

    return harness.Row(name, (LATENCY,), sample, has_limit=True)


def rows() -> list[harness.Row]:
    return [row(f"{PINGS} pings alone", 0), row(f"{PINGS} pings beside a flood", FLOOD_BYTES)]


def main(arguments: list[str] | None = None) -> None:
    command_line = harness.parser(__doc__.splitlines()[0])
    harness.run_group("fairness", rows(), command_line.parse_args(arguments), FULL)


if __name__ == "__main__":
    main(sys.argv[1:])
