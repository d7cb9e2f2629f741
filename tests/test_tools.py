"""Tools that reach for an asyncio loop's insides: nested runs, moved clocks, changed functions.

Each test does what the tool does, or runs the tool itself; it is skipped with a reason where that is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import harness
import pytest
from harness import Log, connected, turns, until, within

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


# Nested runs. asyncio's loop is patched by nest_asyncio2, on a class of its own; zloop's is not.


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left in the process by nest_asyncio's and nest_asyncio2's apply()."""
    monkeypatch.setattr(asyncio, "_nest_patched", True, raising=False)


def patched(factory: harness.LoopFactory) -> asyncio.AbstractEventLoop:
    loop = factory()
    if type(loop) is asyncio.SelectorEventLoop:
        loop.close()
        nest = pytest.importorskip("nest_asyncio2", reason="nest_asyncio2 is not installed")
        loop = type("Patched", (asyncio.SelectorEventLoop,), {})()
        nest._patch_loop(loop)
    return loop


@pytest.fixture
def nesting(loop_factory: harness.LoopFactory, allowed: None) -> Iterator[asyncio.AbstractEventLoop]:
    loop = patched(loop_factory)
    yield loop
    if not loop.is_closed():
        harness.finish(loop)


@pytest.fixture
def reports(nesting: asyncio.AbstractEventLoop) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    nesting.set_exception_handler(lambda _loop, context: seen.append(context))
    return seen


def test_a_run_inside_a_task(nesting, reports):
    async def inner() -> Any:
        await asyncio.sleep(0.001)
        task = asyncio.ensure_future(turns(3))
        await asyncio.gather(task, asyncio.sleep(0))
        return asyncio.current_task()

    async def main() -> None:
        own = asyncio.current_task()
        hooks = sys.get_asyncgen_hooks()
        task = nesting.run_until_complete(inner())
        assert task is not own
        assert asyncio.current_task() is own
        assert asyncio.get_running_loop() is nesting
        assert sys.get_asyncgen_hooks() == hooks
        assert nesting.is_running()
        future = nesting.create_future()
        nesting.call_later(0.001, future.set_result, 5)
        assert nesting.run_until_complete(future) == 5
        await turns(2)

    nesting.run_until_complete(main())
    assert not nesting.is_running()
    assert reports == []


def test_runs_inside_runs(nesting, reports):
    async def level(depth: int) -> int:
        await asyncio.sleep(0)
        return 1 + nesting.run_until_complete(level(depth - 1)) if depth else 0

    assert nesting.run_until_complete(level(20)) == 20
    assert reports == []


def test_a_run_inside_a_plain_callback(nesting, reports):
    order: list[str] = []

    def callback() -> None:
        order.append("begin")
        nesting.call_soon(order.append, "inside")
        nesting.run_until_complete(asyncio.sleep(0.001))
        order.append("end")

    nesting.call_soon(callback)
    nesting.run_until_complete(turns(2))
    assert order == ["begin", "inside", "end"]
    assert reports == []


def test_debug_mode(nesting, reports, caplog):
    nesting.set_debug(True)
    nesting.slow_callback_duration = 1e-9

    async def main() -> None:
        nesting.run_until_complete(asyncio.sleep(0.001))
        await asyncio.sleep(0)

    nesting.run_until_complete(main())
    assert reports == []


def test_data_that_comes_while_data_received_runs_the_loop(nesting, reports):
    left, right = socket.socketpair()
    got: list[bytes] = []

    class Nests(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            got.append(data)
            if data == b"first":
                right.send(b"second")
                nesting.run_until_complete(asyncio.sleep(0.02))
                right.send(b"third")
                got.append(b"back")

    async def main() -> None:
        transport, _ = await nesting.create_connection(Nests, sock=left)
        right.send(b"first")
        await until(lambda: b"".join(got[2:]) == b"secondthird")
        transport.close()
        await turns(2)

    with right:
        nesting.run_until_complete(main())
    assert got[:2] == [b"first", b"back"]
    assert reports == []


@pytest.mark.only_zloop("nest_asyncio2 asks again and again")
def test_what_has_to_wait_costs_nothing(nesting, reports):
    left, right = socket.socketpair()
    spent: list[float] = []

    class Nests(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            right.send(b"more")
            if not spent:
                before = time.process_time()
                nesting.run_until_complete(asyncio.sleep(0.5))
                spent.append(time.process_time() - before)

    async def main() -> None:
        transport, _ = await nesting.create_connection(Nests, sock=left)
        right.send(b"first")
        await until(lambda: spent)
        transport.abort()
        await turns(2)

    with right:
        nesting.run_until_complete(main())
    assert spent[0] < 0.25
    assert reports == []


@pytest.mark.parametrize("ending", ["close", "abort"])
def test_a_connection_that_ends_inside_its_own_data_received(nesting, reports, ending):
    left, right = socket.socketpair()
    events: list[str] = []

    class Nests(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            events.append("data")
            right.send(b"more")
            self.transport.write(b"answer")
            nesting.run_until_complete(asyncio.sleep(0.005))
            getattr(self.transport, ending)()
            nesting.run_until_complete(asyncio.sleep(0.005))
            events.append("back")

        def connection_lost(self, exc: Exception | None) -> None:
            events.append("lost")
            done.set_result(None)

    done = nesting.create_future()

    async def main() -> None:
        await nesting.create_connection(Nests, sock=left)
        right.send(b"first")
        await within(done)

    with right:
        nesting.run_until_complete(main())
        assert right.recv(100) == b"answer"
    assert sorted(events) == ["back", "data", "lost"]
    assert reports == []


def test_what_a_callback_has_written_leaves_before_the_inner_run_waits(nesting, reports, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            pair.client_transport.write(b"question")
            assert nesting.run_until_complete(pair.server.got(8)) == b"question"
            pair.server_transport.write(b"answer")
            assert nesting.run_until_complete(pair.client.got(6)) == b"answer"

    nesting.run_until_complete(main())
    assert reports == []


class NestsInPause(Log):
    """Has its peer read while pause_writing() waits."""

    def pause_writing(self) -> None:
        super().pause_writing()
        asyncio.get_running_loop().run_until_complete(asyncio.sleep(0.005))
        self.events.append("waited")


def test_room_that_comes_while_pause_writing_runs_the_loop(nesting, reports):
    async def main() -> None:
        left, right = socket.socketpair()
        transport, protocol = await nesting.create_connection(NestsInPause, sock=left)
        _, reader = await nesting.create_connection(Log, sock=right)
        transport.write(bytes(4_000_000))
        await reader.got(4_000_000)
        await protocol.when(lambda: not protocol.paused)
        assert protocol.events.count("pause") == 1
        assert protocol.events.count("resume") == 1
        for one in (protocol, reader):
            await harness.wait_closed(one.transport, one)

    nesting.run_until_complete(main())
    assert reports == []


def test_datagrams_and_pipes_inside(nesting, reports):
    read, write = os.pipe()
    log: Any = None
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    class Nests(asyncio.DatagramProtocol):
        seen: list[bytes]

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.seen.append(data)
            if len(self.seen) == 1:
                sender.send(b"2")
                nesting.run_until_complete(until(lambda: log.received == b"inside"))
                assert self.seen == [b"1"]
                sender.send(b"3")

    async def main() -> None:
        nonlocal log
        transport, protocol = await nesting.create_datagram_endpoint(Nests, local_addr=("127.0.0.1", 0))
        protocol.seen = []
        sender.connect(transport.get_extra_info("sockname"))
        pipe, log = await nesting.connect_read_pipe(Log, os.fdopen(read, "rb", 0))
        nesting.call_later(0.01, os.write, write, b"inside")
        sender.send(b"1")
        await until(lambda: protocol.seen == [b"1", b"2", b"3"])
        transport.close()
        pipe.close()
        await turns(3)

    with sender:
        nesting.run_until_complete(main())
    os.close(write)
    assert reports == []


def test_children_and_signals_inside(nesting, reports):
    async def child() -> bytes:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print('hello')", stdout=asyncio.subprocess.PIPE
        )
        return (await process.communicate())[0]

    async def main() -> None:
        if sys.version_info >= (3, 12) or "zloop" in type(nesting).__module__:
            assert nesting.run_until_complete(child()) == b"hello\n"
        came = nesting.create_future()
        nesting.add_signal_handler(signal.SIGUSR1, came.set_result, "signal")
        os.kill(os.getpid(), signal.SIGUSR1)
        assert nesting.run_until_complete(came) == "signal"
        nesting.remove_signal_handler(signal.SIGUSR1)

    nesting.run_until_complete(main())
    assert reports == []


@pytest.mark.parametrize("kind_of_exception", [LookupError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_inner_run(nesting, reports, kind_of_exception):
    async def fails() -> None:
        await asyncio.sleep(0)
        raise kind_of_exception("mine")

    async def main() -> str:
        own = asyncio.current_task()
        with pytest.raises(kind_of_exception, match="mine"):
            nesting.run_until_complete(fails())
        assert asyncio.current_task() is own
        assert asyncio.get_running_loop() is nesting
        await turns(3)
        return "went on"

    assert nesting.run_until_complete(main()) == "went on"
    assert reports == []


def test_a_callbacks_exit_leaves_the_innermost_run(nesting, reports):
    def leaves() -> None:
        raise KeyboardInterrupt

    async def main() -> str:
        nesting.call_soon(leaves)
        with pytest.raises(KeyboardInterrupt):
            nesting.run_until_complete(asyncio.sleep(5))
        await turns(2)
        return "went on"

    assert nesting.run_until_complete(main()) == "went on"


def test_stop_ends_the_innermost_run_forever(nesting, reports):
    events: list[str] = []

    def callback() -> None:
        nesting.call_soon(nesting.stop)
        nesting.run_forever()
        events.append("inner over")

    async def main() -> str:
        nesting.call_soon(callback)
        await asyncio.sleep(0.005)
        return "went on"

    assert nesting.run_until_complete(main()) == "went on"
    assert events == ["inner over"]
    assert reports == []


def test_stop_inside_run_until_complete_ends_the_run_around_it_too(nesting, reports):
    async def main() -> None:
        nesting.call_soon(nesting.stop)
        with pytest.raises(RuntimeError, match="stopped before Future completed"):
            nesting.run_until_complete(asyncio.sleep(5))
        await asyncio.sleep(5)

    with pytest.raises(RuntimeError, match="stopped before Future completed"):
        nesting.run_until_complete(main())
    nesting._stopping = False  # nest_asyncio2 leaves it set
    nesting.run_until_complete(turns(2))


def test_the_outer_future_is_done_inside(nesting, reports):
    """It ends its own run, when that is the innermost again."""
    events: list[str] = []

    async def main() -> str:
        await asyncio.sleep(0.001)
        events.append("main done")
        return "result"

    def callback() -> None:
        nesting.run_until_complete(asyncio.sleep(0.02))
        events.append("inner done")

    nesting.call_soon(callback)
    assert nesting.run_until_complete(main()) == "result"
    assert events == ["main done", "inner done"]
    assert reports == []


def test_asynchronous_generators_are_the_loops_inside_too(nesting, reports):
    closed: list[bool] = []

    async def generator() -> Any:
        try:
            yield 1
        finally:
            closed.append(True)

    kept: list[Any] = []

    async def inner() -> None:
        kept.append(generator())
        await kept[0].__anext__()

    async def main() -> None:
        nesting.run_until_complete(inner())

    nesting.run_until_complete(main())
    nesting.run_until_complete(nesting.shutdown_asyncgens())
    assert closed == [True]


@pytest.mark.parametrize("debug", [False, True])
def test_another_loop_inside(loop_factory, nesting, reports, debug):
    async def inner() -> Any:
        await asyncio.sleep(0.001)
        return asyncio.get_running_loop(), asyncio.current_task()

    async def main() -> None:
        own = asyncio.current_task()
        other = patched(loop_factory)
        other.set_debug(debug)
        try:
            for _ in range(2):
                running, task = other.run_until_complete(inner())
                assert running is other
                assert task is not own
                assert not other.is_running()
                assert asyncio.get_running_loop() is nesting
                assert asyncio.current_task() is own
        finally:
            other.close()
        await turns(2)

    nesting.run_until_complete(main())
    assert reports == []


def test_callbacks_of_an_entered_context_wait(nesting, reports):
    """As a notebook's cells: they share one context, which is entered while one of them runs the loop."""
    context = contextvars.copy_context()
    order: list[str] = []

    def cell() -> None:
        VARIABLE.set("cell")
        for name in "ab":
            nesting.call_soon(lambda name=name: order.append(name + VARIABLE.get()), context=context)
        nesting.call_soon(order.append, "other")
        nesting.run_until_complete(asyncio.sleep(0.001))
        order.append("cell over")
        nesting.call_soon(order.append, "later")

    nesting.call_soon(cell, context=context)
    nesting.run_until_complete(until(lambda: "later" in order))
    assert order == ["other", "cell over", "acell", "bcell", "later"]
    assert reports == []


@pytest.mark.only_zloop("nest_asyncio2 queues it once for each poll")
def test_a_reader_that_runs_the_loop(nesting, reports):
    left, right = socket.socketpair()
    calls: list[int] = []

    def ready() -> None:
        calls.append(1)
        if len(calls) == 1:
            nesting.run_until_complete(asyncio.sleep(0.01))
            calls.append(2)
        left.recv(100)

    with left, right:
        left.setblocking(False)
        nesting.add_reader(left, ready)
        right.send(b"x")
        nesting.run_until_complete(asyncio.sleep(0.03))
        nesting.remove_reader(left)
    # Once more than there was to read: it had been queued before it was read.
    assert calls[:2] == [1, 2]
    assert len(calls) <= 3
    assert len(reports) == len(calls) - 2


@pytest.mark.only_zloop("nest_asyncio2 keeps such callbacks in a list of its own")
def test_a_loop_that_closes_with_callbacks_that_wait(nesting, reports):
    context = contextvars.copy_context()
    values: list[Any] = []

    class Value:
        pass

    def cell() -> None:
        value = Value()
        values.append(weakref.ref(value))
        nesting.call_soon(id, value, context=context)
        left, right = socket.socketpair()
        nesting.run_until_complete(asyncio.sleep(0))
        gc.collect()
        left.close(), right.close()
        raise SystemExit

    nesting.call_soon(cell, context=context)
    with pytest.raises(SystemExit):
        nesting.run_forever()
    nesting.close()
    gc.collect()
    assert values[0]() is None


@pytest.mark.only_zloop("of its own memory")
def test_ten_thousand_nested_runs_leave_nothing(nesting, reports):
    async def main() -> None:
        for count in range(10_000):
            nesting.run_until_complete(asyncio.sleep(0))
            if count == 1000:
                gc.collect()
                fds = harness.open_fds()
                before = len(gc.get_objects())
        gc.collect()
        assert len(gc.get_objects()) < before + 500
        assert harness.open_fds().keys() == fds.keys()

    nesting.run_until_complete(main())


@pytest.mark.only_zloop("nest_asyncio2 lets two threads run one loop")
def test_another_threads_loop_stays_another_threads(loop_factory, nesting):
    refused: list[str] = []

    def work() -> None:
        other = loop_factory()
        try:
            other.run_until_complete(attempt())
        finally:
            other.close()

    async def attempt() -> None:
        coroutine = turns(1)
        with contextlib.closing(coroutine):
            try:
                nesting.run_until_complete(coroutine)
            except RuntimeError as error:
                refused.append(str(error))

    async def main() -> None:
        await nesting.run_in_executor(None, work)

    nesting.run_until_complete(main())
    assert refused == ["This event loop is already running"]


@pytest.mark.asyncio_bug(
    "a refused run ends the one that goes on", when=sys.version_info[:3] == (3, 13, 0), run=False
)
def test_a_run_inside_a_run_is_refused_as_ever(loop, loop_factory):
    async def main() -> None:
        other = loop_factory()
        for one, message in (
            (loop, "This event loop is already running"),
            (other, "Cannot run the event loop while another loop is running"),
        ):
            with pytest.raises(RuntimeError, match=message):
                one.run_forever()
            with pytest.raises(RuntimeError, match=message):
                one.run_until_complete(one.create_future())
        other.close()
        assert asyncio.get_running_loop() is loop
        await turns(2)

    loop.run_until_complete(main())


@pytest.mark.only_zloop("asyncio's next run is ended by it")
def test_a_future_that_is_done_as_the_loop_stops(loop):
    future = loop.create_future()

    def both() -> None:
        loop.stop()
        future.set_result(1)

    loop.call_soon(both)
    assert loop.run_until_complete(future) == 1
    loop.run_until_complete(asyncio.sleep(0.001))


NESTED_PROGRAM = """
{before}
loop = factory()
asyncio.set_event_loop(loop)
{after}

async def inner(depth):
    await asyncio.sleep(0.001)
    return 0 if depth == 0 else 1 + loop.run_until_complete(inner(depth - 1))

async def main():
    task = asyncio.current_task()
    print(loop.run_until_complete(inner(5)), asyncio.current_task() is task)
    print(asyncio.run(inner(1)))
    return "end"

print(loop.run_until_complete(main()))
loop.close()
"""


@pytest.mark.parametrize("package", ["nest_asyncio", "nest_asyncio2"])
@pytest.mark.parametrize("argument", ["", "loop"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_packages(loop_name, package, argument, when):
    pytest.importorskip(package, reason=f"{package} is not installed")
    if package == "nest_asyncio" and sys.version_info >= (3, 14):
        pytest.skip("nest_asyncio ended with 3.13")
    if when == "before" and argument:
        pytest.skip("there is no loop to give")
    if when == "before" and (sys.version_info >= (3, 14) or loop_name.startswith("asyncio")):
        pytest.skip("without a loop nothing of asyncio's is patched")
    apply = f"import {package}; {package}.apply({argument})"
    program = NESTED_PROGRAM.format(**{"before": "", "after": "", when: apply})
    result = harness.run_program(loop_name, program)
    assert (result.stdout, result.returncode) == ("5 True\n1\nend\n", 0), result.stderr


def test_apply_inside_of_a_run(loop_name):
    pytest.importorskip("nest_asyncio2", reason="nest_asyncio2 is not installed")
    program = """
        import nest_asyncio2
        async def outer():
            loop = asyncio.get_running_loop()
            nest_asyncio2.apply()
            print(loop.run_until_complete(asyncio.sleep(0.001, "inner")))
            return "outer"
        loop = factory()
        print(loop.run_until_complete(outer()))
        loop.close()
        """
    assert harness.run_program(loop_name, program).stdout == "inner\nouter\n"


# Clocks.


def test_a_replaced_monotonic_is_the_loops_clock(loop, monkeypatch):
    async def main() -> None:
        now = 5.0
        before = loop.time()
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: now)
            assert loop.time() == 5.0
            fired: list[float] = []
            loop.call_later(10, lambda: fired.append(loop.time()))
            loop.call_at(12, lambda: fired.append(loop.time()))
            await turns(5)
            assert fired == []
            now = 13.0
            await turns(5)
            assert fired == [13.0]
            now = 15.0
            await turns(5)
            assert fired == [13.0, 15.0]
        assert before <= loop.time() < before + 60
        await asyncio.sleep(0.001)

    loop.run_until_complete(main())


def test_a_clock_of_another_function_of_the_interpreters(loop, monkeypatch):
    monkeypatch.setattr(time, "monotonic", time.time)
    assert abs(loop.time() - time.time()) < 60
    loop.run_until_complete(asyncio.sleep(0.001))
    monkeypatch.delattr(time, "monotonic")
    with pytest.raises(AttributeError):
        loop.time()
    monkeypatch.undo()
    assert abs(loop.time() - time.monotonic()) < 60


def test_the_interpreters_own_clock_on_a_loop(loop, monkeypatch):
    """Home Assistant does it, to save a call."""
    loop.time = time.monotonic
    loop.run_until_complete(asyncio.sleep(0.001))
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    assert loop.time() > 5.0
    loop.run_until_complete(asyncio.sleep(0.001))


def test_a_time_on_asyncios_own_class(loop, monkeypatch):
    real = time.monotonic
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda self: real() + 1000)

    async def main() -> None:
        assert loop.time() - real() > 900
        await asyncio.sleep(0.001)

    loop.run_until_complete(main())


def test_a_class_with_a_clock_that_a_running_loop_becomes(loop):
    async def main() -> None:
        plain = type(loop)
        due = loop.create_future()
        loop.call_later(500, due.set_result, None)
        loop.__class__ = type("Ahead", (plain,), {"time": lambda self: plain.time(self) + 1000})
        await within(due)
        loop.__class__ = plain
        await asyncio.sleep(0.001)

    loop.run_until_complete(main())


def test_freezegun(loop):
    freezegun = pytest.importorskip("freezegun", reason="freezegun is not installed")

    async def main() -> None:
        before = loop.time()
        with freezegun.freeze_time("2020-01-01") as frozen:
            now = loop.time()
            fired = loop.create_future()
            loop.call_later(60, fired.set_result, None)
            await turns(3)
            assert loop.time() == now
            assert not fired.done()
            frozen.tick(61)
            await turns(3)
            assert loop.time() == now + 61
            assert fired.done()
        with freezegun.freeze_time("2020-01-01", tick=True):
            await asyncio.sleep(0.001)
        with freezegun.freeze_time("2020-01-01", real_asyncio=True):
            await asyncio.sleep(0.001)
        assert before <= loop.time() < before + 60

    loop.run_until_complete(main())


def test_time_machine(loop):
    time_machine = pytest.importorskip("time_machine", reason="time-machine is not installed")

    async def main() -> None:
        before = loop.time()
        with time_machine.travel(0, tick=False):
            assert time.time() == 0
            await asyncio.sleep(0.001)
            assert before < loop.time() < before + 60

    loop.run_until_complete(main())


def test_looptime(loop):
    pytest.importorskip("looptime", reason="looptime is not installed")
    import looptime

    started = time.monotonic()
    looptime.patch_event_loop(loop)

    async def main() -> None:
        begun = loop.time()
        await asyncio.sleep(3600)
        assert loop.time() - begun == pytest.approx(3600)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 100)
        assert loop.time() - begun == pytest.approx(3700)
        await loop.run_in_executor(None, time.sleep, 0.01)
        async with connected("tcp") as pair:
            loop.call_later(10, pair.client_transport.write, b"x")
            await pair.server.got(1)
            await asyncio.sleep(100)

    loop.run_until_complete(main())
    assert time.monotonic() - started < 20


def test_a_replaced_select_is_polled_through(loop):
    asked: list[Any] = []
    selector = loop._selector
    select = selector.select

    def counting(timeout: float | None = None) -> Any:
        asked.append(timeout)
        return select(timeout)

    async def main() -> None:
        await turns(3)
        future = loop.create_future()
        timer = threading.Timer(0.01, loop.call_soon_threadsafe, (future.set_result, None))
        timer.start()
        await within(future)
        timer.join()
        async with connected("tcp") as pair:
            pair.client_transport.write(b"x")
            await pair.server.got(1)

    selector.select = counting
    loop.run_until_complete(main())
    assert asked[0] == 0
    assert any(timeout and timeout > 1 for timeout in asked)
    del selector.select
    count = len(asked)
    loop.run_until_complete(turns(3))
    assert len(asked) == count


def test_a_select_that_raises(loop):
    def broken(timeout: float | None = None) -> Any:
        raise LookupError("mine")

    loop._selector.select = broken
    with pytest.raises(LookupError, match="mine"):
        loop.run_forever()
    del loop._selector.select
    loop.run_until_complete(turns(2))


@pytest.mark.only_zloop("asyncio's selector does not know the loop")
def test_what_select_takes(loop):
    select = loop._selector.select
    assert select(-1) == []
    loop.call_soon(int)
    assert select(None) == []  # something is ready already
    loop.run_until_complete(turns(1))
    with pytest.raises(ValueError, match="NaN"):
        select(float("nan"))
    with pytest.raises(TypeError):
        select("x")

    async def main() -> None:
        with pytest.raises(RuntimeError, match="own thread"):
            await loop.run_in_executor(None, select, 0)

    loop.run_until_complete(main())
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        select(0)


# Changed functions.


@pytest.fixture
def counted_runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    runs: list[Any] = []
    real = asyncio.Handle._run

    def counting(self: asyncio.Handle) -> None:
        runs.append(self._callback)
        return real(self)

    monkeypatch.setattr(asyncio.Handle, "_run", counting)
    return runs


def test_a_changed_handle_run(loop, counted_runs, monkeypatch):
    reports: list[Any] = []
    loop.set_exception_handler(lambda _loop, context: reports.append(context["exception"]))

    def fails(*args: Any) -> None:
        raise LookupError(*args)

    async def main() -> None:
        loop.call_soon(fails, 1, 2, 3, 4, 5)
        loop.call_later(0.001, fails)
        loop.call_soon_threadsafe(fails, 1)
        loop.call_soon(counted_runs.append, "cancelled").cancel()
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())
    assert [error.args for error in reports] == [(1, 2, 3, 4, 5), (1,), ()]
    assert counted_runs.count(fails) == 3
    assert "cancelled" not in counted_runs
    monkeypatch.undo()
    count = len(counted_runs)
    loop.run_until_complete(turns(3))
    assert len(counted_runs) == count


@pytest.mark.parametrize("kind_of_exception", [LookupError, SystemExit])
def test_a_changed_handle_run_that_raises(loop, monkeypatch, kind_of_exception):
    def broken(self: asyncio.Handle) -> None:
        raise kind_of_exception("mine")

    monkeypatch.setattr(asyncio.Handle, "_run", broken)
    loop.call_soon(int)
    with pytest.raises(kind_of_exception, match="mine"):
        loop.run_forever()
    monkeypatch.undo()
    loop.run_until_complete(turns(2))


def test_a_handle_run_with_another_code(loop, monkeypatch):
    """ddtrace's way: the function stays, and the callback is another one during the call."""

    def traced(self):
        callback = self._callback

        def inside(*args):
            TRACED.append(callback)  # noqa: F821
            return callback(*args)

        self._callback = inside
        try:
            self._context.run(self._callback, *self._args)
        finally:
            self._callback = callback

    calls: list[Any] = []
    monkeypatch.setattr(asyncio.events, "TRACED", calls, raising=False)
    monkeypatch.setattr(asyncio.Handle._run, "__code__", traced.__code__)
    ran: list[int] = []
    loop.call_soon(ran.append, 1)
    loop.run_until_complete(turns(2))
    assert ran == [1]
    assert ran.append in calls


def test_a_changed_create_task(loop, monkeypatch):
    made: list[Any] = []
    real = asyncio.BaseEventLoop.create_task

    def create_task(self: Any, coro: Any, **keywords: Any) -> Any:
        made.append(coro)
        return real(self, coro, **keywords)

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_task", create_task)

    async def main() -> None:
        await asyncio.create_task(turns(1))
        loop.set_task_factory(lambda loop, coro, **keywords: asyncio.Task(coro, loop=loop, **keywords))
        await asyncio.ensure_future(turns(1))

    coroutine = main()
    loop.run_until_complete(turns(1))
    loop.run_until_complete(coroutine)
    assert len(made) >= 3
    assert coroutine in made


def test_functions_that_were_changed_before(loop_name):
    """Before zloop is imported."""
    program = """
        seen = []
        def change(cls, name):
            real = getattr(cls, name)
            def changed(self, *args, **keywords):
                seen.append(name)
                return real(self, *args, **keywords)
            setattr(cls, name, changed)
        change(asyncio.Handle, "_run")
        change(asyncio.BaseEventLoop, "create_task")
        import time
        monotonic = time.monotonic
        time.monotonic = lambda: 5.0
        loop = factory()
        print(loop.time())
        time.monotonic = monotonic
        print(loop.time() == 5.0)
        loop.run_until_complete(asyncio.sleep(0.001))
        print(sorted(set(seen)))
        loop.close()
        """
    assert harness.run_program(loop_name, program).stdout == "5.0\nFalse\n['_run', 'create_task']\n"


def test_aiodebug(loop, monkeypatch):
    log_slow_callbacks = pytest.importorskip(
        "aiodebug.log_slow_callbacks", reason="aiodebug is not installed"
    )
    monkeypatch.setattr(asyncio.events.Handle, "_run", asyncio.events.Handle._run)
    slow: list[tuple[str, float]] = []
    log_slow_callbacks.enable(0.01, on_slow_callback=lambda name, duration: slow.append((name, duration)))
    loop.call_soon(time.sleep, 0.02)
    loop.run_until_complete(turns(2))
    assert any("sleep" in name for name, _ in slow)


# Names.


def test_asyncios_loop_class_by_another_name(run, tls, monkeypatch, tmp_path):
    """A program, or `python -m zloop`, can have put another loop in its place."""
    from test_tcp import Counted

    monkeypatch.setattr(asyncio, "SelectorEventLoop", None)
    path = tmp_path / "file"
    path.write_bytes(b"content")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tls", tls=tls) as pair:
            with path.open("rb") as file:
                await loop.sendfile(pair.client_transport, file)
            await pair.server.got(7)
        left, right = Counted.pair() if hasattr(Counted, "pair") else socket.socketpair()
        with left, right:
            left.setblocking(False)
            right.setblocking(False)
            with path.open("rb") as file:
                await loop.sock_sendfile(left, file)
            assert await loop.sock_recv(right, 100) == b"content"

    run(main())
