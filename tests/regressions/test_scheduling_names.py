"""R54-R60: time, turns, memory of timers, threads, idleness, names, new tasks."""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
import sys
import threading
import time
from typing import Any

import pytest
from harness import Echo, Log, rss_bytes, turns, within

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_r54_sleep_is_never_short(run, count):
    """uvloop #739, uvloop #29, uvloop #482."""

    async def main() -> None:
        delay = 0.1

        async def one() -> float:
            started = time.perf_counter()
            await asyncio.sleep(delay)
            return time.perf_counter() - started

        slept = await asyncio.gather(*(one() for _ in range(count)))
        # perf_counter and monotonic are one clock on every platform that is served
        assert min(slept) >= delay - time.get_clock_info("monotonic").resolution

    run(main())


def test_r54_time_moves_and_every_delay_gives_a_timer_handle(run):
    """uvloop #704, uvloop #259."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        time.sleep(0.003)
        assert loop.time() - before >= 0.003
        for delay in (0, -1, 10 * 365.25 * 86400):
            earliest = loop.time() + delay
            handle = loop.call_later(delay, int)
            latest = loop.time() + delay
            assert isinstance(handle, asyncio.TimerHandle)
            assert earliest - 1e-3 <= handle.when() <= latest + 1e-3
            handle.cancel()

    run(main())


def test_r55_stop_in_a_callback_that_schedules_another(loop):
    """uvloop #517."""
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        loop.stop()
        loop.call_soon(ran.append, "next run")
        loop.call_soon_threadsafe(ran.append, "next run too")

    loop.call_soon(first)
    loop.run_forever()
    assert ran == ["first"]
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == ["first", "next run", "next run too"]


@linux
@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_r56_cancelled_timers_cost_nothing(run, count):
    """uvloop #201, uvloop #239, uvloop #37."""

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def some(number: int) -> None:
            for _ in range(number // 100):
                for _ in range(100):
                    loop.call_later(3600, int).cancel()
                await asyncio.sleep(0)
            for _ in range(number // 50):
                await asyncio.wait_for(asyncio.sleep(0), 3600)

        await some(count // 2)
        gc.collect()
        gc.disable()
        try:
            before = rss_bytes()
            await some(count)
            assert rss_bytes() - before < 4 << 20
        finally:
            gc.enable()

    run(main())


@linux
def test_r58_an_idle_loop_sleeps(run):
    """J-M-PUNK/tideway #320: connections, a far timer, and not one wake-up."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=512)
        address = server.sockets[0].getsockname()
        clients = [await loop.create_connection(Log, *address) for _ in range(200)]
        for transport, log in clients:
            transport.write(b"x")
            await log.got(1)
        timer = loop.call_later(3600, int)
        thread = threading.get_native_id()

        def switches() -> tuple[int, float]:
            with open(f"/proc/self/task/{thread}/status") as file:
                counts = [line.split()[1] for line in file if line.startswith("voluntary_ctxt_switches")]
            with open(f"/proc/self/task/{thread}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            return int(counts[0]), int(fields[11]) + int(fields[12])

        await asyncio.sleep(0.1)
        seen: list[tuple[int, float]] = []

        def watch() -> None:
            time.sleep(0.2)
            seen.append(switches())
            time.sleep(1.0)
            seen.append(switches())
            loop.call_soon_threadsafe(done.set)

        done = asyncio.Event()
        watcher = threading.Thread(target=watch)
        watcher.start()
        await within(done.wait())
        watcher.join()
        assert seen[1][0] - seen[0][0] == 0
        assert seen[1][1] - seen[0][1] <= 1  # clock ticks of CPU
        timer.cancel()
        for transport, log in clients:
            transport.close()
            await within(log.lost)
        server.close()
        await turns(5)

    run(main())


def test_r59_names(run):
    """zuvloop docs; uvloop #596; cpython #112169. (The whole sweep is in test_dns.py.)"""

    def blocking(*args: Any, **options: Any) -> Any:
        try:
            return socket.getaddrinfo(*args, **options)
        except Exception as exc:
            return type(exc), getattr(exc, "errno", None)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        different = []
        hosts = [
            "127.0.0.1",
            b"127.0.0.1",
            "::1",
            "",
            None,
            "fe80::1%lo",
            "1",
            "0x7f.1",
            "256.1.1.1",
            "[::1]",
            "::ffff:1.2.3.4",
        ]
        for host, port, family, kind in itertools.product(
            hosts,
            [None, 0, 80, "80", b"80", "http", "", -1, 65536, "65536"],
            [0, socket.AF_INET, socket.AF_INET6],
            [0, socket.SOCK_STREAM, socket.SOCK_DGRAM],
        ):
            flags = socket.AI_NUMERICHOST if host in ("1", "256.1.1.1", "[::1]") else 0
            options = {"family": family, "type": kind, "flags": flags}
            ours: Any
            try:
                ours = await loop.getaddrinfo(host, port, **options)
            except Exception as exc:
                ours = type(exc), getattr(exc, "errno", None)
            if ours != blocking(host, port, **options):
                different.append((host, port, options, ours, blocking(host, port, **options)))
        assert different == []

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 14), reason="eager_start= came with 3.14")
def test_r60_eager_start_of_one_task(run):
    """uvloop #754, uvloop #746."""

    async def main() -> None:
        ran: list[str] = []

        async def child() -> str:
            ran.append("started")
            await asyncio.sleep(0)
            return "done"

        eager = asyncio.create_task(child(), eager_start=True)
        assert ran == ["started"]
        lazy = asyncio.create_task(child(), eager_start=False, name="lazy")
        assert ran == ["started"]
        assert await eager == await lazy == "done"
        assert lazy.get_name() == "lazy"

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_r60_factories_groups_and_timeouts(run):
    """uvloop #754, uvloop #746."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        seen: list[dict[str, Any]] = []

        def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
            seen.append(options)
            return asyncio.Task(coroutine, loop=loop, **options)

        async def child(number: int) -> int:
            await asyncio.sleep(0)
            return number

        loop.set_task_factory(factory)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(child(number), name=f"task {number}") for number in range(5)]
        assert [task.result() for task in tasks] == list(range(5))
        assert len(seen) == 5
        loop.set_task_factory(asyncio.eager_task_factory)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            tasks = [group.create_task(child(number)) for number in range(5)]
        assert [task.result() for task in tasks] == list(range(5))
        with pytest.raises(ExceptionGroup) as caught:  # noqa: F821
            async with asyncio.TaskGroup() as group:
                group.create_task(failing())
                group.create_task(asyncio.sleep(3600))
        assert [type(exc) for exc in caught.value.exceptions] == [LookupError]
        loop.set_task_factory(None)

    async def failing() -> None:
        await asyncio.sleep(0)
        raise LookupError("mine")

    run(main())
