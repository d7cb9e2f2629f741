"""Closed loops, wrong types, exceptions in every kind of callback, and the two that must pass through."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from harness import DatagramLog, Log, Report, connected, tcp_sockets, turns, until, within

# --- a closed loop ----


async def nothing() -> None: ...


@pytest.mark.parametrize(
    "call",
    [
        lambda loop: loop.run_forever(),
        lambda loop: loop.call_soon(print),
        lambda loop: loop.call_later(1, print),
        lambda loop: loop.call_at(1, print),
        lambda loop: loop.call_soon_threadsafe(print),
        lambda loop: loop.add_reader(0, print),
        lambda loop: loop.add_writer(0, print),
        lambda loop: loop.run_in_executor(None, print),
        lambda loop: loop.add_signal_handler(signal.SIGUSR1, print),
    ],
    ids=["run", "soon", "later", "at", "threadsafe", "reader", "writer", "executor", "signal"],
)
def test_a_closed_loop_refuses(loop, call):
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        call(loop)
    assert loop.is_closed()
    assert not loop.is_running()


def test_a_closed_loop_refuses_coroutines(loop):
    loop.close()
    for call in (loop.run_until_complete, loop.create_task):
        coroutine = nothing()
        with pytest.raises(RuntimeError, match="closed"):
            call(coroutine)
        coroutine.close()


def test_a_closed_loop_still_tells_what_it_can(loop):
    loop.close()
    assert repr(loop)
    assert loop.time() > 0
    assert loop.get_debug() in (True, False)
    assert loop.create_future().get_loop() is loop
    assert loop.remove_reader(0) in (True, False) if sys.version_info < (3, 10) else True
    loop.stop()
    loop.close()


def test_transports_of_a_closed_loop_can_be_asked_and_closed(loop_factory):
    loop = loop_factory()
    left, right = tcp_sockets()

    async def main() -> Any:
        return await loop.create_connection(Log, sock=left)

    transport, log = loop.run_until_complete(main())
    transport.abort()
    loop.run_until_complete(asyncio.wait([log.lost]))
    loop.close()
    assert transport.is_closing()
    assert repr(transport)
    transport.close()
    transport.abort()
    transport.write(b"dropped")
    right.close()


# --- wrong types ----


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_missing_and_unknown_arguments(loop, method):
    call = getattr(loop, method)
    with pytest.raises(TypeError):
        call()
    with pytest.raises(TypeError):
        call(1.0, print, unknown=1)
    if method in ("call_later", "call_at"):
        with pytest.raises(TypeError):
            call(1.0)


@pytest.mark.parametrize("wrong", [5, "text", object()], ids=repr)
def test_a_context_that_is_none(loop, wrong):
    reports: list[Report] = []
    loop.set_exception_handler(lambda _loop, context: reports.append(context))
    try:
        loop.call_soon(print, context=wrong)
    except TypeError:
        return
    # asyncio notices it only when the callback is due
    loop.call_soon(loop.stop)
    try:
        loop.run_forever()
    except (TypeError, AttributeError):
        return
    assert reports


def test_the_exception_handler_must_be_callable(loop):
    with pytest.raises(TypeError):
        loop.set_exception_handler("no callable")
    loop.set_exception_handler(None)
    assert loop.get_exception_handler() is None


def test_create_task_of_something_else(loop):
    for wrong in (5, None, nothing):
        with pytest.raises(TypeError):
            loop.create_task(wrong)


# --- exceptions in callbacks ----


def test_an_exception_handler_that_raises_is_logged(loop, caplog):
    def handler(_loop: Any, _context: Any) -> None:
        raise ZeroDivisionError("handler")

    def broken() -> None:
        raise LookupError("callback")

    ran: list[int] = []
    loop.set_exception_handler(handler)
    loop.call_soon(broken)
    loop.call_soon(ran.append, 1)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == [1]
    assert any("Unhandled error in exception handler" in record.getMessage() for record in caplog.records)


def test_call_exception_handler_by_hand(loop, caplog):
    seen: list[Report] = []
    loop.set_exception_handler(lambda where, context: seen.append({"loop": where, **context}))
    loop.call_exception_handler({"message": "by hand", "anything": 5})
    assert seen == [{"loop": loop, "message": "by hand", "anything": 5}]
    loop.set_exception_handler(None)
    loop.call_exception_handler({"message": "to the log"})
    loop.default_exception_handler({"message": "directly"})
    assert [record.getMessage().splitlines()[0] for record in caplog.records] == ["to the log", "directly"]


class Trigger:
    """One way of making the loop call user code: `arm(loop, action)` sets it up, `disarm()` cleans up."""

    def __init__(self, arm: Callable[[Any, Callable[[], None]], Any]) -> None:
        self.arm = arm


def with_socket(add: str) -> Callable[[Any, Callable[[], None]], Any]:
    def arm(loop: Any, action: Callable[[], None]) -> Callable[[], None]:
        left, right = socket.socketpair()
        right.send(b"x")

        def callback() -> None:
            getattr(loop, add.replace("add", "remove"))(left)
            action()

        getattr(loop, add)(left, callback)

        def disarm() -> None:
            getattr(loop, add.replace("add", "remove"))(left)
            left.close()
            right.close()

        return disarm

    return arm


def with_protocol(method: str, kind: str = "tcp") -> Callable[[Any, Callable[[], None]], Any]:
    def arm(loop: Any, action: Callable[[], None]) -> Callable[[], None]:
        class Acting(Log):
            acted = False

        original = getattr(Log, method)

        def acting(self: Any, *args: Any) -> Any:
            result = original(self, *args)
            if not Acting.acted:
                Acting.acted = True
                action()
            return result

        setattr(Acting, method, acting)
        left, right = tcp_sockets()
        made: list[Any] = []

        async def connect() -> None:
            made.append(await loop.create_connection(Acting, sock=left))

        task = loop.create_task(connect())
        if method == "data_received":
            right.send(b"x")
        elif method == "eof_received":
            right.shutdown(socket.SHUT_WR)
        elif method == "connection_lost":
            right.close()
        elif method == "pause_writing":

            async def fill() -> None:
                await task
                made[0][0].write(bytes(20_000_000))

            loop.create_task(fill())

        def disarm() -> None:
            async def finish() -> None:
                if not task.done():
                    await asyncio.wait([task])
                for transport, _ in made:
                    transport.abort()
                await turns(3)

            loop.run_until_complete(finish())
            right.close()

        return disarm

    return arm


def with_datagram(loop: Any, action: Callable[[], None]) -> Callable[[], None]:
    class Acting(DatagramLog):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            action()

    made: list[Any] = []

    async def connect() -> None:
        made.append(await loop.create_datagram_endpoint(Acting, local_addr=("127.0.0.1", 0)))
        made[0][0].sendto(b"x", made[0][0].get_extra_info("sockname"))

    loop.create_task(connect())

    def disarm() -> None:
        made[0][0].abort()
        loop.run_until_complete(turns(3))

    return disarm


def with_pipe(loop: Any, action: Callable[[], None]) -> Callable[[], None]:
    class Acting(Log):
        def data_received(self, data: bytes) -> None:
            action()

    reader, writer = os.pipe()
    made: list[Any] = []

    async def connect() -> None:
        made.append(await loop.connect_read_pipe(Acting, os.fdopen(reader, "rb", 0)))

    loop.create_task(connect())
    os.write(writer, b"x")

    def disarm() -> None:
        made[0][0].close()
        loop.run_until_complete(turns(3))
        os.close(writer)

    return disarm


def with_server(loop: Any, action: Callable[[], None]) -> Callable[[], None]:
    def factory() -> Log:
        action()
        return Log()

    made: list[Any] = []
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = listening.getsockname()
        listening_copy = listening.dup()

    async def serve() -> None:
        made.append(await loop.create_server(factory, sock=listening_copy))
        made.append(socket.create_connection(address))

    loop.create_task(serve())

    def disarm() -> None:
        made[0].close()
        made[1].close()
        loop.run_until_complete(turns(3))

    return disarm


def with_signal(loop: Any, action: Callable[[], None]) -> Callable[[], None]:
    loop.add_signal_handler(signal.SIGUSR1, action)
    loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
    return lambda: loop.remove_signal_handler(signal.SIGUSR1)


def with_task(loop: Any, action: Callable[[], None]) -> Callable[[], None]:
    async def acting() -> None:
        await asyncio.sleep(0)
        action()

    task = loop.create_task(acting())

    def disarm() -> None:
        assert task.done()
        task.exception()

    return disarm


def scheduled(method: str) -> Callable[[Any, Callable[[], None]], Any]:
    def arm(loop: Any, action: Callable[[], None]) -> Callable[[], None]:
        delay = {"call_later": (0.0,), "call_at": (loop.time(),)}.get(method, ())
        getattr(loop, method)(*delay, action)
        return lambda: None

    return arm


TRIGGERS = {
    "call_soon": scheduled("call_soon"),
    "call_later": scheduled("call_later"),
    "call_at": scheduled("call_at"),
    "call_soon_threadsafe": scheduled("call_soon_threadsafe"),
    "task": with_task,
    "reader": with_socket("add_reader"),
    "writer": with_socket("add_writer"),
    "connection_made": with_protocol("connection_made"),
    "data_received": with_protocol("data_received"),
    "eof_received": with_protocol("eof_received"),
    "connection_lost": with_protocol("connection_lost"),
    "pause_writing": with_protocol("pause_writing"),
    "datagram_received": with_datagram,
    "pipe data_received": with_pipe,
    "protocol factory": with_server,
    "signal handler": with_signal,
}


def asyncio_leaks(name: str) -> Any:
    """asyncio loses the accepted socket when the factory raises."""
    marks = []
    if name == "protocol factory":
        marks.append(
            pytest.mark.asyncio_bug("leaves the accepted socket to the garbage collector", run=False)
        )
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [asyncio_leaks(name) for name in TRIGGERS])
@pytest.mark.parametrize("kind_of_exit", [SystemExit, KeyboardInterrupt])
def test_exits_leave_the_run_and_the_loop_stays_usable(loop, name, kind_of_exit):
    reports: list[Report] = []
    loop.set_exception_handler(lambda _loop, context: reports.append(context))

    def action() -> None:
        raise kind_of_exit(3)

    disarm = TRIGGERS[name](loop, action)
    with pytest.raises(kind_of_exit):
        loop.run_forever()
    assert not loop.is_running()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    ran: list[int] = []

    async def again() -> str:
        loop.call_soon(ran.append, 1)
        await asyncio.sleep(0.001)
        return "usable"

    assert loop.run_until_complete(again()) == "usable"
    assert ran == [1]
    disarm()


@pytest.mark.parametrize("name", [name for name in TRIGGERS if name != "protocol factory"])
def test_other_exceptions_do_not_stop_the_loop(loop, name):
    reports: list[Report] = []
    loop.set_exception_handler(lambda _loop, context: reports.append(context))
    acted: list[int] = []

    def action() -> None:
        acted.append(1)
        raise LookupError("mine")

    disarm = TRIGGERS[name](loop, action)
    loop.run_until_complete(until(lambda: acted))
    loop.run_until_complete(turns(5))
    disarm()
    if name != "task":  # a task keeps its exception for whoever awaits it
        assert [str(report["exception"]) for report in reports] == ["mine"]
        assert reports[0]["message"]


@pytest.mark.parametrize("name", list(TRIGGERS))
def test_stop_from_every_callback(loop, name):
    disarm = TRIGGERS[name](loop, loop.stop)
    loop.run_forever()
    assert not loop.is_running()
    loop.run_until_complete(asyncio.sleep(0.001))
    disarm()


@pytest.mark.parametrize("name", [name for name in TRIGGERS if name != "protocol factory"])
def test_running_again_from_every_callback_is_refused(loop, name):
    if (3, 13) <= sys.version_info < (3, 13, 1) and type(loop).__module__.startswith("asyncio"):
        pytest.skip("3.13.0 forgets that it runs when a second run is refused")
    problems: list[BaseException] = []

    def action() -> None:
        try:
            loop.run_forever()
        except RuntimeError as exc:
            problems.append(exc)
        try:
            loop.close()
        except RuntimeError as exc:
            problems.append(exc)
        loop.stop()

    disarm = TRIGGERS[name](loop, action)
    loop.run_forever()
    assert len(problems) == 2
    assert not loop.is_closed()
    disarm()


def test_an_exit_in_the_middle_of_a_batch_keeps_the_rest(loop):
    ran: list[int] = []
    loop.call_soon(ran.append, 1)
    loop.call_soon(sys.exit, 5)
    loop.call_soon(ran.append, 2)
    with pytest.raises(SystemExit):
        loop.run_forever()
    assert ran == [1]
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == [1, 2]


def test_an_exit_of_a_task_leaves_run_until_complete(loop):
    async def main() -> None:
        await asyncio.sleep(0)
        sys.exit(7)

    with pytest.raises(SystemExit) as caught:
        loop.run_until_complete(main())
    assert caught.value.code == 7
    assert loop.run_until_complete(asyncio.sleep(0, "usable")) == "usable"


def test_generator_exit_and_cancelled_error_in_callbacks_are_reported(loop):
    reports: list[Report] = []
    loop.set_exception_handler(lambda _loop, context: reports.append(context))

    def broken(exc: BaseException) -> None:
        raise exc

    for exc in (GeneratorExit(), asyncio.CancelledError(), BaseException("base")):
        loop.call_soon(broken, exc)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert [type(report["exception"]) for report in reports] == [
        GeneratorExit,
        asyncio.CancelledError,
        BaseException,
    ]


def test_one_broken_connection_leaves_the_others_alone(run):
    """Regression scenario R18: talyn BUG-18."""
    reports: list[Report] = []

    class Broken(Log):
        def data_received(self, data: bytes) -> None:
            raise LookupError("one of many")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ends = [tcp_sockets() for _ in range(20)]
        logs = [
            (await loop.create_connection(Broken if number == 7 else Log, sock=left))[1]
            for number, (left, _) in enumerate(ends)
        ]
        for _, right in ends:  # all become readable in one poll
            right.send(b"x")
        for number, log in enumerate(logs):
            if number == 7:
                assert isinstance(await within(log.lost), LookupError)
            else:
                assert await log.got(1) == b"x"
                log.transport.abort()
                await within(log.lost)
        for _, right in ends:
            right.close()

    run(main(), reports=reports)
    assert len(reports) == 1


def test_protocols_without_methods_and_none(run):
    reports: list[Report] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=left)
        right.send(b"ignored")
        await turns(5)
        right.close()
        await until(transport.is_closing)
        await turns(3)
        async with connected("tcp") as pair:
            pair.client_transport.write(b"fine")
            assert await pair.server.got(4) == b"fine"

    run(main(), reports=reports)
    assert reports == []
