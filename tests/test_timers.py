"""Timers: order, exactness, cancellation, handles."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
import weakref
from typing import Any

import pytest
from harness import PATIENCE_S, within


def run_for(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    loop.call_later(seconds, loop.stop)
    loop.run_forever()


def test_time_is_the_monotonic_clock_and_moves_while_the_loop_is_blocked(loop):
    before = time.monotonic()
    now = loop.time()
    after = time.monotonic()
    assert isinstance(now, float)
    assert before <= now <= after
    seen: list[float] = []

    def block() -> None:
        seen.append(loop.time())
        time.sleep(0.01)
        seen.append(loop.time())
        loop.stop()

    loop.call_soon(block)
    loop.run_forever()
    assert seen[1] - seen[0] >= 0.01


def test_timers_fire_in_the_order_of_their_deadlines(loop):
    delays = [number / 20_000 for number in range(200)]
    shuffled = delays[:]
    random.Random(1).shuffle(shuffled)
    fired: list[float] = []
    start = loop.time() + 0.005
    for delay in shuffled:
        loop.call_at(start + delay, fired.append, delay)
    loop.call_at(start + delays[-1] + 0.001, loop.stop)
    loop.run_forever()
    assert fired == delays


@pytest.mark.only_zloop("asyncio's heap is not stable")
def test_equal_deadlines_fire_in_the_order_of_their_calls(loop):
    fired: list[int] = []
    when = loop.time() + 0.002
    for number in range(1000):
        loop.call_at(when, fired.append, number)
    loop.call_at(when, loop.stop)
    loop.run_forever()
    assert fired == list(range(1000))


def test_no_timer_fires_early(loop):
    early: list[float] = []
    resolution = time.get_clock_info("monotonic").resolution

    def check(due: float) -> None:
        if time.monotonic() < due - resolution:
            early.append(due - time.monotonic())

    generator = random.Random(2)
    for _ in range(300):
        due = loop.time() + generator.random() * 0.05
        loop.call_at(due, check, due)
    run_for(loop, 0.06)
    assert early == []


def test_call_at_and_call_later_return_timer_handles(loop):
    now = loop.time()
    at = loop.call_at(now + 5, lambda: None)
    later = loop.call_later(5, lambda: None)
    assert isinstance(at, asyncio.TimerHandle)
    assert isinstance(later, asyncio.TimerHandle)
    assert at.when() == now + 5
    assert abs(later.when() - now - 5) < 1
    at.cancel()
    later.cancel()
    assert at.cancelled()
    assert at.when() == now + 5  # still told


@pytest.mark.parametrize("delay", [0, 0.0, -1, -1e9, 60, 10 * 366 * 86400, 1e18], ids=str)
def test_every_number_is_a_delay(loop, delay):
    fired: list[Any] = []
    earliest = loop.time() + delay
    handle = loop.call_later(delay, fired.append, delay)
    latest = loop.time() + delay
    assert isinstance(handle, asyncio.TimerHandle)
    assert isinstance(handle.when(), float)
    # The engine counts nanoseconds, a float of this size is coarser.
    assert earliest - 1e-3 <= handle.when() <= latest + 1e-3 or delay >= 1e18
    run_for(loop, 0.002)
    assert fired == ([delay] if delay <= 0 else [])
    handle.cancel()


def test_a_far_timer_does_not_keep_near_ones_waiting(loop):
    handle = loop.call_later(1e12, loop.stop)
    started = loop.time()
    run_for(loop, 0.005)
    assert 0.005 <= loop.time() - started < PATIENCE_S
    handle.cancel()


@pytest.mark.asyncio_bug("call_at takes anything and the loop breaks at its next turn")
def test_a_deadline_that_is_no_number_is_refused(loop):
    for wrong in ("1", [], object()):
        try:
            handle = loop.call_at(wrong, lambda: None)
        except TypeError:
            continue
        handle.cancel()
        pytest.fail(f"call_at took {wrong!r}")


def test_a_delay_that_is_no_number_is_refused(loop):
    for wrong in (None, "1", [], object()):
        with pytest.raises(TypeError):
            loop.call_later(wrong, lambda: None)
    with pytest.raises((TypeError, AssertionError)):
        loop.call_at(None, lambda: None)
    ran: list[int] = []
    loop.call_soon(ran.append, 1)
    run_for(loop, 0.001)
    assert ran == [1]


def test_arguments_are_passed(loop):
    got: list[Any] = []
    for count in range(6):
        loop.call_later(0, lambda *args: got.append(args), *range(count))
        run_for(loop, 0.0005)
    assert got == [tuple(range(count)) for count in range(6)]


def test_a_cancelled_timer_does_not_fire(loop):
    fired: list[str] = []
    for _ in range(3):
        loop.call_later(0.001, fired.append, "wrong").cancel()
    loop.call_later(0.001, fired.append, "right")
    run_for(loop, 0.003)
    assert fired == ["right"]


def test_a_timer_may_be_cancelled_by_one_that_is_due_with_it(loop):
    fired: list[str] = []
    second: list[asyncio.TimerHandle] = []

    def first() -> None:
        fired.append("first")
        second[0].cancel()

    when = loop.time() + 0.001
    loop.call_at(when, first)
    second.append(loop.call_at(when + 1e-6, fired.append, "second"))
    loop.call_soon(time.sleep, 0.003)  # both are due in one turn
    run_for(loop, 0.005)
    assert fired == ["first"]


def test_cancel_after_it_fired_is_harmless(loop):
    fired: list[int] = []
    handle = loop.call_later(0, fired.append, 1)
    run_for(loop, 0.001)
    handle.cancel()
    run_for(loop, 0.001)
    assert fired == [1]


def test_random_creation_and_cancellation_fire_exactly_the_survivors(loop):
    generator = random.Random(3)
    fired: list[int] = []
    expected: list[int] = []
    alive: dict[int, asyncio.TimerHandle] = {}
    start = loop.time() + 0.05
    for number in range(5000):
        alive[number] = loop.call_at(start + generator.random() * 0.01, fired.append, number)
        if generator.random() < 0.5:
            victim = generator.choice(list(alive)[:50])
            alive.pop(victim).cancel()
    expected = sorted(alive, key=lambda number: alive[number].when())
    loop.call_at(start + 0.011, loop.stop)
    loop.run_forever()
    assert fired == expected


def test_a_zero_delay_timer_from_a_timer_fires_without_starving_others(loop):
    fired = 0
    soon: list[str] = []

    def again() -> None:
        nonlocal fired
        fired += 1
        if fired < 50:
            loop.call_later(0, again)
        else:
            loop.stop()

    loop.call_later(0, again)
    loop.call_soon(soon.append, "soon")
    loop.run_forever()
    assert fired == 50
    assert soon == ["soon"]


def test_a_timer_lets_go_of_its_callback(loop):
    class Callback:
        def __call__(self) -> None: ...

    fired, cancelled = Callback(), Callback()
    handles = [loop.call_later(0, fired), loop.call_later(3600, cancelled)]
    handles[1].cancel()
    run_for(loop, 0.001)
    dead = weakref.ref(cancelled)
    del cancelled
    gc.collect()
    assert dead() is None
    dead = weakref.ref(fired)
    del fired, handles
    gc.collect()
    assert dead() is None


def test_timer_handles_compare_by_deadline(loop):
    now = loop.time()

    def callback() -> None: ...

    first, second, same = (loop.call_at(now + delay, callback) for delay in (1, 2, 1))
    assert first < second
    assert first <= second
    assert second > first
    assert second >= first
    assert not first > second
    assert first <= same
    assert first >= same
    assert first == same
    assert first != second
    assert (first == 1) is False
    assert isinstance(hash(first), int)
    assert sorted([second, first]) == [first, second]
    for handle in (first, second, same):
        handle.cancel()


def test_handles_of_timers_take_part_in_wait_for_and_sleep(run):
    async def main() -> None:
        started = time.monotonic()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), 0.01)
        assert time.monotonic() - started >= 0.01
        assert await asyncio.sleep(0.001, "result") == "result"

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout came with 3.11")
def test_asyncio_timeout(run):
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await asyncio.sleep(3600)
        async with asyncio.timeout(3600) as scope:
            await asyncio.sleep(0)
            scope.reschedule(asyncio.get_running_loop().time() + 7200)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout_at(asyncio.get_running_loop().time() - 1):
                await asyncio.sleep(3600)

    run(main())


def test_tasks_wake_in_the_order_of_their_deadlines(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended: list[int] = []
        start = loop.time()

        async def child(number: int) -> None:
            due = loop.create_future()
            loop.call_at(start + 0.01 + number / 10_000, due.set_result, None)
            await due
            ended.append(number)

        numbers = list(range(100))
        random.Random(4).shuffle(numbers)
        await within(asyncio.gather(*map(child, numbers)))
        # however late the machine is, and however many are due at once
        assert ended == list(range(100))

    run(main())


def test_a_timer_that_raises_is_reported_and_others_fire(loop):
    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: reports.append(context))
    fired: list[str] = []

    def broken() -> None:
        raise LookupError("timer")

    handle = loop.call_later(0, broken)
    loop.call_later(0.001, fired.append, "other")
    run_for(loop, 0.002)
    assert fired == ["other"]
    assert [str(report["exception"]) for report in reports] == ["timer"]
    assert reports[0]["handle"] is handle


class Clock:
    """Stands in for `loop.time` and moves only when told."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_clock_put_on_a_loop_is_the_one_its_timers_go_by(loop):
    clock = Clock(1000.0)
    fired: list[str] = []
    loop.time = clock
    hour = loop.call_later(3600, fired.append, "an hour")
    assert hour.when() == 4600.0
    day = loop.call_at(87_400.0, fired.append, "a day")

    async def main() -> None:
        await asyncio.sleep(0)
        assert fired == []
        clock.now = hour.when()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert fired == ["an hour"]
        sleeping = asyncio.ensure_future(asyncio.sleep(600))
        await asyncio.sleep(0)
        clock.now += 600
        await within(sleeping)
        clock.now = day.when()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert fired == ["an hour", "a day"]


def test_a_clock_taken_away_again_leaves_the_usual_one(loop):
    loop.time = Clock(5.0)
    assert loop.call_later(1, loop.stop).when() == 6.0
    del loop.time
    assert abs(loop.time() - time.monotonic()) < 10
    before = loop.time()
    assert loop.call_later(1, loop.stop).when() >= before + 1
    # Due long ago by the clock that is back.
    loop.run_forever()


def test_a_subclass_has_a_clock_of_its_own(loop_factory):
    kind = type(made := loop_factory())
    made.close()

    class Ahead(kind):
        ahead_s = 0.0

        def time(self) -> float:
            return super().time() + self.ahead_s

    loop = Ahead()

    async def main() -> str:
        loop.call_soon(setattr, loop, "ahead_s", 7200.0)
        await asyncio.sleep(3600)
        return "woken"

    assert loop.run_until_complete(main()) == "woken"
    loop.close()


def test_a_clock_that_fails_ends_the_run(loop):
    def broken() -> float:
        raise LookupError("no clock")

    loop.call_later(0, loop.stop)
    loop.time = broken
    with pytest.raises(LookupError, match="no clock"):
        loop.call_later(1, loop.stop)
    with pytest.raises(LookupError, match="no clock"):
        loop.run_forever()
    del loop.time
    loop.run_forever()


def test_a_clock_and_a_delay_add_up_as_python_adds_them(loop):
    loop.time = Clock(1)  # an int
    handle = loop.call_later(2, loop.stop)
    assert handle.when() == 3
    with pytest.raises(TypeError):
        loop.call_later("soon", loop.stop)
    handle.cancel()
