"""Other threads use a loop's objects, which they must not: nothing crashes, with or without a GIL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import run_program, until


@contextlib.contextmanager
def threads(*works: Callable[[], Any], rounds: int = 20_000) -> Iterator[list[threading.Thread]]:
    """Each work in a thread of its own, again and again; what it raises is the program's own business."""

    def repeat(work: Callable[[], Any]) -> None:
        for _ in range(rounds):
            # asyncio's own objects raise all kinds of things.
            with contextlib.suppress(Exception):
                work()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    started = [threading.Thread(target=repeat, args=[work]) for work in works]
    for thread in started:
        thread.start()
    try:
        yield started
    finally:
        for thread in started:
            thread.join()
        sys.setswitchinterval(before)


async def while_alive(started: list[threading.Thread]) -> None:
    await until(lambda: not any(thread.is_alive() for thread in started))


async def connection(loop: asyncio.AbstractEventLoop) -> tuple[Any, Any]:
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    one, _ = await loop.create_connection(asyncio.Protocol, sock=left)
    two, _ = await loop.create_connection(asyncio.Protocol, sock=right)
    return one, two


@pytest.mark.only_zloop("asyncio's heap of timers loses what two threads put into it")
@pytest.mark.parametrize("running", [False, True])
def test_scheduling(loop, running):
    """Before a run as well: no thread has a better right to the loop then."""

    def look() -> None:
        list(loop._ready)
        list(loop._scheduled)

    handles: list[asyncio.TimerHandle] = []
    works = (
        lambda: loop.call_later(0.001, int).cancel(),
        lambda: handles.append(loop.call_later(0.0001, max, 1, 2, 3)),
        lambda: handles.pop().cancel(),
        lambda: [repr(handle) for handle in handles[:5]],
        lambda: loop.call_soon(int).cancel(),
        lambda: loop.call_soon_threadsafe(int),
        look,
    )
    if running:

        async def main() -> None:
            with threads(*works, rounds=2000) as started:
                await while_alive(started)

        loop.run_until_complete(main())
    else:
        with threads(*works, rounds=2000):
            pass
    loop.call_later(0.01, loop.stop)
    loop.run_forever()


@pytest.mark.only_zloop("asyncio's buffers raise and lose what is written")
@pytest.mark.parametrize("kind", ["write", "protocol", "pause", "end", "datagrams", "pipes"])
def test_transports(loop, kind):
    loop.set_exception_handler(lambda loop, context: None)

    async def main() -> None:
        one, two = await connection(loop)
        transports = [one, two]
        if kind == "write":
            works = [
                lambda: one.write(b"x" * 1000),
                lambda: one.write(b"y" * 1000),
                lambda: one.writelines([b"z"] * 10),
                lambda: (one.set_write_buffer_limits(1000), one.get_write_buffer_size()),
            ]
        elif kind == "protocol":
            works = [
                lambda: one.write(b"x"),
                lambda: two.set_protocol(asyncio.Protocol()),
                lambda: two.set_protocol(asyncio.StreamReaderProtocol(asyncio.StreamReader())),
                two.get_protocol,
            ]
        elif kind == "pause":
            works = [
                two.pause_reading,
                two.resume_reading,
                lambda: one.write(b"x"),
                lambda: (two.get_extra_info("socket"), repr(two), two.is_reading()),
            ]
        elif kind == "end":
            works = [lambda: one.write(b"x"), one.close, two.abort, one.write_eof]
        elif kind == "datagrams":
            transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
            address = transport.get_extra_info("sockname")
            works = [lambda: transport.sendto(b"x", address)] * 3 + [lambda: repr(transport)]
            transports.append(transport)
        else:
            read, write = os.pipe()
            reading, _ = await loop.connect_read_pipe(asyncio.Protocol, os.fdopen(read, "rb", 0))
            writing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(write, "wb", 0))
            works = [lambda: writing.write(b"x" * 100)] * 2 + [reading.pause_reading, reading.resume_reading]
            transports += [reading, writing]
        with threads(*works) as started:
            await while_alive(started)
        for transport in transports:
            transport.abort() if hasattr(transport, "abort") else transport.close()
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())


def test_other_threads_get_at_a_loop_while_a_callback_computes(loop):
    """It waits for them without giving way: by looking at a variable again and again."""
    answers: list[Any] = []
    handle = loop.call_later(3600, int)

    def ask() -> None:
        answers.extend([loop.is_running(), loop.is_closed(), loop.get_debug(), loop.time() > 0])
        handle.cancel()
        answers.append(handle.cancelled())
        loop.call_soon_threadsafe(loop.stop)
        answers.append("asked")

    def compute() -> None:
        thread = threading.Thread(target=ask)
        thread.start()
        while "asked" not in answers:
            pass
        thread.join()

    loop.call_soon(compute)
    loop.run_forever()
    assert answers == [True, False, False, True, True, "asked"]


def test_two_loops_call_each_other(loop_factory):
    """Each from inside its own run, all the time."""
    loops = [loop_factory() for _ in range(2)]
    counts = [0, 0]

    def ping(number: int) -> None:
        counts[number] += 1
        other = loops[1 - number]
        if counts[number] == 2000:
            loops[number].stop()
            return
        other.call_soon_threadsafe(int).cancel()
        other.is_running()
        loops[number].call_soon(ping, number)

    runs = []
    for number, loop in enumerate(loops):
        loop.call_soon(ping, number)
        runs.append(threading.Thread(target=loop.run_forever))
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    for loop in loops:
        loop.close()
    assert counts == [2000, 2000]


def test_a_thread_gets_its_turn_while_callbacks_in_c_run(loop_name):
    """Python code gives the GIL away by itself; the loop has to between callbacks that are none."""
    program = """
        import functools
        loop = factory()
        again = functools.partial(loop.call_soon)
        again.__setstate__((loop.call_soon, (again,), {}, {}))
        loop.call_soon(again)
        thread = threading.Timer(0.01, loop.call_soon_threadsafe, [loop.stop])
        thread.start()
        signal.alarm(50)
        loop.run_forever()
        thread.join()
        print("stopped")
    """
    assert run_program(loop_name, program).stdout == "stopped\n"
