"""Scheduling benchmarks: what a loop costs before any byte moves.

`python -m bench.micro [--by-cpu] [--quick | --tiny] [--rows REGEX] [--loops a,b]`
"""

from __future__ import annotations

import sys

from bench import harness, loops, native, workloads

FULL = (0.3, 7)
"""Seconds a sample and samples a contender."""


BY_TIME = harness.Metric("rate", "per second")
BY_CPU = harness.Metric("cpu_rate", "per CPU second")


def rows() -> list[harness.Row]:
    return [row_of(workload) for workload in workloads.WORKLOADS.values() if workload.is_supported()]


def row_of(workload: workloads.Workload) -> harness.Row:
    def sample(name: str, effort: harness.Effort) -> harness.Sample:
        if workload.uses_load_generator:
            native.program("loadgen")  # a new one is built before the sample, which has not the time
        return harness.run_child(
            "bench.micro_child", ["--loop", name, "--row", workload.name, "--duration", effort.duration_s]
        )

    def includes(name: str) -> bool:
        return workload.uses_transports or loops.contender(name).schedules

    metric = BY_CPU if workload.per_cpu_second else BY_TIME
    return harness.Row(workload.name, (metric,), sample, includes, cpu_metric=BY_CPU)


def main(arguments: list[str] | None = None) -> None:
    command_line = harness.parser(__doc__.splitlines()[0])
    harness.run_group("micro", rows(), command_line.parse_args(arguments), FULL)


if __name__ == "__main__":
    main(sys.argv[1:])
