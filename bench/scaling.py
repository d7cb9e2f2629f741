"""Do loops in several threads share a machine? Operations of all threads together, for one loop and for two.

`python -m bench.scaling [--quick | --tiny] [--rows REGEX] [--loops a,b]`

Each loop runs in a thread of its own and knows nothing of the others. On a free-threaded build two of them
should do twice the work of one; with a GIL they take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from bench import harness, loops

FULL = (1.0, 7)
RATE = harness.Metric("rate", "per second, all threads")
THREADS = (1, 2)
CALLBACKS = 20
CONNECTIONS = 10
ECHO_BYTES = 1000


async def callbacks(end: float) -> int:
    """Callbacks that schedule themselves again."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count & 127 or time.perf_counter() < end:
            loop.call_soon(step)
        else:
            done.set()

    for _ in range(CALLBACKS):
        loop.call_soon(step)
    await done.wait()
    return count


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def echoes(end: float) -> int:
    """Messages that go to and fro between the ends of connections, both in this loop."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    count = 0

    class Client(Echo):
        def data_received(self, data: bytes) -> None:
            nonlocal count
            count += 1
            if time.perf_counter() < end:
                self.transport.write(data)
            else:
                done.set()

    server = await loop.create_server(Echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    clients = [await loop.create_connection(Client, *address) for _ in range(CONNECTIONS)]
    for transport, _ in clients:
        transport.write(b"x" * ECHO_BYTES)
    await done.wait()
    for transport, _ in clients:
        transport.abort()
    server.close()
    return count


WORKLOADS: dict[str, Callable[[float], Coroutine[Any, Any, int]]] = {
    "call_soon": callbacks,
    "TCP echo of 1 kB": echoes,
}


def measure(loop_name: str, workload: str, threads: int, duration_s: float) -> float:
    """Operations a second of all threads, each of which runs the workload on a loop of its own."""
    factory = loops.factory(loop_name)
    counts: list[int] = []
    start = threading.Barrier(threads)

    def work() -> None:
        loop = factory()
        start.wait()
        counts.append(loop.run_until_complete(WORKLOADS[workload](time.perf_counter() + duration_s)))
        loop.close()

    running = [threading.Thread(target=work) for _ in range(threads)]
    began = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if len(counts) != threads:
        raise SystemExit("a thread has failed; its exception is above")
    return sum(counts) / (time.perf_counter() - began)


def row_of(workload: str, threads: int) -> harness.Row:
    def sample(name: str, effort: harness.Effort) -> harness.Sample:
        asked = (
            "--loop",
            name,
            "--workload",
            workload,
            "--threads",
            threads,
            "--duration",
            effort.duration_s,
        )
        return harness.run_child("bench.scaling", ("--child", *asked))

    name = f"{workload}, {threads} {'loop' if threads == 1 else 'loops in threads'}"
    return harness.Row(name, (RATE,), sample, lambda name: loops.contender(name).schedules)


def child(arguments: list[str]) -> None:
    command_line = argparse.ArgumentParser()
    command_line.add_argument("--loop", required=True)
    command_line.add_argument("--workload", required=True, choices=WORKLOADS)
    command_line.add_argument("--threads", type=int, required=True)
    command_line.add_argument("--duration", type=float, required=True)
    options = command_line.parse_args(arguments)
    print(json.dumps({"rate": measure(options.loop, options.workload, options.threads, options.duration)}))


def main(arguments: list[str] | None = None) -> None:
    command_line = harness.parser((__doc__ or "").splitlines()[0])
    rows = [row_of(workload, threads) for workload in WORKLOADS for threads in THREADS]
    harness.run_group("scaling", rows, command_line.parse_args(arguments), FULL)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main(sys.argv[1:])
