"""Servers under load: requests a second, CPU time a request, latency, and system calls.

`python -m bench.servers echo|tls|connect [--full-matrix] [--quick | --tiny] [--rows REGEX] [--loops a,b]`
`python -m bench.servers syscalls` counts system calls a request with strace.
"""

from __future__ import annotations

import itertools
import resource
import sys
from dataclasses import dataclass

from bench import harness, syscalls
from bench.serving import echo_server
from bench.shapes import SHAPES

FULL = (1.0, 5)
KIB = 1024
SIZES = (64, KIB, 10 * KIB, 64 * KIB, 100 * KIB, KIB * KIB)
CONNECTIONS = (1, 10, 100, 1000)
#: Asked of plain TCP only, where the process may open as many descriptors.
MANY = 10_000
RATE = harness.Metric("rate", "requests/s")
CPU = harness.Metric("cpu_us", "CPU µs a request", lower_is_better=True)
MEDIAN = harness.Metric("p50_us", "µs, median latency", lower_is_better=True)
TAIL = harness.Metric("p99_us", "µs, 99th percentile of latency", lower_is_better=True)
SERVED = (RATE, CPU, MEDIAN, TAIL)
"""What is published of a server under load."""
SYSCALLS = harness.Metric("total", "system calls a request", lower_is_better=True)


@dataclass(frozen=True)
class Cell:
    transport: str
    shape: str
    size: int
    connections: int

    @property
    def name(self) -> str:
        plural = "" if self.connections == 1 else "s"
        return f"{self.transport} {self.shape} {size_name(self.size)}, {self.connections} connection{plural}"

    def sample(self, name: str, effort: harness.Effort) -> harness.Sample:
        with echo_server(name, self.transport, self.shape, self.size) as server:
            return server.load(
                "echo",
                size=self.size,
                response_size=self.size if self.shape == "head_body" else None,
                connections=self.connections,
                duration_ms=milliseconds(effort.duration_s),
                warmup_ms=milliseconds(effort.duration_s / 5),
            )

    def row(self) -> harness.Row:
        has_limit = self.shape == "proto"
        return harness.Row(self.name, SERVED, self.sample, has_limit=has_limit, cpu_metric=CPU)


@dataclass(frozen=True)
class ConnectCell:
    """Connect, echo 64 bytes, close; ten at a time."""

    transport: str

    def sample(self, name: str, effort: harness.Effort) -> harness.Sample:
        with echo_server(name, self.transport, "proto", 64) as server:
            return server.load(
                "connect",
                size=64,
                connections=10,
                duration_ms=milliseconds(effort.duration_s),
                warmup_ms=milliseconds(effort.duration_s / 5),
            )

    def row(self) -> harness.Row:
        metric = harness.Metric("rate", "connections/s")
        return harness.Row(
            f"{self.transport} connect + echo + close, 10 at a time",
            (metric, CPU, TAIL),
            self.sample,
            has_limit=True,
            cpu_metric=CPU,
        )


def open_files_max() -> int:
    """How many descriptors this process and its children may open; the limit is raised as far as it goes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def echo_cells() -> list[Cell]:
    cells = [Cell("tcp", "proto", size, 10) for size in SIZES]
    cells += [Cell("tcp", "proto", KIB, connections) for connections in CONNECTIONS if connections != 10]
    if open_files_max() > MANY + 256:
        cells.append(Cell("tcp", "proto", KIB, MANY))
    for shape, size in [("buffered", KIB), ("buffered", 64 * KIB), ("streams", KIB), ("streams", 64 * KIB)]:
        cells.append(Cell("tcp", shape, size, 10))
    cells += [Cell("tcp", "head_body", size, 10) for size in (KIB, 10 * KIB)]
    for shape, size in [("proto", KIB), ("proto", 64 * KIB), ("streams", KIB)]:
        cells.append(Cell("unix", shape, size, 10))
    return cells


def tls_cells() -> list[Cell]:
    cells = [Cell("tls", "proto", size, 10) for size in SIZES]
    cells += [Cell("tls", "proto", KIB, connections) for connections in CONNECTIONS if connections != 10]
    for shape, size in [("buffered", KIB), ("streams", KIB), ("streams", 64 * KIB), ("head_body", KIB)]:
        cells.append(Cell("tls", shape, size, 10))
    return cells


def full_matrix(transports: tuple[str, ...]) -> list[Cell]:
    return [Cell(*parts) for parts in itertools.product(transports, SHAPES, SIZES, CONNECTIONS)]


def rows(group: str, whole: bool) -> list[harness.Row]:
    if group == "connect":
        return [ConnectCell(transport).row() for transport in ("tcp", "unix", "tls")]
    if group == "syscalls":
        return [syscall_row(cell) for cell in (*echo_cells(), *tls_cells()) if cell.connections == 10]
    if group == "tls":
        return [cell.row() for cell in (full_matrix(("tls",)) if whole else tls_cells())]
    return [cell.row() for cell in (full_matrix(("tcp", "unix")) if whole else echo_cells())]


def syscall_row(cell: Cell) -> harness.Row:
    def sample(name: str, effort: harness.Effort) -> harness.Sample:
        requests = 200 if effort.name == "tiny" else 5000
        with echo_server(name, cell.transport, cell.shape, cell.size) as server:
            response_size = cell.size if cell.shape == "head_body" else None
            return syscalls.per_request(
                server, requests, size=cell.size, response_size=response_size, connections=cell.connections
            )

    return harness.Row(cell.name, (SYSCALLS,), sample, has_limit=cell.shape == "proto")


def size_name(size: int) -> str:
    for unit, name in ((KIB * KIB, "MiB"), (KIB, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def milliseconds(seconds: float) -> int:
    return max(round(seconds * 1000), 1)


def main(arguments: list[str] | None = None) -> None:
    command_line = harness.parser(__doc__.splitlines()[0])
    command_line.add_argument("group", choices=["echo", "tls", "connect", "syscalls"])
    command_line.add_argument(
        "--full-matrix", action="store_true", help="every shape, size and connection count"
    )
    options = command_line.parse_args(arguments)
    full = (FULL[0], 1) if options.group == "syscalls" else FULL
    harness.run_group(options.group, rows(options.group, options.full_matrix), options, full)


if __name__ == "__main__":
    main(sys.argv[1:])
