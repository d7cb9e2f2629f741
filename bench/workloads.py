"""The scheduling rows. Each body does `count` operations on a loop; the frame around it finds the count.

A body is the least code that exercises the path: what it does beside the loop is charged to every loop alike
and narrows the ratios.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from bench import native

MakeLoop = Callable[[], asyncio.AbstractEventLoop]
Body = Callable[[asyncio.AbstractEventLoop, int], None]
AsyncBody = Callable[[asyncio.AbstractEventLoop, int], Awaitable[None]]


@dataclass(frozen=True)
class Spent:
    operations: int
    wall_s: float
    cpu_s: float
    """Of this process with its threads, without children."""


@dataclass(frozen=True)
class Workload:
    name: str
    measure: Callable[[MakeLoop, float], Spent]
    uses_transports: bool = False
    uses_load_generator: bool = False
    per_cpu_second: bool = False
    since: tuple[int, int] = (3, 10)

    def is_supported(self) -> bool:
        return sys.version_info >= self.since


WORKLOADS: dict[str, Workload] = {}


def workload(name: str, *, fixed: int = 0, **traits: object) -> Callable[[Body], Body]:
    """Registers a body. With `fixed` the count is the row's meaning; a short run does a share of it."""

    def register(body: Body) -> Body:
        def measure(make_loop: MakeLoop, duration_s: float) -> Spent:
            loop = make_loop()
            try:
                if fixed:
                    count = fixed if duration_s >= 0.1 else max(fixed // 100, 1)
                    timed(body, loop, max(count // 10, 1))
                    return timed(body, loop, count)
                return calibrated(body, loop, duration_s)
            finally:
                loop.close()

        WORKLOADS[name] = Workload(name, measure, **traits)  # type: ignore[arg-type]
        return body

    return register


def async_workload(name: str, **traits: object) -> Callable[[AsyncBody], AsyncBody]:
    def register(body: AsyncBody) -> AsyncBody:
        def run(loop: asyncio.AbstractEventLoop, count: int) -> None:
            loop.run_until_complete(body(loop, count))

        workload(name, **traits)(run)  # type: ignore[arg-type]
        return body

    return register


def timed(body: Body, loop: asyncio.AbstractEventLoop, count: int) -> Spent:
    wall_before, cpu_before = time.perf_counter(), time.process_time()
    body(loop, count)
    return Spent(count, time.perf_counter() - wall_before, time.process_time() - cpu_before)


def calibrated(body: Body, loop: asyncio.AbstractEventLoop, duration_s: float) -> Spent:
    """Doubles the count until a run takes a quarter of the duration, then measures one run of the whole."""
    count = 64
    while True:
        spent = timed(body, loop, count)
        if spent.wall_s >= duration_s / 4:
            return timed(body, loop, max(int(count * duration_s / spent.wall_s), 1))
        count *= 2


def nothing(*_: object) -> None:
    pass


async def nothing_async() -> None:
    pass


@workload("call_soon chain")
def call_soon_chain(loop: asyncio.AbstractEventLoop, count: int) -> None:
    left = count

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(step)
        else:
            loop.stop()

    loop.call_soon(step)
    loop.run_forever()


@workload("call_soon chain, 3 arguments")
def call_soon_chain_with_arguments(loop: asyncio.AbstractEventLoop, count: int) -> None:
    def step(left: int, first: object, second: object) -> None:
        if left:
            loop.call_soon(step, left - 1, first, second)
        else:
            loop.stop()

    loop.call_soon(step, count - 1, None, loop)
    loop.run_forever()


@workload("call_soon burst of 300k", fixed=300_000)
def call_soon_burst(loop: asyncio.AbstractEventLoop, count: int) -> None:
    for _ in range(count):
        loop.call_soon(nothing)
    loop.call_soon(loop.stop)
    loop.run_forever()


@workload("200k timers over 50 ms", fixed=200_000)
def timers(loop: asyncio.AbstractEventLoop, count: int) -> None:
    delays = random.Random(1)
    left = count

    def fire() -> None:
        nonlocal left
        left -= 1
        if not left:
            loop.stop()

    for _ in range(count):
        loop.call_later(delays.random() * 0.05, fire)
    loop.run_forever()


@workload("timer create + cancel")
def timer_cancel(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """In batches with a turn between, so that a loop's own cleaning of cancelled timers is in the price."""
    left = count

    def batch() -> None:
        nonlocal left
        size = min(left, 500)
        for handle in [loop.call_later(60, nothing) for _ in range(size)]:
            handle.cancel()
        left -= size
        loop.call_soon(batch if left else loop.stop)

    loop.call_soon(batch)
    loop.run_forever()


@workload("a million pending timers, cancelled", fixed=1_000_000)
def million_timers(loop: asyncio.AbstractEventLoop, count: int) -> None:
    delays = random.Random(1)
    handles = [loop.call_later(60 + delays.random(), nothing) for _ in range(count)]
    loop.run_until_complete(nothing_async())
    delays.shuffle(handles)
    for handle in handles:
        handle.cancel()
    loop.run_until_complete(nothing_async())


@workload("call_later(0) chain")
def call_later_chain(loop: asyncio.AbstractEventLoop, count: int) -> None:
    left = count

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_later(0, step)
        else:
            loop.stop()

    loop.call_soon(step)
    loop.run_forever()


@async_workload("await sleep(0)")
async def sleep_zero(loop: asyncio.AbstractEventLoop, count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@async_workload("create_task, awaited")
async def create_task_awaited(loop: asyncio.AbstractEventLoop, count: int) -> None:
    for _ in range(count):
        await loop.create_task(nothing_async())


@async_workload("create_task, 100 at a time")
async def create_task_batch(loop: asyncio.AbstractEventLoop, count: int) -> None:
    for _ in range(max(count // 100, 1)):
        tasks = [loop.create_task(nothing_async()) for _ in range(100)]
        for task in tasks:
            await task


@async_workload("create_task with sleep(0), 100 at a time")
async def create_task_sleep(loop: asyncio.AbstractEventLoop, count: int) -> None:
    for _ in range(max(count // 100, 1)):
        tasks = [loop.create_task(asyncio.sleep(0)) for _ in range(100)]
        for task in tasks:
            await task


@async_workload("create_task, eager factory", since=(3, 12))
async def create_task_eager(loop: asyncio.AbstractEventLoop, count: int) -> None:
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    for _ in range(count):
        await loop.create_task(nothing_async())


@async_workload("TaskGroup of 100 tasks", since=(3, 11))
async def task_group(loop: asyncio.AbstractEventLoop, count: int) -> None:
    for _ in range(max(count // 100, 1)):
        async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined, unused-ignore]
            for _ in range(100):
                group.create_task(nothing_async())


@async_workload("gather of 100 tasks")
async def gather(loop: asyncio.AbstractEventLoop, count: int) -> None:
    for _ in range(max(count // 100, 1)):
        await asyncio.gather(*[nothing_async() for _ in range(100)])


@async_workload("asyncio.Queue ping-pong")
async def queue_ping_pong(loop: asyncio.AbstractEventLoop, count: int) -> None:
    there: asyncio.Queue[None] = asyncio.Queue()
    back: asyncio.Queue[None] = asyncio.Queue()

    async def answer() -> None:
        for _ in range(count):
            await there.get()
            back.put_nowait(None)

    answering = loop.create_task(answer())
    for _ in range(count):
        there.put_nowait(None)
        await back.get()
    await answering


@async_workload("asyncio.timeout around sleep(0)", since=(3, 11))
async def timeout_around_sleep(loop: asyncio.AbstractEventLoop, count: int) -> None:
    for _ in range(count):
        async with asyncio.timeout(60):  # type: ignore[attr-defined, unused-ignore]
            await asyncio.sleep(0)


@workload("threadsafe from a thread")
def threadsafe(loop: asyncio.AbstractEventLoop, count: int) -> None:
    left = count

    def arrive() -> None:
        nonlocal left
        left -= 1
        if not left:
            loop.stop()

    def send() -> None:
        for _ in range(count):
            loop.call_soon_threadsafe(arrive)

    thread = threading.Thread(target=send)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()


@workload("add_reader + remove_reader")
def reader_toggle(loop: asyncio.AbstractEventLoop, count: int) -> None:
    left, right = socket.socketpair()
    with left, right:
        descriptor = left.fileno()
        for _ in range(count):
            loop.add_reader(descriptor, nothing)
            loop.remove_reader(descriptor)


@async_workload("sock_* echo on a socketpair", uses_transports=True)
async def sock_echo(loop: asyncio.AbstractEventLoop, count: int) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)

        async def answer() -> None:
            for _ in range(count):
                await loop.sock_sendall(right, await loop.sock_recv(right, 4096))

        answering = loop.create_task(answer())
        message = bytes(1024)
        for _ in range(count):
            await loop.sock_sendall(left, message)
            await loop.sock_recv(left, 4096)
        await answering


class ReportsClose(asyncio.Protocol):
    def __init__(self, closed: asyncio.Future[None]) -> None:
        self.closed = closed

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


@async_workload("create_connection + close, both ends", uses_transports=True)
async def connect_and_close(loop: asyncio.AbstractEventLoop, count: int) -> None:
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    for _ in range(count):
        closed = loop.create_future()
        transport, _protocol = await loop.create_connection(partial(ReportsClose, closed), *address)
        transport.close()
        await closed
    server.close()


class DatagramEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.transport.sendto(data, address)


def udp_echo(make_loop: MakeLoop, duration_s: float) -> Spent:
    """The loop answers; the load generator, in another process, keeps 16 datagrams of 64 bytes in flight."""
    loop = make_loop()

    async def serve() -> dict[str, float]:
        transport, _ = await loop.create_datagram_endpoint(DatagramEcho, local_addr=("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        duration_ms = max(int(duration_s * 1000), 1)
        command = native.load_command(
            "udp", port=port, size=64, in_flight=16, duration_ms=duration_ms, warmup_ms=duration_ms // 4
        )
        command += ["--watch-pid", str(os.getpid())]
        result = await loop.run_in_executor(None, run_quietly, command)
        transport.close()
        return result

    try:
        result = loop.run_until_complete(serve())
    finally:
        loop.close()
    operations = int(result["requests"])
    return Spent(operations, result["seconds"], operations * result["cpu_us"] / 1e6)


def run_quietly(command: list[str]) -> dict[str, float]:
    result: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return result


WORKLOADS["UDP echo, 16 in flight"] = Workload(
    "UDP echo, 16 in flight", udp_echo, uses_transports=True, uses_load_generator=True
)


@async_workload("subprocess /bin/true per CPU s", per_cpu_second=True)
async def subprocess_true(loop: asyncio.AbstractEventLoop, count: int) -> None:
    for _ in range(count):
        process = await asyncio.create_subprocess_exec("/bin/true")
        await process.wait()


class PipeRelay(asyncio.Protocol):
    """Sends the next message as soon as one has arrived."""

    def __init__(self, count: int, done: asyncio.Future[None]) -> None:
        self.left = count
        self.done = done
        self.writer: asyncio.WriteTransport | None = None

    def data_received(self, data: bytes) -> None:
        assert self.writer is not None
        self.left -= 1
        if self.left:
            self.writer.write(data)
        elif not self.done.done():
            self.done.set_result(None)


@async_workload("pipe round trip", uses_transports=True)
async def pipe_round_trip(loop: asyncio.AbstractEventLoop, count: int) -> None:
    read_end, write_end = os.pipe()
    done = loop.create_future()
    reader, relay = await loop.connect_read_pipe(
        lambda: PipeRelay(count, done), os.fdopen(read_end, "rb", buffering=0)
    )
    writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(write_end, "wb", buffering=0))
    relay.writer = writer
    writer.write(bytes(64))
    await done
    writer.close()
    reader.close()
    await asyncio.sleep(0)


@async_workload("run_in_executor")
async def executor(loop: asyncio.AbstractEventLoop, count: int) -> None:
    for _ in range(count):
        await loop.run_in_executor(None, nothing)


def new_loops(make_loop: MakeLoop, duration_s: float) -> Spent:
    def body(_: asyncio.AbstractEventLoop | None, count: int) -> None:
        for _index in range(count):
            loop = make_loop()
            loop.run_until_complete(nothing_async())
            loop.close()

    return calibrated(body, None, duration_s)  # type: ignore[arg-type]


WORKLOADS["new loop, run, close"] = Workload("new loop, run, close", new_loops)
