"""What CPython repaired in 3.15 and in late releases of 3.14, on every version here.

Whether the running asyncio has a repair is told by the number that its source mentions.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import sys
from asyncio import base_subprocess, selector_events, streams, unix_events
from asyncio.subprocess import PIPE
from typing import Any

import harness
import pytest
from harness import Log, connected, within


def lacks(source: Any, repair: str) -> bool:
    return repair not in inspect.getsource(source)


lost_twice = pytest.mark.asyncio_bug(
    "connection_lost is called twice", when=lacks(selector_events, "gh-156512")
)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("how", ["close", pytest.param("abort", marks=lost_twice)])
def test_a_connection_that_resume_writing_ends_is_lost_once(run, kind, how):
    class Ending(Log):
        def resume_writing(self):
            super().resume_writing()
            getattr(self.transport, how)()

    async def main():
        async with connected(kind, Ending, small_buffers=True) as pair:
            pair.server_transport.pause_reading()
            pair.client_transport.write(bytes(1 << 20))
            assert pair.client.paused
            pair.server_transport.resume_reading()
            await within(pair.client.lost)
            await harness.turns(5)
            return pair.client.lost_count

    assert run(main()) == 1


@pytest.mark.asyncio_bug(
    "an empty piece is never sent, and the connection never ends",
    when="writelines" in vars(selector_events._SelectorSocketTransport)
    and lacks(selector_events, "gh-155888"),
    run=False,
)
@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize(
    "last", [b"", bytearray(), memoryview(b"")], ids=["bytes", "bytearray", "memoryview"]
)
def test_an_empty_last_piece_of_writelines(run, kind, last):
    async def main():
        async with connected(kind, small_buffers=True) as pair:
            pair.server_transport.pause_reading()
            data = os.urandom(300_000)
            pair.client_transport.writelines([data, b"", b"tail", last])
            assert pair.client_transport.get_write_buffer_size() > 0
            pair.client_transport.close()
            pair.server_transport.resume_reading()
            assert await pair.server.got(len(data) + 4) == data + b"tail"
            assert await within(pair.client.lost) is None

    run(main())


@pytest.mark.skipif(
    lacks(streams.StreamReaderProtocol.connection_made, "except Exception as exc"),
    reason="asyncio's own streams, which zloop does not replace, leave the connection open",
)
def test_a_plain_function_that_raises_for_a_new_connection(run):
    """The client is not left waiting."""
    reports: list[dict[str, Any]] = []

    async def main():
        def serve(_reader, _writer):
            raise ValueError("nothing for you")

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await within(reader.read()) == b""
            writer.close()
            await writer.wait_closed()

    run(main(), reports=reports)
    (report,) = reports
    assert report["message"] == "Unhandled exception in client_connected_cb"
    assert repr(report["exception"]) == "ValueError('nothing for you')"
    assert isinstance(report["transport"], asyncio.Transport)


@pytest.mark.asyncio_bug(
    "waits for the pipe's end",
    when=sys.version_info >= (3, 11) and lacks(base_subprocess, "gh-119710"),
    run=False,
)
def test_wait_does_not_wait_for_a_grandchild_that_holds_the_pipe(run):
    async def main():
        process = await asyncio.create_subprocess_shell("sleep 60 & echo $!; exit 7", stdout=PIPE)
        assert process.stdout is not None
        grandchild = int(await within(process.stdout.readline()))
        try:
            return await within(process.wait(), 10)
        finally:
            os.kill(grandchild, signal.SIGKILL)
            await within(process.stdout.read())

    assert run(main()) == 7


@pytest.mark.asyncio_bug(
    "accepts, and nobody gets the connection", when=lacks(selector_events, "gh-153761"), run=False
)
def test_an_accept_that_is_cancelled_as_the_connection_arrives_leaves_it(run):
    async def main():
        loop = asyncio.get_running_loop()
        with harness.listener() as listener, socket.socket() as peer:
            accepting = asyncio.ensure_future(loop.sock_accept(listener))
            await harness.turns(2)
            # In one turn: the listener is readable, and before its callback runs the task is cancelled.
            peer.connect(listener.getsockname())
            loop.call_soon(accepting.cancel)
            with pytest.raises(asyncio.CancelledError):
                await accepting
            conn, address = await within(loop.sock_accept(listener), 5)
            conn.close()
            return address == peer.getsockname()

    assert run(main())


@pytest.mark.asyncio_bug(
    "leaves the child's descriptor open",
    when=sys.version_info < (3, 12) or lacks(unix_events, "finally:\n            os.close(pidfd)"),
    run=False,
)
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no descriptors for processes here")
def test_a_status_that_cannot_be_asked_for(run, monkeypatch):
    """The child's descriptor is closed, and not ready, with one report each, in every turn."""
    reports: list[dict[str, Any]] = []

    async def main():
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
        waitpid, asked = os.waitpid, []

        def refuse(*arguments):
            asked.append(arguments)
            raise OSError("unexpected")

        monkeypatch.setattr(os, "waitpid", refuse)
        assert process.stdin is not None
        process.stdin.close()
        await harness.until(lambda: asked)
        await harness.turns(5)
        monkeypatch.undo()
        waitpid(process.pid, 0)
        process._transport._process_exited(0)
        await within(process.wait())

    run(main(), reports=reports)
    assert [repr(report["exception"]) for report in reports] == ["OSError('unexpected')"]
