"""getaddrinfo and getnameinfo: equal to the socket module's."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextlib
import itertools
import logging
import socket
import sys
import threading
import types
from typing import Any

import pytest
from harness import run_program, run_python, turns, until, within


def blocking(*args: Any, **kwargs: Any) -> Any:
    try:
        return socket.getaddrinfo(*args, **kwargs)
    except Exception as exc:
        return type(exc), getattr(exc, "errno", None)


async def awaited(*args: Any, **kwargs: Any) -> Any:
    try:
        return await within(asyncio.get_running_loop().getaddrinfo(*args, **kwargs))
    except Exception as exc:
        return type(exc), getattr(exc, "errno", None)


HOSTS = [
    None,
    "",
    "localhost",
    b"localhost",
    "127.0.0.1",
    b"127.0.0.1",
    "::1",
    "0.0.0.0",
    "::",
    "127.1",
    "fe80::1%lo",
]
PORTS: list[Any] = [None, 0, 80, "80", b"80", "http", b"http", ""]
FAMILIES = [socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6]
TYPES = [0, socket.SOCK_STREAM, socket.SOCK_DGRAM]


@pytest.mark.parametrize("host", HOSTS, ids=repr)
def test_every_combination_equals_the_socket_module(run, host):
    async def main() -> None:
        different = []
        # a name without IPv6 address would be asked of name servers, and those may be silent
        families = FAMILIES[:2] if host in ("localhost", b"localhost") else FAMILIES
        for port, family, kind, flags in itertools.product(
            PORTS, families, TYPES, (0, socket.AI_PASSIVE, socket.AI_NUMERICHOST)
        ):
            options = {"family": family, "type": kind, "flags": flags}
            ours, theirs = await awaited(host, port, **options), blocking(host, port, **options)
            if ours != theirs:
                different.append((port, options, ours, theirs))
        assert different == []

    run(main())


def test_proto_and_canonical_names(run):
    async def main() -> None:
        for options in (
            {"proto": socket.IPPROTO_TCP},
            {"proto": socket.IPPROTO_UDP, "type": socket.SOCK_DGRAM},
            {"flags": socket.AI_CANONNAME},
            {"proto": socket.IPPROTO_TCP, "type": socket.SOCK_DGRAM},
        ):
            assert await awaited("127.0.0.1", 80, **options) == blocking("127.0.0.1", 80, **options)

    run(main())


def test_unknown_names_are_gaierrors(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for host, port, flags in (
            ("no.such.name", 80, socket.AI_NUMERICHOST),
            ("127.0.0.1", "no-such-service", 0),
        ):
            with pytest.raises(socket.gaierror):
                await within(loop.getaddrinfo(host, port, flags=flags))

    run(main())


def test_getnameinfo(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        flags = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        assert await within(loop.getnameinfo(("127.0.0.1", 80), flags)) == ("127.0.0.1", "80")
        assert await within(loop.getnameinfo(("::1", 80, 0, 0), flags)) == socket.getnameinfo(
            ("::1", 80, 0, 0), flags
        )
        assert await within(loop.getnameinfo(("127.0.0.1", 80))) == socket.getnameinfo(("127.0.0.1", 80), 0)
        with pytest.raises((socket.gaierror, TypeError, OSError)):
            await within(loop.getnameinfo(("no address", 80), flags))

    run(main())


def test_many_at_once(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        results = await within(
            asyncio.gather(*(loop.getaddrinfo("localhost", port) for port in range(1, 101)))
        )
        for port, result in enumerate(results, 1):
            assert {entry[4][1] for entry in result} == {port}

    run(main())


def test_a_cancelled_lookup_disturbs_nobody(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(20):
            task = asyncio.ensure_future(loop.getaddrinfo("localhost", 80))
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # it may be quicker than we are
                await task
        assert await within(loop.getaddrinfo("127.0.0.1", 80))

    run(main())


def test_an_answer_that_comes_after_the_cancellation_is_dropped(run, monkeypatch):
    begun, gate = threading.Event(), threading.Event()

    def slow(*args: Any) -> list[Any]:
        begun.set()
        gate.wait(20)
        return []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        handed_over = asyncio.Event()
        call_soon_threadsafe = loop.call_soon_threadsafe

        def hand_over(callback: Any, *args: Any, **keywords: Any) -> asyncio.Handle:
            handle = call_soon_threadsafe(callback, *args, **keywords)
            call_soon_threadsafe(handed_over.set)
            return handle

        monkeypatch.setattr(socket, "getaddrinfo", slow)
        lookup = asyncio.ensure_future(loop.getaddrinfo("name", 80))
        assert await loop.run_in_executor(None, begun.wait, 20)
        monkeypatch.setattr(loop, "call_soon_threadsafe", hand_over)
        lookup.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lookup
        gate.set()
        await within(handed_over.wait())

    run(main())


@pytest.mark.only_zloop("asyncio resolves in the default executor")
def test_a_full_executor_does_not_delay_a_lookup(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        release = threading.Event()
        blockers = [loop.run_in_executor(None, release.wait, 20) for _ in range(64)]
        try:
            assert await asyncio.wait_for(loop.getaddrinfo("localhost", 80), 3)
        finally:
            release.set()
            await within(asyncio.gather(*blockers))

    run(main())


def test_the_threads_of_lookups_are_known_as_asyncios(run):
    """Other projects' tests tell threads that a loop keeps from forgotten ones by asyncio's prefix."""

    async def main() -> None:
        before = set(threading.enumerate())
        assert await asyncio.get_running_loop().getaddrinfo("localhost", 80)
        made = set(threading.enumerate()) - before
        assert made
        assert all(thread.name.startswith("asyncio_") for thread in made)

    run(main())


def resolver_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "asyncio_zloop-resolver"]


@pytest.mark.only_zloop("asyncio uses the program's executor")
def test_lookups_have_a_few_threads_of_their_own_which_end_with_the_loop(run, monkeypatch):
    """A lookup that takes its time does not hold the next ones up, and none outlives the loop."""
    gate = threading.Event()
    running = threading.Semaphore(0)
    before = set(resolver_threads())

    def slow(*args: Any) -> list[Any]:
        running.release()
        assert gate.wait(60)
        return [args[0]]

    threads: list[threading.Thread] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        lookups = [asyncio.ensure_future(loop.getaddrinfo(f"name{i}", 80)) for i in range(9)]
        await turns(3)
        for _ in range(4):
            assert await loop.run_in_executor(None, running.acquire, True, 10)
        threads.extend(set(resolver_threads()) - before)
        assert len(threads) == 4
        # Cancelled before a thread has come to it: never called.
        assert lookups[8].cancel()
        await turns(2)
        gate.set()
        assert await within(asyncio.gather(*lookups[:8])) == [[f"name{i}"] for i in range(8)]

    run(main())
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for _ in range(4):
        assert running.acquire(timeout=60)
    assert not running.acquire(blocking=False)


def test_a_replaced_getaddrinfo_is_called_as_asyncio_calls_it(run, monkeypatch):
    calls = []

    def replaced(*args: Any) -> list[Any]:
        calls.append(args)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]

    async def main() -> None:
        monkeypatch.setattr(socket, "getaddrinfo", replaced)
        infos = await within(asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM))
        assert infos[0][4] == ("192.0.2.1", 80)
        assert calls == [("127.0.0.1", 80, 0, socket.SOCK_STREAM, 0, 0)]

    run(main())


def test_debug_mode_logs_lookups(run, caplog):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        with caplog.at_level(logging.DEBUG, "asyncio"):
            await within(loop.getaddrinfo("127.0.0.1", 80))
        assert any("Getting address info 127.0.0.1:80" in record.getMessage() for record in caplog.records)

    run(main())


@pytest.mark.only_zloop("asyncio's executor waits for its threads at exit")
def test_a_lookup_that_never_ends_does_not_keep_the_process(loop_factory):
    """A server that does not answer costs the program nothing once its loop is closed."""
    source = (
        "import asyncio, socket, threading, zloop\n"
        "begun = threading.Event()\n"
        "def never(*args):\n"
        "    begun.set()\n"
        "    threading.Event().wait()\n"
        "async def main():\n"
        "    loop = asyncio.get_running_loop()\n"
        "    lookup = asyncio.ensure_future(loop.getaddrinfo('name', 80))\n"
        "    await loop.run_in_executor(None, begun.wait, 10)\n"
        "    lookup.cancel()\n"
        "socket.getaddrinfo = never\n"
        "loop = zloop.new_event_loop()\n"
        "loop.run_until_complete(main())\n"
        "loop.close()\n"
        "print('done')\n"
    )
    done = run_python("-c", source)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


@pytest.mark.parametrize("running", [0, 1])
def test_lookups_go_on_after_a_thread_could_not_be_started(run, monkeypatch, running):
    """One that has a thread to wait for waits for it; otherwise it fails, and the next finds all in order."""
    gate, entered = threading.Event(), threading.Event()

    def slow(*args: Any) -> list[Any]:
        entered.set()
        assert gate.wait(60)
        return [args[0]]

    def cannot(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        first = [asyncio.ensure_future(loop.getaddrinfo("first", 80)) for _ in range(running)]
        if first:
            await until(entered.is_set)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", cannot)
            second = asyncio.ensure_future(loop.getaddrinfo("second", 80))
            await turns(3)
        gate.set()
        if isinstance(loop, asyncio.SelectorEventLoop) and type(loop).__module__.startswith("asyncio"):
            # Its executor has told the caller, and runs the job all the same.
            with pytest.raises(RuntimeError, match="can't start"):
                await within(second)
        elif running:
            assert await within(second) == ["second"]
        else:
            with pytest.raises(RuntimeError, match="can't start"):
                await within(second)
        assert await within(asyncio.gather(*first)) == [["first"]] * running
        assert await within(loop.getaddrinfo("third", 80)) == ["third"]

    run(main())


@pytest.mark.only_zloop("asyncio's executor keeps its threads")
def test_lookups_go_on_when_idle_threads_have_ended_after_a_failed_start(run, monkeypatch):
    monkeypatch.setattr("zloop._resolver.IDLE_S", 0.001)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [args[0]])

    def cannot(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", cannot)
            with pytest.raises(RuntimeError, match="can't start"):
                await loop.getaddrinfo("first", 80)
        for name in ("second", "third"):
            assert await within(loop.getaddrinfo(name, 80)) == [name]
            await until(lambda: not resolver_threads())

    run(main())


def test_lookups_take_their_threads_from_where_asyncio_takes_its_own(run, monkeypatch):
    """eventlet puts green threads where programs look, which must not run in the loop."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [args[0]])

    def green(*args: Any, **keywords: Any) -> Any:
        raise AssertionError("a green thread")

    original = types.ModuleType("threading")
    vars(original).update(vars(threading))
    monkeypatch.setattr(concurrent.futures.thread, "threading", original)

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading, "Thread", green)
            assert await within(asyncio.get_running_loop().getaddrinfo("name", 80)) == ["name"]

    run(main())


@pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="a child of CPython's knows none of the tasks any more"
)
def test_a_forked_childs_exit_may_look_names_up(loop_name):
    """The threads of the parent's lookups are not there."""
    program = """
        socket.getaddrinfo = lambda *args: [args[0]]
        parent = os.getpid()
        async def cleans_up(loop):
            try:
                await asyncio.sleep(3600)
            finally:
                if os.getpid() != parent:
                    print(await loop.getaddrinfo("in the child", 80), flush=True)
        async def main():
            loop = asyncio.get_running_loop()
            await loop.getaddrinfo("name", 80)
            task = asyncio.ensure_future(cleans_up(loop))
            loop.call_soon(split)
            await asyncio.sleep(0.01)
        def split():
            if os.fork() == 0:
                if type(loop).__module__.startswith("asyncio"):
                    # Its executor counts on the threads.
                    loop._default_executor = None
                sys.exit(3)
            os.wait()
        signal.alarm(50)
        loop = factory()
        try:
            loop.run_until_complete(main())
        finally:
            asyncio.runners._cancel_all_tasks(loop)
            loop.close()
    """
    assert run_program(loop_name, program).stdout == "['in the child']\n"
