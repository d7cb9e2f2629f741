"""The run loop: order of callbacks, turns, stop and resume, contexts, tasks, asynchronous generators."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import select
import socket
import sys
import sysconfig
import time
import weakref
from typing import Any

import pytest
from harness import PATIENCE_S, LoopFactory, Report, turns, within


def test_callbacks_run_in_the_order_of_call_soon(loop):
    order: list[int] = []
    for number in range(1000):
        loop.call_soon(order.append, number)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert order == list(range(1000))


def test_call_soon_returns_a_handle_with_all_arguments_passed(loop):
    got: list[Any] = []
    for count in range(8):
        handle = loop.call_soon(lambda *args: got.append(args), *range(count))
        assert isinstance(handle, asyncio.Handle)
        assert not isinstance(handle, asyncio.TimerHandle)
        assert not handle.cancelled()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert got == [tuple(range(count)) for count in range(8)]


def test_a_cancelled_handle_does_not_run(loop):
    ran: list[str] = []
    victim = loop.call_soon(ran.append, "victim")
    loop.call_soon(ran.append, "other")
    victim.cancel()
    assert victim.cancelled()
    victim.cancel()  # again is harmless
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == ["other"]


def test_a_callback_may_cancel_a_later_one_of_the_same_turn_and_itself(loop):
    ran: list[str] = []
    handles: dict[str, asyncio.Handle] = {}

    def first() -> None:
        ran.append("first")
        handles["first"].cancel()
        handles["second"].cancel()

    handles["first"] = loop.call_soon(first)
    handles["second"] = loop.call_soon(ran.append, "second")
    handles["third"] = loop.call_soon(ran.append, "third")
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == ["first", "third"]


def test_handle_repr_at_every_stage(loop):
    def named_callback() -> None: ...

    handle = loop.call_soon(named_callback)
    assert "named_callback" in repr(handle)
    handle.cancel()
    assert "cancelled" in repr(handle)
    done = loop.call_soon(named_callback)
    timer = loop.call_later(0, named_callback)
    assert "TimerHandle" in repr(timer)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert repr(done)
    assert repr(timer)


def test_handles_can_be_weakly_referenced(loop):
    handle = loop.call_soon(lambda: None)
    timer = loop.call_later(0, lambda: None)
    assert weakref.ref(handle)() is handle
    assert weakref.ref(timer)() is timer
    loop.call_later(0.001, loop.stop)
    loop.run_forever()


def test_a_callback_is_released_once_it_ran_or_was_cancelled(loop):
    class Callback:
        def __call__(self, argument: Any) -> None: ...

    ran, cancelled, argument = Callback(), Callback(), Callback()
    kept = [loop.call_soon(ran, argument), loop.call_soon(cancelled, argument)]
    kept[1].cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()
    dead = weakref.ref(cancelled)
    del cancelled
    gc.collect()
    assert dead() is None  # the cancelled handle is still referenced, what it held is not
    refs = [weakref.ref(ran), weakref.ref(argument)]
    del ran, argument, kept
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_a_callback_scheduled_by_a_callback_waits_for_the_next_turn(loop):
    order: list[str] = []

    def first() -> None:
        order.append("first")
        loop.call_soon(order.append, "scheduled by first")

    loop.call_soon(first)
    loop.call_soon(order.append, "second")
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert order == ["first", "second"]
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert order == ["first", "second", "scheduled by first"]


def test_stop_before_run_forever_makes_exactly_one_turn(loop):
    order: list[int] = []

    def again(number: int) -> None:
        order.append(number)
        loop.call_soon(again, number + 1)

    loop.call_soon(again, 0)
    loop.stop()
    loop.run_forever()
    assert order == [0]
    loop.stop()
    loop.run_forever()
    assert order == [0, 1]


def test_stop_twice_stops_once(loop):
    loop.call_soon(loop.stop)
    loop.call_soon(loop.stop)
    loop.run_forever()
    ran: list[int] = []
    loop.call_soon(ran.append, 1)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == [1]


def test_states_seen_from_outside_and_inside(loop):
    seen: list[Any] = []

    def look() -> None:
        seen.extend([loop.is_running(), loop.is_closed(), asyncio.get_running_loop() is loop])
        loop.stop()

    assert not loop.is_running()
    loop.call_soon(look)
    loop.run_forever()
    assert seen == [True, False, True]
    assert not loop.is_running()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    loop.close()
    assert loop.is_closed()
    loop.close()


def test_run_until_complete_gives_the_result_or_the_exception(loop):
    async def value() -> int:
        await asyncio.sleep(0)
        return 7

    async def failure() -> None:
        raise LookupError("mine")

    assert loop.run_until_complete(value()) == 7
    with pytest.raises(LookupError, match="mine"):
        loop.run_until_complete(failure())
    future = loop.create_future()
    loop.call_soon(future.set_result, "later")
    assert loop.run_until_complete(future) == "later"
    assert loop.run_until_complete(future) == "later"  # already done


def test_run_until_complete_says_so_when_the_loop_was_stopped(loop):
    async def forever() -> None:
        loop.stop()
        await loop.create_future()

    task = loop.create_task(forever())
    with pytest.raises(RuntimeError, match="stopped before Future completed"):
        loop.run_until_complete(task)
    assert not task.done()


def test_run_until_complete_refuses_what_is_no_awaitable(loop):
    with pytest.raises(TypeError):
        loop.run_until_complete(42)


def test_run_until_complete_refuses_a_future_of_another_loop(loop, loop_factory):
    other = loop_factory()
    try:
        with pytest.raises(ValueError):
            loop.run_until_complete(other.create_future())
    finally:
        other.close()


@pytest.mark.asyncio_bug(
    "3.13.0 forgets that it runs when a second run is refused",
    when=(3, 13) <= sys.version_info < (3, 13, 1),
    run=False,
)
def test_running_inside_running_is_refused(run, loop_factory):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="already running"):
            loop.run_forever()
        with pytest.raises(RuntimeError, match="already running"):
            loop.run_until_complete(loop.create_future())
        other = loop_factory()
        try:
            with pytest.raises(RuntimeError, match="another loop is running"):
                other.run_forever()
        finally:
            other.close()
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0)

    run(main())


def test_a_running_loop_cannot_be_closed(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="running"):
            loop.close()
        assert not loop.is_closed()

    run(main())


def test_many_runs_of_one_loop(loop):
    async def value(number: int) -> int:
        await asyncio.sleep(0)
        return number

    assert [loop.run_until_complete(value(n)) for n in range(200)] == list(range(200))


def test_a_future_belongs_to_the_loop_that_made_it(loop):
    future = loop.create_future()
    assert future.get_loop() is loop
    assert isinstance(future, asyncio.Future)


# --- contexts ----

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_callbacks_run_in_a_copy_of_the_current_context(loop):
    seen: list[str] = []
    token = variable.set("outer")
    try:
        loop.call_soon(lambda: seen.append(variable.get()))
        variable.set("changed later")
        loop.call_soon(lambda: (variable.set("inner"), seen.append(variable.get())))
        loop.call_soon(lambda: seen.append(variable.get()))
        loop.call_later(0.001, lambda: seen.append(variable.get()))
        loop.call_later(0.002, loop.stop)
        loop.run_forever()
        # call_soon captures the context object's copy at the time of the call
        assert seen == ["outer", "inner", "changed later", "changed later"]
        assert variable.get() == "changed later"
    finally:
        variable.reset(token)


@pytest.mark.parametrize("schedule", ["call_soon", "call_later", "call_at", "call_soon_threadsafe"])
def test_an_explicit_context_is_used_itself(loop, schedule):
    context = contextvars.copy_context()
    context.run(variable.set, "given")

    def callback() -> None:
        assert variable.get() == "given"
        variable.set("written")
        loop.call_soon(loop.stop)

    delay: tuple[float, ...] = {"call_later": (0.0,), "call_at": (loop.time(),)}.get(schedule, ())
    getattr(loop, schedule)(*delay, callback, context=context)
    loop.run_forever()
    assert context[variable] == "written"
    assert variable.get() == "unset"


def test_a_context_that_is_already_entered_is_logged_or_reported(loop, caplog):
    reports: list[Report] = []
    loop.set_exception_handler(lambda _loop, context: reports.append(context))
    context = contextvars.copy_context()
    ran: list[str] = []

    def scenario() -> None:
        loop.call_soon(ran.append, "never", context=context)
        loop.call_soon(ran.append, "after")
        loop.call_soon(loop.stop)
        loop.run_forever()

    context.run(scenario)
    assert ran == ["after"]
    # since 3.12 the handler would run in that same context, so the default handler logs instead
    assert (
        len(reports) + len([record for record in caplog.records if "cannot enter context" in record.exc_text])
        == 1
    )


SCHEDULE: dict[str, Any] = {
    "soon": lambda loop, *call: loop.call_soon(*call),
    "threadsafe": lambda loop, *call: loop.call_soon_threadsafe(*call),
    "timer": lambda loop, *call: loop.call_later(0, *call),
}
schedules = pytest.mark.parametrize("schedule", SCHEDULE.values(), ids=list(SCHEDULE))


@schedules
def test_what_a_callback_sets_is_its_own(loop, schedule):
    seen: list[str] = []

    def callback(number: int) -> None:
        seen.append(variable.get())
        if number % 3:
            variable.set(f"set by {number}")
        if number % 5 == 0:
            # What the callback schedules does see it.
            loop.call_soon(lambda: seen.append(variable.get()))

    for number in range(20):
        schedule(loop, callback, number)
    loop.run_until_complete(turns(5))
    inherited = ["unset", "set by 5", "set by 10", "unset"]
    assert sorted(seen) == sorted(["unset"] * 20 + inherited)


@schedules
def test_a_handle_has_the_context_of_its_call(loop, schedule):
    seen: list[str] = []

    def plan() -> None:
        for value in ["a", "a", "a", "b", "b", "a", "c", "c"]:
            variable.set(value)
            schedule(loop, lambda: seen.append(variable.get()))
        variable.set("too late")

    contextvars.copy_context().run(plan)
    schedule(loop, lambda: seen.append(variable.get()))
    loop.run_until_complete(turns(5))
    assert seen == ["a", "a", "a", "b", "b", "a", "c", "c", "unset"]


def test_a_token_of_one_callback_is_of_no_use_in_another(loop):
    tokens: list[Any] = []
    seen: list[Any] = []

    def first() -> None:
        tokens.append(variable.set("first"))

    def second() -> None:
        try:
            variable.reset(tokens[0])
        except ValueError as error:
            seen.append(type(error))

    def keeps_a_token_of_what_was() -> None:
        variable.reset(variable.set("x"))

    for callback in (first, second, keeps_a_token_of_what_was, second, loop.stop):
        loop.call_soon(callback)
    loop.run_forever()
    assert seen == [ValueError, ValueError]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Handle.get_context() came with 3.12")
@schedules
def test_get_context_gives_a_handles_own(loop, schedule):
    handles: list[asyncio.Handle] = []
    seen: list[Any] = []

    def callback(number: int) -> None:
        seen.append(variable.get())
        variable.set(f"ran {number}")
        own = handles[number].get_context()
        seen.append(own[variable])
        with pytest.raises(RuntimeError, match="already entered"):
            own.run(lambda: None)

    handles += [schedule(loop, callback, number) for number in range(4)]
    contexts = [handle.get_context() for handle in handles[:2]]
    assert contexts[0] is not contexts[1]
    assert contexts[0] is handles[0].get_context()
    contexts[1].run(variable.set, "from outside")
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert seen == ["unset", "ran 0", "from outside", "ran 1", "unset", "ran 2", "unset", "ran 3"]
    assert [context[variable] for context in contexts] == ["ran 0", "ran 1"]


@pytest.mark.only_zloop("asyncio has a context for each handle")
@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="there each has its own")
@pytest.mark.skipif(sys.maxsize < 2**32, reason="with 32 bits each has its own")
def test_waiting_handles_share_contexts(loop):
    """Where a thread keeps its context is known for this Python."""

    def count() -> int:
        return sum(type(each) is contextvars.Context for each in gc.get_objects())

    before = count()
    handles = [loop.call_soon(int) for _ in range(1000)]
    assert count() - before < 5
    assert len(handles) == 1000


@pytest.mark.skipif(sys.version_info < (3, 12), reason="reports run in the handle's context since 3.12")
def test_reports_see_what_the_failing_callback_has_set(loop):
    seen: list[str] = []
    loop.set_exception_handler(lambda _loop, report: seen.append(variable.get()))

    def callback(number: int) -> None:
        variable.set(f"failed {number}")
        raise ValueError("on purpose")

    for number in range(4):
        loop.call_soon(callback, number)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == [f"failed {number}" for number in range(4)]


@pytest.mark.parametrize("ending", ["idle", "stopped", "closed"])
def test_values_do_not_outlive_the_handles(loop, ending):
    class Value(str):
        __slots__ = ("__weakref__",)

    def plan() -> weakref.ref[Value]:
        value = Value("value")
        variable.set(value)
        for _ in range(4):
            loop.call_soon(lambda: None)
        return weakref.ref(value)

    gone = contextvars.copy_context().run(plan)
    if ending == "closed":
        loop.close()
    else:
        if ending == "stopped":
            loop.call_soon(loop.stop)
        else:
            # The loop finds nothing to do before the timer is due.
            loop.call_later(0.02, lambda: (seen.append(gone()), loop.stop()))
        seen: list[Any] = []
        loop.run_forever()
        assert seen in ([], [None])
    gc.collect()
    assert gone() is None


def test_contexts_of_tasks_are_separate(run):
    async def child(name: str) -> str:
        variable.set(name)
        await asyncio.sleep(0)
        return variable.get()

    async def main() -> None:
        names = [str(number) for number in range(20)]
        assert await asyncio.gather(*map(child, names)) == names
        assert variable.get() == "unset"

    run(main())


# --- tasks ----


def test_create_task_with_a_name(run):
    async def main() -> None:
        task = asyncio.get_running_loop().create_task(asyncio.sleep(0), name="a name")
        assert task.get_name() == "a name"
        assert task in asyncio.all_tasks()
        await task

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="create_task(context=) came with 3.11")
def test_create_task_with_a_context(run):
    async def main() -> None:
        context = contextvars.copy_context()
        context.run(variable.set, "task's own")

        async def child() -> str:
            return variable.get()

        assert await asyncio.get_running_loop().create_task(child(), context=context) == "task's own"

    run(main())


def test_a_task_factory_is_used_and_can_be_removed(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        made: list[Any] = []

        def factory(loop: Any, coroutine: Any, **kwargs: Any) -> asyncio.Task[Any]:
            made.append(coroutine)
            return asyncio.Task(coroutine, loop=loop, **kwargs)

        assert loop.get_task_factory() is None
        loop.set_task_factory(factory)
        assert loop.get_task_factory() is factory
        await asyncio.create_task(asyncio.sleep(0))
        assert len(made) == 1
        loop.set_task_factory(None)
        await asyncio.create_task(asyncio.sleep(0))
        assert len(made) == 1
        with pytest.raises(TypeError):
            loop.set_task_factory("no callable")

    run(main())


def test_tasks_take_turns(run):
    async def main() -> None:
        order: list[str] = []

        async def child(name: str) -> None:
            for step in range(3):
                order.append(f"{name}{step}")
                await asyncio.sleep(0)

        await asyncio.gather(child("a"), child("b"), child("c"))
        assert order == [f"{name}{step}" for step in range(3) for name in "abc"]

    run(main())


def test_cancelling_a_task_that_waits_for_each_kind_of_thing(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for waiting in (
            asyncio.sleep(3600),
            loop.create_future(),
            asyncio.Event().wait(),
            asyncio.Queue().get(),
        ):
            task = asyncio.ensure_future(waiting)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())


def test_an_exception_that_nobody_retrieves_is_reported(run):
    reports: list[Report] = []

    async def main() -> None:
        async def child() -> None:
            raise LookupError("unheard")

        task = asyncio.get_running_loop().create_task(child())
        await asyncio.wait([task])
        del task
        gc.collect()

    run(main(), reports=reports)
    assert [str(report["exception"]) for report in reports] == ["unheard"]
    assert "never retrieved" in reports[0]["message"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_tasks_start_at_once(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        ran: list[str] = []

        async def child() -> str:
            ran.append("started")
            assert asyncio.current_task() is not None
            return "done"

        task = loop.create_task(child())
        assert ran == ["started"]
        assert task.done()
        assert await task == "done"

    run(main())


# --- fairness ----


def test_io_is_seen_while_the_ready_queue_is_never_empty(loop):
    left, right = socket.socketpair()
    left.setblocking(False)
    count = 0

    def spin() -> None:
        nonlocal count
        count += 1
        if count == 100:
            right.send(b"x")
        if count < 1_000_000:
            loop.call_soon(spin)
        else:
            loop.stop()

    loop.add_reader(left, loop.stop)
    loop.call_soon(spin)
    loop.run_forever()
    loop.remove_reader(left)
    left.close()
    right.close()
    assert count < 100_000


def test_timers_fire_while_the_ready_queue_is_never_empty(loop):
    deadline = loop.time() + PATIENCE_S
    ended: list[str] = []

    def end(who: str) -> None:
        ended.append(who)
        loop.stop()

    def spin() -> None:
        if loop.time() < deadline:
            loop.call_soon(spin)
        else:
            end("patience")

    loop.call_soon(spin)
    loop.call_later(0.01, end, "timer")
    loop.run_forever()
    assert ended == ["timer"]


def test_call_soon_from_another_turn_comes_after_due_timers_of_an_earlier_turn(loop):
    order: list[str] = []

    def block() -> None:
        time.sleep(0.005)  # past both deadlines

    loop.call_later(0.002, order.append, "late")
    loop.call_later(0.001, order.append, "early")
    loop.call_soon(block)
    loop.call_later(0.003, loop.stop)
    loop.run_forever()
    assert order == ["early", "late"]


# --- asynchronous generators ----


def test_shutdown_asyncgens_closes_what_was_left_suspended(loop):
    closed: list[str] = []

    async def generator() -> Any:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append("closed")

    suspended = generator()

    async def main() -> None:
        assert await suspended.__anext__() == 1

    loop.run_until_complete(main())
    assert closed == []
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert closed == ["closed"]


def test_a_collected_asyncgen_is_closed_by_the_loop(run):
    async def main() -> None:
        closed = asyncio.Event()

        async def generator() -> Any:
            try:
                yield 1
            finally:
                closed.set()

        suspended = generator()
        await suspended.__anext__()
        del suspended
        gc.collect()
        await within(closed.wait())

    run(main())


def test_asyncgen_hooks_are_restored_after_the_run(loop):
    before = sys.get_asyncgen_hooks()

    async def main() -> Any:
        return sys.get_asyncgen_hooks()

    inside = loop.run_until_complete(main())
    assert inside.firstiter is not None
    assert inside.finalizer is not None
    assert sys.get_asyncgen_hooks() == before


def test_an_asyncgen_started_after_shutdown_warns(loop):
    async def generator() -> Any:
        yield 1

    async def main() -> None:
        await loop.shutdown_asyncgens()
        late = generator()
        with pytest.warns(ResourceWarning, match="asynchronous generator"):
            await late.__anext__()
        await late.aclose()

    loop.run_until_complete(main())


# --- the whole life ----


def test_a_loop_that_is_never_run_can_be_closed(loop_factory: LoopFactory):
    loop_factory().close()


def test_an_unclosed_loop_warns_and_lets_go_of_its_descriptors(loop_factory: LoopFactory):
    loop = loop_factory()
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        del loop
        gc.collect()


def test_pending_callbacks_are_dropped_by_close(loop):
    class Callback:
        def __call__(self) -> None: ...

    callback = Callback()
    loop.call_soon(callback)
    loop.call_later(3600, callback)
    loop.close()
    dead = weakref.ref(callback)
    del callback
    gc.collect()
    assert dead() is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run(loop_factory=) came with 3.12")
def test_asyncio_run_with_loop_factory(loop_factory):
    async def main() -> Any:
        await turns(3)
        return type(asyncio.get_running_loop())

    expected = loop_factory()
    expected.close()
    assert asyncio.run(main(), loop_factory=loop_factory) is type(expected)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Runner came with 3.11")
def test_runner_with_loop_factory_and_contexts(loop_factory):
    async def write() -> None:
        variable.set("kept by the runner")

    async def read() -> str:
        return variable.get()

    with asyncio.Runner(loop_factory=loop_factory, debug=True) as runner:
        runner.run(write())
        assert runner.run(read()) == "kept by the runner"
        assert runner.get_loop().get_debug()
    assert variable.get() == "unset"


@pytest.mark.only_zloop("asyncio waits by a selector")
def test_a_select_that_somebody_has_replaced_is_what_the_loop_waits_by(loop_factory, monkeypatch):
    """gevent and eventlet do so to run other things meanwhile."""
    original = select.select
    waits: list[Any] = []

    def replaced(readers: Any, writers: Any, errors: Any, timeout: Any) -> Any:
        waits.append(timeout)
        if len(waits) == 3:
            # What runs meanwhile, in the same thread, ends the wait.
            loop.call_soon_threadsafe(loop.stop)
        return original(readers, writers, errors, timeout)

    monkeypatch.setattr(select, "select", replaced)
    loop = loop_factory()
    assert loop._select is replaced
    left, right = socket.socketpair()
    with left, right:
        loop.call_later(0.001, right.send, b"x")
        loop.add_reader(left, lambda: (left.recv(1), loop.remove_reader(left)))
        loop.run_forever()
    loop.close()
    assert len(waits) >= 3
    assert waits[2] is None
    assert all(timeout is None or 0 <= timeout < 1 for timeout in waits)


@pytest.mark.only_zloop("asyncio waits by a selector")
def test_what_a_replaced_select_raises_ends_the_run(loop_factory, monkeypatch):
    class Timeout(BaseException):
        pass

    def replaced(*args: Any) -> Any:
        raise Timeout

    monkeypatch.setattr(select, "select", replaced)
    loop = loop_factory()
    loop.call_later(3600, int)
    with pytest.raises(Timeout):
        loop.run_forever()
    monkeypatch.undo()
    loop.close()
