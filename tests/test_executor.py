"""run_in_executor and the default executor."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import multiprocessing.resource_tracker
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
from harness import within


def test_a_function_runs_in_another_thread(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ident = await within(loop.run_in_executor(None, threading.get_ident))
        assert ident != threading.get_ident()
        assert await within(loop.run_in_executor(None, lambda *args: args, 1, 2)) == (1, 2)

    run(main())


def test_exceptions_come_back(run):
    def broken() -> None:
        raise LookupError("thread")

    async def main() -> None:
        with pytest.raises(LookupError, match="thread"):
            await within(asyncio.get_running_loop().run_in_executor(None, broken))

    run(main())


def test_an_executor_of_the_user(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
            name = await within(loop.run_in_executor(pool, lambda: threading.current_thread().name))
            assert name.startswith("mine")
            results = await within(
                asyncio.gather(*(loop.run_in_executor(pool, pow, 2, n) for n in range(50)))
            )
            assert results == [2**n for n in range(50)]

    run(main())


def test_the_default_executor_can_be_set(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pool = ThreadPoolExecutor(1, thread_name_prefix="default")
        loop.set_default_executor(pool)
        assert (await within(loop.run_in_executor(None, lambda: threading.current_thread().name))).startswith(
            "default"
        )
        if sys.version_info >= (3, 11):
            with pytest.raises(TypeError):
                loop.set_default_executor("no pool")

    run(main())


def test_shutdown(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ran: list[int] = []
        loop.run_in_executor(None, lambda: (time.sleep(0.02), ran.append(1)))
        await within(loop.shutdown_default_executor())
        assert ran == [1]
        with pytest.raises(RuntimeError, match=r"shutdown|shut down"):
            loop.run_in_executor(None, lambda: None)
        await within(loop.shutdown_default_executor())

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="came with 3.12, whose timeout starts after the wait")
def test_shutdown_with_a_timeout(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        release = threading.Event()
        started = threading.Event()
        waiting = loop.run_in_executor(None, lambda: (started.set(), release.wait(60)))
        await until_set(started)
        with pytest.warns(RuntimeWarning, match="executor did not"):
            await within(loop.shutdown_default_executor(timeout=0.01))
        release.set()
        await within(waiting)

    async def until_set(event: threading.Event) -> None:
        while not event.is_set():
            await asyncio.sleep(0.001)

    run(main())


def test_to_thread_carries_the_context(run):
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def main() -> None:
        variable.set("carried")
        assert await within(asyncio.to_thread(variable.get)) == "carried"

    run(main())


def test_cancelling_before_it_starts(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ran: list[int] = []
        with ThreadPoolExecutor(1) as pool:
            release = threading.Event()
            first = loop.run_in_executor(pool, release.wait, 20)
            second = loop.run_in_executor(pool, ran.append, 1)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            await asyncio.sleep(0)  # the cancellation travels to the pool by a callback
            release.set()
            await within(first)
        assert ran == []

    run(main())


@pytest.fixture(scope="module", autouse=True)
def resource_tracker() -> None:
    """multiprocessing's helper lives as long as the process, and so does its pipe."""
    multiprocessing.resource_tracker.ensure_running()


def test_a_process_pool(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            assert await within(loop.run_in_executor(pool, pow, 2, 10), 60) == 1024

    run(main())


def test_a_coroutine_function_is_refused_in_debug_mode(run):
    async def coroutine() -> None: ...

    async def main() -> None:
        with pytest.raises(TypeError):
            asyncio.get_running_loop().run_in_executor(None, coroutine)

    run(main(), debug=True)


def test_many_short_jobs(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        results: list[Any] = await within(
            asyncio.gather(*(loop.run_in_executor(None, str, number) for number in range(2000)))
        )
        assert results == [str(number) for number in range(2000)]

    run(main())
