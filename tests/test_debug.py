"""Debug mode: what is checked, what is logged."""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import sys
import time
from typing import Any

import pytest
from harness import PATIENCE_S, child_env, run_program, turns


def test_it_can_be_switched(loop):
    assert loop.get_debug() is bool(sys.flags.dev_mode or os.environ.get("PYTHONASYNCIODEBUG"))
    loop.set_debug(True)
    assert loop.get_debug() is True
    loop.set_debug(False)
    assert loop.get_debug() is False


@pytest.mark.parametrize("switch", ["-Xdev", "PYTHONASYNCIODEBUG"])
def test_the_interpreters_switches_are_honoured(loop_name, switch):
    program = """
        loop = factory()
        print(loop.get_debug())
        loop.close()
    """
    if switch.startswith("-"):
        output = run_program(loop_name, program, switch, check=True)
    else:
        output = run_program(loop_name, program, env={**child_env(), switch: "1"}, check=True)
    assert output.stdout == "True\n"


def test_slow_callbacks_are_logged(run, caplog):
    def slow_function() -> None:
        time.sleep(0.02)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert loop.slow_callback_duration == 0.1
        loop.slow_callback_duration = 0.01
        loop.call_soon(slow_function)
        await turns(3)

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(main(), debug=True)
    (record,) = [record for record in caplog.records if "slow_function" in record.getMessage()]
    assert record.getMessage().startswith("Executing <Handle")
    assert " seconds" in record.getMessage()


def test_slow_tasks_are_logged_by_name(run, caplog):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.slow_callback_duration = 0.01

        async def slow_coroutine() -> None:
            time.sleep(0.02)

        await loop.create_task(slow_coroutine(), name="the slow one")

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(main(), debug=True)
    assert any("slow_coroutine" in record.getMessage() for record in caplog.records)


def test_quick_callbacks_are_not_logged(run, caplog):
    async def main() -> None:
        # What is quick on a machine where others take all the time they can get.
        asyncio.get_running_loop().slow_callback_duration = PATIENCE_S
        await turns(50)

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(main(), debug=True)
    assert [record for record in caplog.records if "Executing" in record.getMessage()] == []


def test_handles_tell_where_they_were_made(loop):
    def callback() -> None: ...

    loop.set_debug(True)
    for handle in (
        loop.call_soon(callback),
        loop.call_later(5, callback),
        loop.call_soon_threadsafe(callback),
    ):
        assert "created at" in repr(handle)
        assert "test_debug.py" in repr(handle)
        handle.cancel()
        assert "cancelled" in repr(handle)
        assert "callback" in repr(handle)


def test_reports_carry_the_source_traceback(run):
    reports: list[dict[str, Any]] = []

    async def main() -> None:
        def broken() -> None:
            raise LookupError("mine")

        asyncio.get_running_loop().call_soon(broken)
        await turns(2)

    run(main(), debug=True, reports=reports)
    assert "source_traceback" in reports[0]


@pytest.mark.parametrize("schedule", ["call_soon", "call_later", "call_at", "call_soon_threadsafe"])
def test_coroutines_and_non_callables_are_refused(run, schedule):
    async def coroutine() -> None: ...

    async def main() -> None:
        loop = asyncio.get_running_loop()
        delay = {"call_later": (1.0,), "call_at": (loop.time() + 1,)}.get(schedule, ())
        for wrong in (coroutine, 5, None):
            with pytest.raises(TypeError):
                getattr(loop, schedule)(*delay, wrong)

    run(main(), debug=True)


def test_coroutine_origins_are_tracked_only_during_the_run(loop):
    loop.set_debug(True)
    before = sys.get_coroutine_origin_tracking_depth()

    async def main() -> int:
        return sys.get_coroutine_origin_tracking_depth()

    assert loop.run_until_complete(main()) > 0
    assert sys.get_coroutine_origin_tracking_depth() == before


def test_everything_works_with_it_switched_during_the_run(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for flag in (True, False, True):
            loop.set_debug(flag)
            await turns(3)
            await asyncio.sleep(0.001)
            assert loop.get_debug() is flag

    run(main())


def test_the_default_exception_handler_logs_the_whole_context(loop, caplog):
    def broken() -> None:
        raise LookupError("mine")

    assert loop.get_exception_handler() is None
    loop.call_soon(broken)
    loop.call_soon(loop.stop)
    with caplog.at_level(logging.ERROR, "asyncio"):
        loop.run_forever()
    (record,) = caplog.records
    assert "Exception in callback" in record.getMessage()
    assert "broken" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


def test_a_thread_without_python_frames_schedules(loop):
    """As those of libraries in other languages; here the thread's function is the method itself."""
    loop.set_debug(True)
    reports: list[Any] = []
    loop.set_exception_handler(lambda loop, context: reports.append(context))

    def fail() -> None:
        loop.stop()
        raise LookupError("reported")

    _thread.start_new_thread(loop.call_soon_threadsafe, (fail,))
    guard = loop.call_later(PATIENCE_S, loop.stop)
    loop.run_forever()
    guard.cancel()
    assert [str(report["exception"]) for report in reports] == ["reported"]
