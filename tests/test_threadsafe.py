"""Work that comes from other threads."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from harness import PATIENCE_S, LoopFactory, within


def test_a_thread_wakes_an_idle_loop(loop):
    ran: list[int] = []

    def work() -> None:
        ran.append(threading.get_ident())
        loop.stop()

    thread = threading.Timer(0.01, loop.call_soon_threadsafe, [work])
    thread.start()
    loop.run_forever()
    thread.join()
    assert ran == [threading.get_ident()]


def test_it_wakes_a_loop_that_waits_for_a_far_timer(loop):
    timer = loop.call_later(3600, lambda: None)
    started = time.monotonic()
    thread = threading.Timer(0.01, loop.call_soon_threadsafe, [loop.stop])
    thread.start()
    loop.run_forever()
    thread.join()
    assert time.monotonic() - started < PATIENCE_S
    timer.cancel()


def test_every_call_of_every_thread_arrives_in_that_threads_order(loop):
    threads_count, calls_count = 4, 5000
    got: dict[int, list[int]] = {number: [] for number in range(threads_count)}
    left = threads_count * calls_count

    def work(thread: int, number: int) -> None:
        nonlocal left
        got[thread].append(number)
        left -= 1
        if left == 0:
            loop.stop()

    def feed(thread: int) -> None:
        for number in range(calls_count):
            loop.call_soon_threadsafe(work, thread, number)

    threads = [threading.Thread(target=feed, args=[number]) for number in range(threads_count)]
    for thread in threads:
        thread.start()
    loop.run_forever()
    for thread in threads:
        thread.join()
    assert all(numbers == list(range(calls_count)) for numbers in got.values())


def test_it_returns_a_handle_that_can_be_cancelled(loop):
    ran: list[str] = []

    def feed() -> None:
        handle = loop.call_soon_threadsafe(ran.append, "cancelled")
        assert isinstance(handle, asyncio.Handle)
        handle.cancel()
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=feed)

    # the loop is not running yet, so that the cancellation cannot be too late
    thread.start()
    thread.join()
    loop.run_forever()
    assert ran == []


def test_calls_before_the_run_are_kept_in_order_with_call_soon(loop):
    ran: list[str] = []
    loop.call_soon(ran.append, "first")
    loop.call_soon_threadsafe(ran.append, "second")
    loop.call_soon(ran.append, "third")
    loop.call_soon_threadsafe(loop.stop)
    loop.run_forever()
    if sorted(ran) == ["first", "second", "third"]:
        assert ran.index("first") < ran.index("third")
    else:
        pytest.fail(f"lost a callback: {ran}")


def test_from_the_loops_own_thread(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon_threadsafe(future.set_result, "own thread")
        assert await within(future) == "own thread"

    run(main())


def test_a_closed_loop_refuses(loop_factory: LoopFactory):
    loop = loop_factory()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon_threadsafe(lambda: None)


def test_close_races_with_callers_without_losing_the_error(loop_factory: LoopFactory):
    for _ in range(20):
        loop = loop_factory()
        refused = threading.Event()

        def feed(loop: asyncio.AbstractEventLoop = loop, refused: threading.Event = refused) -> None:
            try:
                while True:
                    loop.call_soon_threadsafe(lambda: None)
            except RuntimeError:
                refused.set()

        thread = threading.Thread(target=feed)
        thread.start()
        loop.call_later(0.001, loop.stop)
        loop.run_forever()
        loop.close()
        thread.join(PATIENCE_S)
        assert refused.is_set()
        gone = weakref.ref(loop)
        del loop, feed, thread
        gc.collect()
        assert gone() is None


def test_run_coroutine_threadsafe(run):
    async def child(number: int) -> int:
        await asyncio.sleep(0)
        if number == 3:
            raise LookupError("three")
        return number

    def ask(loop: asyncio.AbstractEventLoop, number: int) -> Any:
        return asyncio.run_coroutine_threadsafe(child(number), loop).result(PATIENCE_S)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(4) as pool:
            answers = await asyncio.gather(
                *(loop.run_in_executor(pool, ask, loop, number) for number in range(8)),
                return_exceptions=True,
            )
        assert isinstance(answers.pop(3), LookupError)
        assert answers == [0, 1, 2, 4, 5, 6, 7]

    run(main())


def test_two_loops_in_two_threads_talk(loop_factory: LoopFactory):
    rounds = 200
    loops = [loop_factory(), loop_factory()]
    done: list[int] = []

    def ping(number: int, left: int) -> None:
        if left == 0:
            done.append(number)
            for each in loops:
                each.call_soon_threadsafe(each.stop)
        else:
            other = 1 - number
            loops[other].call_soon_threadsafe(ping, other, left - 1)

    threads = [threading.Thread(target=each.run_forever) for each in loops]
    for thread in threads:
        thread.start()
    loops[0].call_soon_threadsafe(ping, 0, rounds)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    for each in loops:
        each.close()
    assert done == [0]


def test_a_loop_may_run_in_a_thread_and_be_closed_in_another(loop_factory: LoopFactory):
    loop = loop_factory()
    results: list[int] = []

    async def main() -> None:
        results.append(threading.get_ident())
        await asyncio.sleep(0.001)

    thread = threading.Thread(target=loop.run_until_complete, args=[main()])
    thread.start()
    thread.join(PATIENCE_S)
    assert results == [thread.ident]
    loop.run_until_complete(main())
    loop.close()
    assert results[1] == threading.get_ident()


def test_from_a_python_signal_handler(loop):
    ran: list[str] = []

    def handler(_signum: int, _frame: Any) -> None:
        loop.call_soon_threadsafe(ran.append, "from handler")
        loop.call_soon_threadsafe(loop.stop)

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        # a thread sends it so that the main thread is inside its wait
        thread = threading.Timer(0.02, signal.pthread_kill, [threading.main_thread().ident, signal.SIGUSR1])
        thread.start()
        loop.run_forever()
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert ran == ["from handler"]


@pytest.mark.parametrize("schedule", ["call_soon", "call_later", "call_at"])
def test_debug_mode_refuses_other_calls_from_foreign_threads(run, schedule):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        delay = {"call_later": (1.0,), "call_at": (loop.time() + 1,)}.get(schedule, ())

        def call() -> None:
            with pytest.raises(RuntimeError, match=r"[Nn]on-thread-safe"):
                getattr(loop, schedule)(*delay, lambda: None)

        await loop.run_in_executor(None, call)

    run(main(), debug=True)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ten_minutes_of_threads(loop_factory: LoopFactory):
    flood(loop_factory, seconds=600, threads_count=4)


def test_a_flood_of_threads_loses_nothing_and_stops_nothing(loop_factory: LoopFactory):
    flood(loop_factory, seconds=0.3, threads_count=4)


def flood(factory: LoopFactory, seconds: float, threads_count: int) -> None:
    """Regression scenario R57: uvloop #408."""
    loop = factory()
    sent = [0] * threads_count
    ran = [0] * threads_count
    over = threading.Event()

    def count(thread: int) -> None:
        ran[thread] += 1

    def feed(thread: int) -> None:
        while not over.is_set():
            for _ in range(50):
                loop.call_soon_threadsafe(count, thread)
                sent[thread] += 1
            time.sleep(0.0005)  # let the loop go idle now and then: waking it is the point

    async def main() -> None:
        await asyncio.sleep(seconds)
        over.set()
        for thread in threads:
            await loop.run_in_executor(None, thread.join)
        await asyncio.sleep(0)

    threads = [threading.Thread(target=feed, args=[number]) for number in range(threads_count)]
    for thread in threads:
        thread.start()
    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert ran == sent
    assert min(sent) > 0


since_3_14 = pytest.mark.skipif(
    sys.version_info < (3, 14), reason="CPython 3.14 made these handles thread-safe"
)


@since_3_14
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("ending", ["returns", "raises", "leaves the loop"])
def test_other_threads_wait_for_a_handle_that_runs(loop, debug, ending):
    events: list[str] = []
    handles: list[asyncio.Handle] = []
    running = threading.Event()
    asking = threading.Barrier(4)
    loop.set_debug(debug)
    loop.slow_callback_duration = 60

    def callback() -> None:
        running.set()
        asking.wait(PATIENCE_S)
        # A thread that does not wait has the time to say so.
        time.sleep(0.05)
        events.append("ran")
        if ending == "raises":
            raise ValueError("on purpose")
        if ending == "leaves the loop":
            raise SystemExit(7)

    def ask(method: str) -> None:
        running.wait(PATIENCE_S)
        asking.wait(PATIENCE_S)
        getattr(handles[0], method)()
        events.append(method)

    threads = [threading.Thread(target=ask, args=[method]) for method in ("cancel", "cancelled", "cancel")]
    handles.append(loop.call_soon_threadsafe(callback))
    for thread in threads:
        thread.start()
    if ending == "leaves the loop":
        with pytest.raises(SystemExit):
            loop.run_forever()
    else:
        loop.call_soon(loop.stop)
        loop.set_exception_handler(lambda _, report: events.append(type(report["exception"]).__name__))
        loop.run_forever()
    for thread in threads:
        thread.join()
    assert events[0] == "ran"
    asked = [event for event in events if event.startswith("cancel")]
    assert sorted(asked) == ["cancel", "cancel", "cancelled"]
    assert handles[0].cancelled()


@since_3_14
def test_a_running_handle_may_cancel_itself(loop):
    handles: list[asyncio.Handle] = []
    seen: list[bool] = []

    def callback() -> None:
        handles[0].cancel()
        seen.append(handles[0].cancelled())
        loop.stop()

    handles.append(loop.call_soon_threadsafe(callback))
    loop.run_forever()
    assert seen == [True]


def test_a_thread_cancels_before_the_handle_runs(loop):
    ran: list[int] = []

    def work() -> None:
        handle = loop.call_soon_threadsafe(ran.append, 1)
        handle.cancel()
        assert handle.cancelled()

    thread = threading.Thread(target=work)

    def hold() -> None:
        thread.start()
        thread.join()
        loop.call_soon(loop.stop)

    loop.call_soon(hold)
    loop.run_forever()
    assert ran == []


@pytest.mark.asyncio_bug("decides before it asks, and looks no more", kinds=("stop",), run=False)
@pytest.mark.parametrize("kind", ["call_soon_threadsafe", "stop"])
def test_what_happens_while_the_loop_asks_its_clock_ends_the_wait(loop_factory, kind):
    base = type(made := loop_factory())
    made.close()

    class Clock(base):
        armed = False

        def time(self) -> float:
            now = super().time()
            if self.armed:
                self.armed = False
                if kind == "call_soon_threadsafe":
                    thread = threading.Thread(target=self.call_soon_threadsafe, args=[self.stop])
                    thread.start()
                    thread.join()
                else:
                    self.stop()
            return now

    loop = Clock()
    late: list[int] = []
    guard = loop.call_later(PATIENCE_S, lambda: (late.append(1), loop.stop()))
    loop.call_soon(setattr, loop, "armed", True)
    loop.run_forever()
    guard.cancel()
    loop.close()
    assert not late


class Wakes:
    """Its finalizer stops the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def __del__(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)


def test_a_finalizer_of_what_a_turn_leaves_behind_ends_the_wait(loop):
    variable: contextvars.ContextVar[Wakes | None] = contextvars.ContextVar("variable", default=None)

    def leave() -> None:
        variable.set(Wakes(loop))
        # These are made in the context that holds it, and share a copy of it.
        for _ in range(3):
            loop.call_soon(int)

    late: list[int] = []
    guard = loop.call_later(PATIENCE_S, lambda: (late.append(1), loop.stop()))
    loop.call_soon(leave, context=contextvars.Context())
    loop.run_forever()
    guard.cancel()
    assert not late


@pytest.mark.skipif(sys.version_info < (3, 14), reason="handles are not exclusive before")
@pytest.mark.parametrize("method", ["cancel", "cancelled"])
def test_a_signal_ends_the_wait_for_a_handle_that_runs(loop_factory, method):
    class Interrupted(BaseException):
        pass

    def interrupt(*args: Any) -> None:
        raise Interrupted

    loop = loop_factory()
    started, release = threading.Event(), threading.Event()
    before = signal.signal(signal.SIGUSR1, interrupt)

    def work() -> None:
        started.set()
        release.wait()

    runs = threading.Thread(target=loop.run_forever)
    runs.start()
    handle = loop.call_soon_threadsafe(work)
    assert started.wait(PATIENCE_S)
    guard = threading.Timer(PATIENCE_S, release.set)
    guard.start()
    signals = threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, signal.SIGUSR1])
    signals.start()
    try:
        with pytest.raises(Interrupted):
            getattr(handle, method)()
        assert not release.is_set()
    finally:
        signals.join()
        signal.signal(signal.SIGUSR1, before)
        guard.cancel()
        guard.join()
        release.set()
        loop.call_soon_threadsafe(loop.stop)
        runs.join()
        loop.close()
