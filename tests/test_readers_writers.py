"""add_reader and add_writer: level-triggered, replaceable, and blind to what the descriptor is."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import socket
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Log, connected, turns, until, within


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    yield left, right
    left.close()
    right.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass


def test_a_reader_is_called_as_long_as_data_is_left(run, sockets):
    left, right = sockets

    async def main() -> None:
        loop = asyncio.get_running_loop()
        got: list[bytes] = []
        done = loop.create_future()

        def readable() -> None:
            got.append(left.recv(2))
            if len(got) == 3:
                done.set_result(None)

        assert loop.add_reader(left, readable) is None
        right.send(b"aabbcc")
        await within(done)
        assert got == [b"aa", b"bb", b"cc"]
        await turns(5)
        assert len(got) == 3
        assert loop.remove_reader(left) is True
        assert loop.remove_reader(left) is False

    run(main())


def test_data_that_is_there_is_seen_in_the_turn_after_add_reader(run, sockets):
    left, right = sockets

    async def main() -> None:
        loop = asyncio.get_running_loop()
        calls: list[int] = []
        right.send(b"x")
        # Often, because it must not depend on how long ago the loop has looked at its descriptors.
        for attempt in range(50):
            loop.add_reader(left, calls.append, attempt)
            await turns(2)
            assert calls == [attempt]
            loop.remove_reader(left)
            calls.clear()

    run(main())


def test_a_writer_is_called_while_there_is_room(run, sockets):
    left, right = sockets

    async def main() -> None:
        loop = asyncio.get_running_loop()
        calls = 0
        done = loop.create_future()

        def writable() -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                loop.remove_writer(left)
                done.set_result(None)

        assert loop.add_writer(left, writable) is None
        await within(done)
        await turns(5)
        assert calls == 3
        assert loop.remove_writer(left) is False
        # a full socket stays quiet until its peer reads
        try:
            while True:
                left.send(b"x" * 65536)
        except BlockingIOError:
            pass
        room = asyncio.Event()
        loop.add_writer(left, room.set)
        await asyncio.sleep(0.01)
        assert not room.is_set()
        try:
            while True:
                right.recv(65536)
        except BlockingIOError:
            pass
        await within(room.wait())
        loop.remove_writer(left)

    run(main())


def test_reader_and_writer_of_one_descriptor_are_independent(run, sockets):
    left, right = sockets

    async def main() -> None:
        loop = asyncio.get_running_loop()
        readable, writable = asyncio.Event(), asyncio.Event()
        loop.add_reader(left, lambda: (left.recv(10), readable.set()))
        loop.add_writer(left, lambda: (loop.remove_writer(left), writable.set()))
        await within(writable.wait())
        assert not readable.is_set()
        right.send(b"x")
        await within(readable.wait())
        assert loop.remove_reader(left)
        assert not loop.remove_writer(left)

    run(main())


def test_a_new_reader_replaces_the_old_one(run, sockets):
    left, right = sockets

    async def main() -> None:
        loop = asyncio.get_running_loop()
        old: list[int] = []
        new = loop.create_future()
        loop.add_reader(left, old.append, 1)
        loop.add_reader(left, lambda: (left.recv(10), new.set_result("new")))
        right.send(b"x")
        assert await within(new) == "new"
        assert old == []
        loop.remove_reader(left)

    run(main())


def test_arguments_and_the_context_of_the_call_are_kept(run, sockets):
    left, right = sockets
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def readable(*args: int) -> None:
            left.recv(10)
            future.set_result((args, variable.get()))

        variable.set("at add_reader")
        loop.add_reader(left, readable, 1, 2, 3)
        variable.set("later")
        right.send(b"x")
        assert await within(future) == ((1, 2, 3), "at add_reader")
        loop.remove_reader(left)

    run(main())


@pytest.mark.parametrize("kind", ["object", "number"])
def test_objects_with_fileno_and_numbers_are_the_same(run, sockets, kind):
    left, right = sockets

    async def main() -> None:
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        loop.add_reader(left if kind == "object" else left.fileno(), event.set)
        right.send(b"x")
        await within(event.wait())
        assert loop.remove_reader(left.fileno() if kind == "object" else left)

    run(main())


def test_end_of_file_and_hang_up_wake_readers_and_writers_of_pipes(run, pipe):
    reader, writer = pipe

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(reader, ended.set)
        os.close(writer)
        await within(ended.wait())
        assert os.read(reader, 1) == b""
        loop.remove_reader(reader)

        other_reader, other_writer = os.pipe()
        os.set_blocking(other_writer, False)
        # NetBSD says nothing of a full pipe that loses its reader, to any program.
        if not sys.platform.startswith("netbsd"):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(other_writer, b"x" * 65536)
        broken = asyncio.Event()
        loop.add_writer(other_writer, broken.set)
        os.close(other_reader)
        await within(broken.wait())
        with pytest.raises(BrokenPipeError):
            os.write(other_writer, b"x")
        loop.remove_writer(other_writer)
        os.close(other_writer)

    run(main())


def test_the_blocking_mode_is_left_alone(run, pipe):
    reader, writer = pipe

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(reader, lambda: None)
        loop.add_writer(writer, lambda: None)
        await turns(3)
        assert os.get_blocking(reader)
        assert os.get_blocking(writer)
        loop.remove_reader(reader)
        loop.remove_writer(writer)
        assert os.get_blocking(reader)
        assert os.get_blocking(writer)

    run(main())


def test_a_reader_removed_by_another_of_the_same_poll_is_not_called(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pairs = [socket.socketpair() for _ in range(10)]
        called: list[int] = []

        def readable(number: int) -> None:
            called.append(number)
            for left, _ in pairs:
                loop.remove_reader(left)

        for number, (left, right) in enumerate(pairs):
            right.send(b"x")
            loop.add_reader(left, readable, number)
        await turns(10)
        assert len(called) == 1
        for left, right in pairs:
            left.close()
            right.close()

    run(main())


def test_a_closed_and_reused_number_is_a_new_descriptor(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        stale: list[str] = []
        for _ in range(50):
            left, right = socket.socketpair()
            right.send(b"x")
            loop.add_reader(left, stale.append, "stale")
            assert loop.remove_reader(left)
            number = left.fileno()
            left.close()
            new_left, new_right = socket.socketpair()
            event = asyncio.Event()
            if new_left.fileno() != number:
                new_left, new_right = new_right, new_left
            loop.add_reader(new_left, event.set)
            new_right.send(b"y")
            await within(event.wait())
            loop.remove_reader(new_left)
            for sock in (right, new_left, new_right):
                sock.close()
        assert stale == []

    run(main())


@pytest.mark.parametrize("direction", ["reader", "writer"])
def test_a_closed_socket_is_removed_by_itself(run, direction):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        add, remove = getattr(loop, f"add_{direction}"), getattr(loop, f"remove_{direction}")
        add(left, int)
        number = left.fileno()
        left.close()
        assert remove(left)
        # The number is free for others, and nobody keeps the socket.
        other, peer = socket.socketpair()
        other.setblocking(False)
        if other.fileno() != number:
            os.dup2(other.fileno(), number)
            other.close()
            other = socket.socket(fileno=number)
        peer.send(b"x")
        assert await within(loop.sock_recv(other, 10)) == b"x"
        gone = weakref.ref(left)
        del left
        assert gone() is None
        for sock in (right, other, peer):
            sock.close()

    run(main())


def test_a_number_closed_behind_the_loops_back_can_be_registered_again(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        loop.add_reader(left, lambda: None)
        number = left.fileno()
        left.close()
        right.close()
        loop.remove_reader(number)
        left, right = socket.socketpair()
        event = asyncio.Event()
        loop.add_reader(left, event.set)
        right.send(b"x")
        await within(event.wait())
        loop.remove_reader(left)
        left.close()
        right.close()

    run(main())


def test_wrong_descriptors_are_refused(run, tmp_path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        number = left.fileno()
        left.close()
        right.close()
        for add in (loop.add_reader, loop.add_writer):
            with pytest.raises(ValueError):
                add(-1, lambda: None)
            with pytest.raises((ValueError, TypeError)):
                add("stdin", lambda: None)
            with pytest.raises((OSError, ValueError)):
                add(number, lambda: None)
            with pytest.raises(ValueError):
                add(left, lambda: None)  # fileno() is -1 now
        for remove in (loop.remove_reader, loop.remove_writer):
            assert remove(number) is False
        await asyncio.sleep(0)

    run(main())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kqueue watches regular files")
def test_a_regular_file_is_refused_as_epoll_does(run, tmp_path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with open(tmp_path / "file", "wb") as file:
            with pytest.raises(PermissionError):
                loop.add_reader(file, lambda: None)
            assert loop.remove_reader(file) is False

    run(main())


@pytest.mark.parametrize("method", ["add_reader", "remove_reader", "add_writer", "remove_writer"])
def test_descriptors_of_transports_are_out_of_reach(run, method):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected() as pair:
            fd = pair.client_transport.get_extra_info("socket").fileno()
            with pytest.raises(RuntimeError, match="used by transport"):
                getattr(loop, method)(fd, *([lambda: None] if method.startswith("add") else []))
            pair.client_transport.write(b"still works")
            assert await pair.server.got(11) == b"still works"

    run(main())


def test_an_exception_is_reported_and_the_reader_stays(run, sockets):
    left, right = sockets
    reports: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        calls: list[bytes] = []
        done = loop.create_future()

        def readable() -> None:
            calls.append(left.recv(1))
            if len(calls) == 2:
                done.set_result(None)
            raise LookupError("reader")

        loop.add_reader(left, readable)
        right.send(b"ab")
        await within(done)
        await turns(2)
        loop.remove_reader(left)

    run(main(), reports=reports)
    assert [str(report["exception"]) for report in reports] == ["reader", "reader"]


def test_many_descriptors_at_once(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pairs = [socket.socketpair() for _ in range(400)]
        seen: set[int] = set()

        def readable(number: int) -> None:
            pairs[number][0].recv(10)
            seen.add(number)

        for number, (left, right) in enumerate(pairs):
            loop.add_reader(left, readable, number)
            right.send(b"x")
        await until(lambda: len(seen) == len(pairs))
        for left, right in pairs:
            assert loop.remove_reader(left)
            left.close()
            right.close()

    run(main())


def test_a_replaced_or_removed_callback_is_released(run, sockets):
    left, _ = sockets

    class Callback:
        def __call__(self) -> None: ...

    async def main() -> None:
        loop = asyncio.get_running_loop()
        first, second = Callback(), Callback()
        loop.add_reader(left, first)
        loop.add_reader(left, second)
        dead = weakref.ref(first)
        del first
        assert dead() is None
        loop.remove_reader(left)
        dead = weakref.ref(second)
        del second
        await turns(2)
        assert dead() is None

    run(main())


def test_close_forgets_registered_descriptors(loop, sockets):
    left, right = sockets
    loop.add_reader(left, lambda: None)
    loop.add_writer(left, lambda: None)
    loop.close()
    right.send(b"x")
    assert left.recv(1) == b"x"  # still the user's
    with pytest.raises(RuntimeError, match="closed"):
        loop.add_reader(left, lambda: None)


def test_the_same_socket_can_be_used_by_a_transport_after_its_reader_is_removed(run, sockets):
    left, right = sockets

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(left, lambda: None)
        loop.remove_reader(left)
        mine = left.dup()
        mine.setblocking(False)
        transport, log = await loop.create_connection(Log, sock=mine)
        right.send(b"to the transport")
        assert await log.got(16) == b"to the transport"
        transport.close()
        await within(log.lost)

    run(main())


def test_registration_before_the_loop_runs(loop, sockets):
    left, right = sockets
    loop.add_reader(left, loop.stop)
    right.send(b"x")
    loop.run_forever()
    assert loop.remove_reader(left)
