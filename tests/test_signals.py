"""Signals: handlers of the loop, Ctrl-C, the wake-up descriptor."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import PATIENCE_S, child_env, until, within


@pytest.fixture(autouse=True)
def signals_are_restored() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    wakeup = signal.set_wakeup_fd(-1)
    yield
    left = signal.set_wakeup_fd(wakeup)
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert left == -1, "the wake-up descriptor was left behind"
    assert after == before


def test_a_handler_runs_in_the_loop(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        got: list[Any] = []
        done = asyncio.Event()

        def handler(*args: Any) -> None:
            got.append((args, threading.get_ident(), asyncio.get_running_loop() is loop))
            done.set()

        loop.add_signal_handler(signal.SIGUSR1, handler, "a", 2)
        for count in range(1, 4):
            done.clear()
            os.kill(os.getpid(), signal.SIGUSR1)
            await within(done.wait())
            assert len(got) == count
        assert got[0] == (("a", 2), threading.get_ident(), True)
        assert loop.remove_signal_handler(signal.SIGUSR1) is True
        assert loop.remove_signal_handler(signal.SIGUSR1) is False

    run(main())


def test_a_signal_wakes_an_idle_loop(loop):
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    thread = threading.Timer(0.02, os.kill, [os.getpid(), signal.SIGUSR1])
    thread.start()
    loop.run_forever()
    thread.join()
    assert loop.remove_signal_handler(signal.SIGUSR1)


def test_a_handler_can_be_replaced(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        old: list[int] = []
        new = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, old.append, 1)
        loop.add_signal_handler(signal.SIGUSR1, new.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await within(new.wait())
        assert old == []
        loop.remove_signal_handler(signal.SIGUSR1)

    run(main())


def test_several_signals(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        got: list[int] = []
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            loop.add_signal_handler(number, got.append, number)
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        await until(lambda: len(got) == 3)
        assert sorted(got) == sorted([signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            assert loop.remove_signal_handler(number)

    run(main())


def test_what_cannot_be_handled_is_refused(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in (0, -1, 10_000):
            with pytest.raises(ValueError):
                loop.add_signal_handler(number, lambda: None)
        with pytest.raises(TypeError):
            loop.add_signal_handler("SIGTERM", lambda: None)
        for number in (signal.SIGKILL, signal.SIGSTOP):
            with pytest.raises((RuntimeError, ValueError, OSError)):
                loop.add_signal_handler(number, lambda: None)

        async def coroutine() -> None: ...

        with pytest.raises(TypeError):
            loop.add_signal_handler(signal.SIGUSR1, coroutine)
        assert loop.remove_signal_handler(signal.SIGUSR1) is False
        assert signal.set_wakeup_fd(-1) == -1  # refusals leave nothing set

    run(main())


def test_only_the_main_thread_may(loop_factory):
    problems: list[BaseException] = []

    def work() -> None:
        loop = loop_factory()
        try:
            loop.add_signal_handler(signal.SIGUSR1, lambda: None)
        except (ValueError, RuntimeError) as exc:
            problems.append(exc)
        finally:
            loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE_S)
    assert len(problems) == 1


def test_close_restores_the_signals(loop_factory):
    loop = loop_factory()
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_raises_is_reported(run):
    reports: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def broken() -> None:
            raise LookupError("handler")

        loop.add_signal_handler(signal.SIGUSR1, broken)
        os.kill(os.getpid(), signal.SIGUSR1)
        await until(lambda: reports)
        loop.remove_signal_handler(signal.SIGUSR1)

    run(main(), reports=reports)
    assert [str(report["exception"]) for report in reports] == ["handler"]


def test_a_python_handler_runs_while_the_loop_waits(loop):
    order: list[str] = []

    def end(who: str) -> None:
        order.append(who)
        loop.call_soon_threadsafe(loop.stop)

    previous = signal.signal(signal.SIGUSR1, lambda *_: end("handler"))
    try:
        thread = threading.Timer(0.02, os.kill, [os.getpid(), signal.SIGUSR1])
        thread.start()
        timer = loop.call_later(PATIENCE_S, end, "timer")
        loop.run_forever()
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert order == ["handler"]  # and not only after the timer
    timer.cancel()


@pytest.mark.parametrize("state", ["idle", "timer", "busy", "callback", "io"])
def test_keyboard_interrupt_leaves_run_forever(loop, state):
    """The default handler of SIGINT raises out of the run from every state, and the loop can run again."""
    sender = threading.Timer(0.03, os.kill, [os.getpid(), signal.SIGINT])
    readers: list[Any] = []
    if state == "timer":
        loop.call_later(3600, lambda: None)
    elif state == "busy":

        def spin() -> None:
            loop.call_soon(spin)

        loop.call_soon(spin)
    elif state == "callback":
        loop.call_soon(time.sleep, 0.1)
        loop.call_later(10, loop.stop)
    elif state == "io":
        reader, writer = os.pipe()
        readers = [reader, writer]
        os.write(writer, b"x")
        loop.add_reader(reader, lambda: None)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    sender.join()
    assert not loop.is_running()
    if readers:
        loop.remove_reader(readers[0])
        for fd in readers:
            os.close(fd)

    async def again() -> str:
        await asyncio.sleep(0.001)
        return "runs again"

    assert loop.run_until_complete(again()) == "runs again"


def test_keyboard_interrupt_in_run_until_complete(loop):
    async def forever() -> None:
        await loop.create_future()

    sender = threading.Timer(0.03, os.kill, [os.getpid(), signal.SIGINT])
    sender.start()
    task = loop.create_task(forever())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(task)
    sender.join()
    assert not task.done()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Runner came with 3.11")
def test_the_runner_turns_ctrl_c_into_cancellation(loop_factory):
    events: list[str] = []

    async def main() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    with pytest.raises(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert events == ["cancelled"]


def test_the_wake_up_descriptor_of_the_user_is_restored(loop_factory):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    try:
        loop = loop_factory()
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
        assert signal.set_wakeup_fd(-1) == writer
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_real_process_leaves_cleanly_by_signal(loop_name, name):
    """The signals a terminal or a service manager sends, against a program of its own."""
    program = textwrap.dedent(
        f"""
        import asyncio, importlib, os, signal, sys
        module, _, attribute = {loop_name!r}.partition(":")
        loop = getattr(importlib.import_module(module), attribute)()
        async def main():
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            print("ready", flush=True)
            await stop.wait()
            print("stopped", flush=True)
        try:
            loop.run_until_complete(main())
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        finally:
            loop.close()
        """
    )
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program], stdout=subprocess.PIPE, env=child_env(), text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(getattr(signal, name))
    output, _ = child.communicate(timeout=PATIENCE_S)
    expected = "interrupted\n" if name == "SIGINT" else "stopped\n"
    assert (output, child.returncode) == (expected, 0)


# A signal that arrives while a callback in C runs has been noted by the interpreter, but no bytecode and no
# interrupted system call sees to it. `_thread.interrupt_main()` is such a callback: it notes the signal and
# returns.


class Interrupted(KeyboardInterrupt):
    pass


def interrupt(number: int, frame: Any) -> None:
    raise Interrupted


@contextlib.contextmanager
def handled_by(handler: Callable[..., Any]) -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_during_a_callback_in_c_is_seen_before_the_wait(loop):
    loop.call_soon(_thread.interrupt_main, signal.SIGUSR1)
    guard = loop.call_later(PATIENCE_S, loop.stop)
    with handled_by(interrupt), pytest.raises(Interrupted):
        loop.run_forever()
    guard.cancel()


def test_a_signal_is_seen_between_turns(loop):
    order: list[str] = []
    loop.call_soon(_thread.interrupt_main, signal.SIGUSR1)
    loop.call_soon(functools.partial(loop.call_soon, order.append, "next turn"))
    loop.call_soon(functools.partial(loop.call_soon, loop.stop))
    with handled_by(lambda *args: order.append("handler")):
        loop.run_forever()
    assert order == ["handler", "next turn"]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the interpreter is asked once a turn")
def test_a_signal_is_seen_between_callbacks_of_a_turn(loop):
    order: list[str] = []
    loop.call_soon(_thread.interrupt_main, signal.SIGUSR1)
    loop.call_soon(order.append, "next callback")
    loop.call_soon(loop.stop)
    with handled_by(lambda *args: order.append("handler")):
        loop.run_forever()
    assert order == ["handler", "next callback"]


@pytest.mark.parametrize("spin", ["callbacks", "reader"])
def test_a_signal_is_seen_while_nothing_but_callbacks_in_c_run(loop, spin):
    left, right = socket.socketpair()
    with left, right:
        if spin == "reader":
            right.send(b"x")
            # Never read: every poll reports it.
            loop.add_reader(left, int)
        else:
            again = functools.partial(loop.call_soon)
            again.__setstate__((loop.call_soon, (again,), {}, {}))
            loop.call_soon(again)
        loop.call_soon(_thread.interrupt_main, signal.SIGUSR1)
        guard = threading.Timer(PATIENCE_S, loop.call_soon_threadsafe, [loop.stop])
        guard.start()
        with handled_by(interrupt), pytest.raises(Interrupted):
            loop.run_forever()
        guard.cancel()
        guard.join()
        loop.remove_reader(left)


@pytest.mark.parametrize("deed", ["call_soon_threadsafe", "call_later", "stop"])
def test_what_a_handler_does_before_the_wait_ends_it(loop, deed):
    """The handler runs when the loop has nothing to do, and is about to wait."""

    def handler(*args: Any) -> None:
        if deed == "call_soon_threadsafe":
            loop.call_soon_threadsafe(loop.stop)
        elif deed == "call_later":
            loop.call_later(0.001, loop.stop)
        else:
            loop.stop()

    late: list[int] = []
    guard = loop.call_later(PATIENCE_S, lambda: (late.append(1), loop.stop()))
    loop.call_soon(_thread.interrupt_main, signal.SIGUSR1)
    with handled_by(handler):
        loop.run_forever()
    guard.cancel()
    assert not late
