"""What an idle server holds and does: bytes a connection, wake-ups a second.

`python -m bench.memory [--quick | --tiny] [--rows REGEX] [--loops a,b]`
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench import harness, native
from bench.serving import Running, echo_server, python_command, running

FULL = (2.0, 3)
SETTLE_TIMEOUT_S = 5.0
MEMORY = harness.Metric("bytes", "bytes a connection", lower_is_better=True)
WAKEUPS = harness.Metric("wakeups", "wake-ups a second", lower_is_better=True)


def memory_row(transport: str, shape: str, baseline: int, total: int) -> harness.Row:
    """Connections that have echoed 1 KiB once, so that buffers kept after traffic are counted.

    The first connections only warm allocators up; the others are charged."""

    def sample(name: str, effort: harness.Effort) -> harness.Sample:
        first, last = (20, 60) if effort.name == "tiny" else (baseline, total)
        with (
            echo_server(name, transport, shape, 1024) as server,
            held_connections(server, first, last) as opened,
        ):
            next(opened)
            before = settled_memory(server.pid)
            next(opened)
            return {"bytes": (settled_memory(server.pid) - before) / (last - first)}

    # Under TLS the native server keeps OpenSSL's buffers for speed: no limit of anything.
    has_limit = (transport, shape) == ("tcp", "proto")
    return harness.Row(f"idle {transport} connection, {shape}", (MEMORY,), sample, has_limit=has_limit)


def wakeup_row(transport: str | None, connections: int) -> harness.Row:
    def sample(name: str, effort: harness.Effort) -> harness.Sample:
        if transport is None:
            with running(python_command("bench.server_child", "--loop", name, "--shape", "none")) as server:
                return wakeups(server, effort.duration_s)
        with (
            echo_server(name, transport, "proto", 1024) as server,
            held_connections(server, connections, connections) as opened,
        ):
            next(opened)
            return wakeups(server, effort.duration_s)

    what = f"{connections} idle {transport} connections" if transport else "nothing to do"
    return harness.Row(f"loop with {what}", (WAKEUPS,), sample)


@contextlib.contextmanager
def held_connections(server: Running, first: int, last: int) -> Iterator[Iterator[int]]:
    """Yields an iterator that opens `first` connections in all, then `last`, and closes them at the end."""
    command = native.load_command(
        "idle", **server.target(), size=1024, baseline=first, connections=last, watch_pid=server.pid
    )
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def steps() -> Iterator[int]:
        for index in range(2):
            if index:
                stdin.write("\n")
                stdin.flush()
            line = stdout.readline()
            if not line:
                raise harness.SampleFailed(f"connections failed; {server.complaint()}")
            yield json.loads(line)["open"]

    try:
        yield steps()
    finally:
        process.kill()
        process.communicate()


def settled_memory(pid: int) -> int:
    """Anonymous memory in bytes, once two readings 100 ms apart agree: a server may still be freeing."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    value = anonymous_bytes(pid)
    while time.monotonic() < deadline:
        time.sleep(0.1)
        previous, value = value, anonymous_bytes(pid)
        if value == previous:
            break
    return value


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise harness.SampleFailed("this kernel does not report RssAnon")


def wakeups(server: Running, duration_s: float) -> harness.Sample:
    settled_memory(server.pid)
    before, started = voluntary_switches(server.pid), time.monotonic()
    time.sleep(duration_s)
    count, elapsed_s = voluntary_switches(server.pid) - before, time.monotonic() - started
    return {"wakeups": count / elapsed_s}


def voluntary_switches(pid: int) -> int:
    """Of all threads: each return from a wait in the kernel is one."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


def rows() -> list[harness.Row]:
    return [
        memory_row("tcp", "proto", 500, 4500),
        memory_row("tcp", "streams", 500, 2500),
        memory_row("tls", "proto", 200, 1200),
        memory_row("tls", "streams", 200, 1200),
        wakeup_row(None, 0),
        wakeup_row("tcp", 10),
        wakeup_row("tls", 10),
    ]


def main(arguments: list[str] | None = None) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 10_000)), hard))
    command_line = harness.parser(__doc__.splitlines()[0])
    harness.run_group("memory", rows(), command_line.parse_args(arguments), FULL)


if __name__ == "__main__":
    main(sys.argv[1:])
