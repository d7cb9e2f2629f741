"""One sample of one scheduling row on one loop, in a process of its own."""

from __future__ import annotations

import argparse
import json

from bench import loops, workloads


def main() -> None:
    command_line = argparse.ArgumentParser(description=__doc__)
    command_line.add_argument("--loop", required=True)
    command_line.add_argument("--row", required=True)
    command_line.add_argument("--duration", type=float, default=0.3, help="seconds")
    options = command_line.parse_args()
    workload = workloads.WORKLOADS[options.row]
    spent = workload.measure(loops.current_loop_factory(options.loop), options.duration)
    sample = {
        "rate": spent.operations / spent.wall_s,
        "cpu_rate": spent.operations / spent.cpu_s,
        "operations": spent.operations,
    }
    print(json.dumps(sample))


if __name__ == "__main__":
    main()
