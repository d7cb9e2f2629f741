"""Many lives: descriptors, threads, objects and memory come back."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import sysconfig
import textwrap
import threading
import types
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from harness import (
    Echo,
    Log,
    LoopFactory,
    connected,
    open_fds,
    rss_bytes,
    run_program,
    settled_fds,
    tcp_sockets,
    turns,
    until,
    within,
)
from harness import (
    run as run_on,
)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")


async def work(tls: Any) -> None:
    """A little of everything."""
    loop = asyncio.get_running_loop()
    await turns(3)
    await asyncio.sleep(0.0001)
    loop.call_later(3600, print).cancel()
    loop.call_later(3600, print)
    await loop.run_in_executor(None, int)
    left, right = socket.socketpair()
    loop.add_reader(left, lambda: None)
    loop.add_writer(right, lambda: None)
    loop.remove_reader(left)
    loop.remove_writer(right)
    left.close()
    right.close()
    for kind in ("tcp", "tls"):
        async with connected(kind, server=Echo, tls=tls) as pair:
            pair.client_transport.write(b"x" * 100_000)
            await pair.client.got(100_000)
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"line\n")
    assert await reader.readline() == b"line\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    transport.sendto(b"x", transport.get_extra_info("sockname"))
    transport.close()
    task = loop.create_task(asyncio.sleep(3600))
    await turns(1)
    task.cancel()
    await turns(3)


def is_thread_book_keeping(each: object) -> bool:
    """The interpreter's own: a weak reference for each thread there was and, since 3.15, its callback."""
    return type(each) is weakref.ReferenceType or (
        type(each) is types.BuiltinFunctionType and type(each.__self__) is weakref.ReferenceType
    )


def live_objects() -> Counter[str]:
    gc.collect()
    return Counter(
        f"{type(each).__module__}.{type(each).__qualname__}"
        for each in gc.get_objects()
        if not is_thread_book_keeping(each)
    )


def test_many_loop_lives_leave_no_descriptor_thread_or_object(loop_factory: LoopFactory, tls):
    for _ in range(3):
        run_on(work(tls), loop_factory)
    fds, threads, objects = open_fds(), threading.active_count(), live_objects()
    for _ in range(30):
        run_on(work(tls), loop_factory)
    assert settled_fds(fds) == {}
    assert threading.active_count() == threads
    after = live_objects()
    if threading.gettrace() is not None:
        # A coverage tool keeps a tracer for each thread there ever was, and its functions.
        del after["builtins.method"], after["builtins.builtin_function_or_method"]
    grown = {name: count - objects[name] for name, count in after.items() if count - objects[name] >= 25}
    assert grown == {}


@linux
def test_memory_does_not_grow_with_loop_lives(loop_factory: LoopFactory):
    def live() -> None:
        for _ in range(500):
            loop = loop_factory()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    live()
    before = rss_bytes()
    live()
    gc.collect()
    assert rss_bytes() - before < 4 << 20


async def connections(count: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    for _ in range(count):
        transport, log = await loop.create_connection(Log, *address)
        transport.write(b"x" * 1000)
        await log.got(1000)
        transport.close()
        await within(log.lost)
    server.close()


async def callbacks(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count // 100):
        for _ in range(100):
            loop.call_soon(int, 5)
        await asyncio.sleep(0)


async def timers(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count // 100):
        for _ in range(50):
            loop.call_later(3600, int, 5).cancel()
            loop.call_later(0, int, 5)
        await asyncio.sleep(0)


async def threadsafe(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count // 100):
        for _ in range(100):
            loop.call_soon_threadsafe(int, 5)
        await asyncio.sleep(0)


async def timeouts(count: int) -> None:
    for _ in range(count):
        await asyncio.wait_for(asyncio.sleep(0), 3600)


async def watches(count: int) -> None:
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    for _ in range(count):
        loop.add_reader(left, int)
        loop.remove_reader(left)
    left.close()
    right.close()


async def socks(count: int) -> None:
    loop = asyncio.get_running_loop()
    left, right = tcp_sockets()
    for _ in range(count):
        waiting = asyncio.ensure_future(loop.sock_recv(left, 100))
        await loop.sock_sendall(right, b"x")
        await waiting
    left.close()
    right.close()


async def datagrams(count: int) -> None:
    loop = asyncio.get_running_loop()

    class Counting(asyncio.DatagramProtocol):
        seen = 0

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.seen += 1

    transport, _ = await loop.create_datagram_endpoint(Counting, local_addr=("127.0.0.1", 0))
    here = transport.get_extra_info("sockname")
    for _ in range(count // 10):
        for _ in range(10):
            transport.sendto(b"x" * 100, here)
        await turns(2)
    transport.close()


@linux
@pytest.mark.parametrize(
    ("activity", "count"),
    [
        (callbacks, 100_000),
        (timers, 50_000),
        (threadsafe, 50_000),
        (timeouts, 5000),
        (watches, 20_000),
        (socks, 5000),
        (datagrams, 20_000),
        (connections, 300),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_memory_is_flat_without_the_garbage_collector(
    run: Callable[..., Any], activity: Callable[[int], Coroutine[Any, Any, None]], count: int
):
    async def main() -> None:
        await activity(count)
        gc.collect()
        gc.disable()
        try:
            before = rss_bytes()
            await activity(count)
            grown = rss_bytes() - before
        finally:
            gc.enable()
        assert grown < 3 << 20

    run(main())


@pytest.mark.only_zloop("asyncio's transports keep bound methods of themselves")
def test_a_closed_connection_is_collected_without_the_garbage_collector(run):
    async def main() -> None:
        gc.collect()
        gc.disable()
        try:
            async with connected("tcp") as pair:
                transport = weakref.ref(pair.client_transport)
                pair.client_transport.write(b"x")
                await pair.server.got(1)
                pair.client_transport.close()
                await within(pair.client.lost)
                await within(pair.server.lost)
                for end in (pair.client, pair.server):
                    end.transport = None
                    end.made = None
            await turns(3)
            assert transport() is None
        finally:
            gc.enable()

    run(main())


@linux
@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="free-threaded builds' allocator gives freed memory back in its own time, on asyncio too",
)
def test_memory_of_a_burst_comes_back(run, loop_name):
    async def main() -> None:
        async with connected("tcp") as pair:
            pair.server_transport.pause_reading()
            before = rss_bytes()
            for _ in range(200):
                pair.client_transport.write(b"x" * 1_000_000)
            assert pair.client_transport.get_write_buffer_size() > 100 << 20
            pair.client_transport.abort()
            await within(pair.client.lost)
            await turns(2)
            # asyncio leaves it to the allocator when freed memory goes back, and glibc may keep it.
            if not loop_name.startswith("asyncio:"):
                assert rss_bytes() - before < 40 << 20

    run(main())


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="free-threaded builds do not count blocks"
)
@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later"])
def test_handles_of_a_burst_are_given_back(run, method):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        schedule = getattr(loop, method)
        arguments = [0, int] if method == "call_later" else [int]
        before = sys.getallocatedblocks()
        for _ in range(2):
            for _ in range(50_000):
                schedule(*arguments)
            await turns(3)
            await until(lambda: sys.getallocatedblocks() - before < 2_000)

    run(main())


@linux
@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_thousand_lives(loop_factory: LoopFactory, tls):
    for _ in range(50):
        run_on(work(tls), loop_factory)
    fds, before = open_fds(), rss_bytes()
    for _ in range(1000):
        run_on(work(tls), loop_factory)
    assert settled_fds(fds) == {}
    assert rss_bytes() - before < 16 << 20


#: What a loop is left with that nobody closes: the body of a function with an argument `loop`.
LEFT = {
    "nothing": "pass",
    "sleepers": """
        async def main():
            asyncio.ensure_future(asyncio.sleep(3600))
            asyncio.ensure_future(asyncio.wait_for(asyncio.Event().wait(), 3600))
            await asyncio.sleep(0)
        loop.run_until_complete(main())
        """,
    "many sleepers": """
        async def main():
            for _ in range(3000):
                asyncio.ensure_future(asyncio.sleep(3600))
            await asyncio.sleep(0)
        loop.run_until_complete(main())
        """,
    "handles before a run": "schedule(loop)",
    "handles after a run": """
        def last():
            schedule(loop)
            loop.stop()
        loop.call_soon(last)
        loop.run_forever()
        """,
    "a reader": """
        left, right = socket.socketpair()
        loop.add_reader(left, lambda: (left, right, loop))
        """,
    "connections": """
        async def main():
            server = await asyncio.start_server(lambda reader, writer: reader.read(), "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            asyncio.ensure_future(reader.read())
            asyncio.ensure_future(server.serve_forever())
            writer.write(bytes(5_000_000))
            await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
            await asyncio.sleep(0.001)
        loop.run_until_complete(main())
        """,
    "threads": """
        loop.run_until_complete(loop.run_in_executor(None, int))
        loop.run_until_complete(loop.getaddrinfo("localhost", 80))
        """,
}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads /proc/self/fd")
@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("debug", [False, True])
def test_a_loop_that_is_dropped_unclosed_is_collected(loop_name, left, debug):
    program = f"""
        import gc, time, weakref
        signal.alarm(50)
        class Keeps:
            "Holds a handle of the loop, and is held by it."
        def schedule(loop):
            for how in (loop.call_soon, loop.call_soon_threadsafe, lambda work: loop.call_later(3600, work)):
                keeps = Keeps()
                keeps.handle = how(lambda keeps=keeps: keeps)
        def leave(loop):
{textwrap.indent(textwrap.dedent(LEFT[left]).strip(), " " * 12)}
        def life():
            loop = factory()
            loop.set_debug({debug})
            # Tasks that are destroyed while they wait are reported.
            loop.set_exception_handler(lambda loop, context: None)
            leave(loop)
            return weakref.ref(loop)
        def collect(lives):
            gc.collect()
            # Threads end, or let go of what they have done, when they come to it.
            while {left == "threads"} and any(loop() is not None for loop in lives):
                time.sleep(0.001)
                gc.collect()
        collect([life()])
        before = len(os.listdir("/proc/self/fd"))
        lives = [life() for _ in range(3)]
        collect(lives)
        print([loop() for loop in lives], len(os.listdir("/proc/self/fd")) - before)
        """
    result = run_program(loop_name, program)
    assert result.stdout == "[None, None, None] 0\n", result.stderr


def test_a_handle_that_is_kept_keeps_its_loop(loop_factory):
    def make() -> asyncio.TimerHandle:
        loop = loop_factory()
        loop.call_soon(loop.stop)
        loop.run_forever()
        return loop.call_later(0, loop.stop)

    handle = make()
    gc.collect()
    loop = handle._loop
    loop.run_forever()
    loop.close()
