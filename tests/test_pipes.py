"""connect_read_pipe and connect_write_pipe: pipes, FIFOs, sockets and terminals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Log, Report, pattern, turns, until, within


@pytest.fixture
def pipe() -> Iterator[tuple[Any, Any]]:
    reader, writer = os.pipe()
    ends = os.fdopen(reader, "rb", 0), os.fdopen(writer, "wb", 0)
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            end.close()


async def read_end(file: Any, factory: Any = Log) -> tuple[Any, Any]:
    return await asyncio.get_running_loop().connect_read_pipe(factory, file)


async def write_end(file: Any, factory: Any = Log) -> tuple[Any, Any]:
    return await asyncio.get_running_loop().connect_write_pipe(factory, file)


def test_through_a_pipe(run, pipe):
    async def main() -> None:
        (reader, reader_log), (writer, writer_log) = await read_end(pipe[0]), await write_end(pipe[1])
        assert isinstance(reader, asyncio.ReadTransport)
        assert isinstance(writer, asyncio.WriteTransport)
        for transport, file in ((reader, pipe[0]), (writer, pipe[1])):
            assert weakref.ref(transport)() is transport
            assert transport.get_extra_info("pipe") is file
            assert repr(transport)
        data = pattern(1_000_000)
        writer.write(data)
        assert await reader_log.got(len(data)) == data
        writer.close()
        assert await within(writer_log.lost) is None
        assert await within(reader_log.lost) is None
        assert reader_log.events == ["made", "data", "eof", "lost"]
        assert pipe[0].closed
        assert pipe[1].closed
        assert repr(reader)
        assert repr(writer)

    run(main())


def test_every_kind_of_write(run, pipe):
    async def main() -> None:
        (_, reader_log), (writer, writer_log) = await read_end(pipe[0]), await write_end(pipe[1])
        writer.write(b"bytes ")
        writer.write(bytearray(b"bytearray "))
        writer.write(memoryview(b"memoryview "))
        writer.write(b"")
        writer.writelines([b"write", b"lines"])
        expected = b"bytes bytearray memoryview writelines"
        assert await reader_log.got(len(expected)) == expected
        writer.write_eof()
        assert await within(reader_log.lost) is None
        assert await within(writer_log.lost) is None

    run(main())


def test_write_eof_after_much_data(run, pipe):
    async def main() -> None:
        (_, reader_log), (writer, writer_log) = await read_end(pipe[0]), await write_end(pipe[1])
        assert writer.can_write_eof()
        data = pattern(500_000)
        writer.write(data)
        assert writer.get_write_buffer_size() > 0
        writer.write_eof()
        assert await reader_log.got(len(data)) == data
        await within(reader_log.lost)
        await within(writer_log.lost)

    run(main())


@pytest.mark.asyncio_bug("has no is_reading", when=sys.version_info < (3, 11), run=False)
def test_pause_and_resume_reading(run, pipe):
    async def main() -> None:
        reader, log = await read_end(pipe[0])
        assert reader.is_reading()
        reader.pause_reading()
        reader.pause_reading()
        assert not reader.is_reading()
        pipe[1].write(b"x")
        await asyncio.sleep(0.01)
        assert not log.received
        reader.resume_reading()
        reader.resume_reading()
        assert await log.got(1) == b"x"
        reader.close()
        reader.pause_reading()
        reader.resume_reading()
        await within(log.lost)

    run(main())


def test_flow_control(run, pipe):
    async def main() -> None:
        writer, log = await write_end(pipe[1])
        writer.set_write_buffer_limits(high=1000, low=100)
        writer.write(bytes(200_000))
        assert log.paused
        assert writer.get_write_buffer_size() > 1000
        reader, reader_log = await read_end(pipe[0])
        await reader_log.got(200_000)
        await log.when(lambda: not log.paused)
        assert log.events == ["made", "pause", "resume"]
        for transport, each in ((writer, log), (reader, reader_log)):
            transport.close()
            await within(each.lost)

    run(main())


def test_a_reader_that_leaves_breaks_the_writer(run, pipe):
    async def main() -> None:
        writer, log = await write_end(pipe[1])
        pipe[0].close()
        # a pipe without reader is noticed without writing
        exc = await within(log.lost)
        assert exc is None or isinstance(exc, BrokenPipeError)
        for _ in range(8):
            writer.write(b"dropped")

    run(main())


def test_a_reader_that_leaves_while_much_is_queued(run, pipe):
    async def main() -> None:
        writer, log = await write_end(pipe[1])
        writer.write(bytes(1_000_000))
        pipe[0].close()
        assert isinstance(await within(log.lost), BrokenPipeError)
        assert writer.get_write_buffer_size() == 0

    run(main())


@pytest.mark.asyncio_bug("closes what it closed when aborted twice", run=False)
def test_close_and_abort(run):
    async def main() -> None:
        for method in ("close", "abort"):
            reader_fd, writer_fd = os.pipe()
            reader_file, writer_file = os.fdopen(reader_fd, "rb", 0), os.fdopen(writer_fd, "wb", 0)
            writer, log = await write_end(writer_file)
            getattr(writer, method)()
            getattr(writer, method)()
            assert writer.is_closing()
            assert not log.lost.done()
            assert await within(log.lost) is None
            assert log.lost_count == 1
            reader_file.close()

    run(main())


def test_abort_drops_what_is_queued(run, pipe):
    async def main() -> None:
        writer, log = await write_end(pipe[1])
        writer.write(bytes(1_000_000))
        writer.abort()
        assert await within(log.lost) is None
        total = 0
        while True:
            data = pipe[0].read(65536)
            if not data:
                break
            total += len(data)
        assert total < 1_000_000

    run(main())


def test_the_blocking_mode_of_the_other_end_is_left_alone(run, pipe):
    async def main() -> None:
        reader, log = await read_end(pipe[0])
        assert os.get_blocking(pipe[1].fileno())
        reader.close()
        await within(log.lost)

    run(main())


def test_streams_over_pipes(run, pipe):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe[0])
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe[1])
        writer = asyncio.StreamWriter(transport, protocol, None, loop)
        for number in range(100):
            writer.write(b"%d\n" % number)
            await writer.drain()
            assert await within(reader.readline()) == b"%d\n" % number
        writer.close()
        assert await within(reader.read()) == b""
        await turns(3)

    run(main())


def test_a_fifo(run, tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)

    async def main() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        _, log = await read_end(os.fdopen(fd, "rb", 0))
        writer = os.open(path, os.O_WRONLY)
        os.write(writer, b"x")
        assert await log.got(1) == b"x"
        os.close(writer)
        assert await within(log.lost) is None

    run(main())


def test_a_socket_as_a_pipe(run):
    async def main() -> None:
        left, right = socket.socketpair()
        _, reader_log = await read_end(left)
        writer, writer_log = await write_end(right)
        writer.write(b"through a socket")
        assert await reader_log.got(16) == b"through a socket"
        writer.close()
        await within(writer_log.lost)
        await within(reader_log.lost)

    run(main())


@pytest.mark.parametrize("attempt", range(5))
def test_one_pipe_after_another(run, attempt):
    """Whoever goes from one pipe to the next gets what waits in it before the end of the first."""

    async def main() -> None:
        events: list[str] = []

        class Named(Log):
            def __init__(self, name: str) -> None:
                super().__init__()
                self.name = name

            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                events.append(f"data of the {self.name}")

            def connection_lost(self, exc: BaseException | None) -> None:
                super().connection_lost(exc)
                events.append(f"end of the {self.name}")

        pairs = socket.socketpair(), socket.socketpair()
        for _, right in pairs:
            right.send(b"x")
        first, first_log = await read_end(pairs[0][0], lambda: Named("first"))
        await first_log.got(1)
        second, second_log = await read_end(pairs[1][0], lambda: Named("second"))
        first.close()
        await within(first_log.lost)
        assert events == ["data of the first", "data of the second", "end of the first"]
        second.close()
        await within(second_log.lost)
        for _, right in pairs:
            right.close()

    run(main())


def test_a_terminal(run):
    async def main() -> None:
        controller, terminal = os.openpty()
        import tty

        tty.setraw(terminal)
        reader, reader_log = await read_end(os.fdopen(terminal, "rb", 0))
        writer, writer_log = await write_end(os.fdopen(os.dup(controller), "wb", 0))
        writer.write(b"typed")
        assert await reader_log.got(5) == b"typed"
        writer.close()
        await within(writer_log.lost)
        reader.close()
        await within(reader_log.lost)
        os.close(controller)

    run(main())


def test_a_regular_file_is_refused(run, tmp_path):
    async def main() -> None:
        with open(tmp_path / "file", "w+b") as file:
            for connect in (read_end, write_end):
                with pytest.raises(ValueError, match="pipe"):
                    await connect(file)

    run(main())


@pytest.mark.asyncio_bug("a half-made transport fails in __del__", run=False)
def test_wrong_objects_are_refused(run):
    async def main() -> None:
        for connect in (read_end, write_end):
            with pytest.raises((AttributeError, TypeError, ValueError)):
                await connect(object())

    run(main())


@pytest.mark.parametrize("wrong", ["text", None, 5], ids=str)
def test_writing_something_else_is_refused(run, pipe, wrong):
    async def main() -> None:
        writer, log = await write_end(pipe[1])
        with pytest.raises((TypeError, AssertionError)):
            writer.write(wrong)
        writer.close()
        await within(log.lost)

    run(main())


def test_data_received_that_raises(run, pipe):
    reports: list[Report] = []

    class Broken(Log):
        def data_received(self, data: bytes) -> None:
            raise LookupError("mine")

    async def main() -> None:
        reader, log = await read_end(pipe[0], Broken)
        pipe[1].write(b"x")
        await until(lambda: reports)
        reader.close()
        await within(asyncio.wait([log.lost]))

    run(main(), reports=reports)
    assert [str(report["exception"]) for report in reports] == ["mine"]


def test_set_protocol(run, pipe):
    async def main() -> None:
        reader, first = await read_end(pipe[0])
        second = Log()
        reader.set_protocol(second)
        assert reader.get_protocol() is second
        pipe[1].write(b"x")
        assert await second.got(1) == b"x"
        assert not first.received
        reader.close()
        await within(second.lost)
        first.lost.set_result(None)

    run(main())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the size of a pipe")
def test_close_flushes(run, pipe):
    async def main() -> None:
        data = pattern(300_000)
        writer, writer_log = await write_end(pipe[1])
        writer.write(data)
        writer.close()
        _, reader_log = await read_end(pipe[0])
        await within(reader_log.lost)
        await within(writer_log.lost)
        # asyncio's close() of a write pipe with a full buffer is write_eof(): all of it arrives
        assert bytes(reader_log.received) == data

    run(main())


def test_a_protocol_factory_that_raises_leaves_the_file_alone(run, pipe):
    def broken() -> Any:
        raise LookupError("factory")

    async def main() -> None:
        for connect, file in ((read_end, pipe[0]), (write_end, pipe[1])):
            with pytest.raises(LookupError):
                await connect(file, broken)
            assert not file.closed

    run(main())


@pytest.mark.only_zloop(
    "a writing transport of asyncio that closes unregisters the reader of the same number"
)
def test_both_directions_of_a_terminal_under_one_number(run):
    """What programs do that talk to a pseudo-terminal: one descriptor, a transport for each direction."""

    async def main() -> None:
        import tty

        controller, terminal = os.openpty()
        tty.setraw(terminal)
        file = os.fdopen(controller, "r+b", 0)
        reader, reader_log = await read_end(file)
        writer, writer_log = await write_end(os.fdopen(controller, "wb", 0, closefd=False))
        size = 300_000
        os.write(terminal, b"before")
        writer.write(pattern(size))  # more than the terminal takes: the writer has to be watched, too
        assert writer.get_write_buffer_size() > 0
        assert await reader_log.got(6) == b"before"
        received = b""
        received = b""
        while len(received) < size:
            received += await asyncio.get_running_loop().run_in_executor(None, os.read, terminal, size)
            os.write(terminal, b".")
        assert received == pattern(size)
        await reader_log.got(1)
        writer.close()
        assert await within(writer_log.lost) is None
        os.close(terminal)
        await within(reader_log.lost)
        assert reader.is_closing()
        assert file.closed

    run(main())


@pytest.mark.only_zloop("asyncio leaves the terminal non-blocking to the shell")
def test_a_terminal_gets_its_blocking_mode_back_with_the_last_transport(run):
    async def main() -> None:
        controller, terminal = os.openpty()
        reader, reader_log = await read_end(os.fdopen(os.dup(terminal), "rb", 0))
        writer, writer_log = await write_end(os.fdopen(os.dup(terminal), "wb", 0))
        assert not os.get_blocking(terminal)
        reader.close()
        await within(reader_log.lost)
        assert not os.get_blocking(terminal)
        writer.close()
        await within(writer_log.lost)
        assert os.get_blocking(terminal)
        os.close(terminal)
        os.close(controller)

    run(main())


@pytest.mark.only_zloop("asyncio raises from close() and leaves the pipe open")
def test_closing_after_the_loop_closes_the_pipe(loop_factory, pipe):
    loop = loop_factory()
    writer, _ = loop.run_until_complete(write_end(pipe[1]))
    reader, _ = loop.run_until_complete(read_end(pipe[0]))
    loop.close()
    writer.close()
    reader.close()
    assert pipe[0].closed
    assert pipe[1].closed
