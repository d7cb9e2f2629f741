"""Paths of the Python edge that ordinary programs do not take: foreign objects, missing means, lost races."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import (
    Log,
    Report,
    connected,
    descriptor_limit,
    listener,
    reset,
    run_python,
    tcp_sockets,
    turns,
    until,
    within,
)

zloop = pytest.importorskip("zloop", reason="not installed")

from zloop import _pipes, _resolver, _sockets, _subprocess  # noqa: E402

PIPE = subprocess.PIPE
only_zloop = pytest.mark.only_zloop("about the means zloop uses")


# --- sockets that only look like one ---


class Lookalike:
    """Has what a socket has, but is none: some libraries wrap sockets so."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@contextmanager
def lookalikes(*, small_buffers: bool = False) -> Iterator[tuple[Any, Any]]:
    left, right = tcp_sockets(small_buffers=small_buffers)
    with left, right:
        yield Lookalike(left), Lookalike(right)


def test_lookalikes_are_read_and_written(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with lookalikes() as (left, right):
            waiting = asyncio.ensure_future(loop.sock_recv(left, 100))
            await turns(2)
            await loop.sock_sendall(right, b"one")
            assert await within(waiting) == b"one"
            await loop.sock_sendall(right, b"two")
            buffer = bytearray(10)
            assert await within(loop.sock_recv_into(left, buffer)) == 3
            assert buffer[:3] == b"two"

    run(main())


def test_lookalikes_that_are_full_are_waited_for(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        data = bytes(range(256)) * 4096
        with lookalikes(small_buffers=True) as (left, right):
            sending = asyncio.ensure_future(loop.sock_sendall(left, memoryview(data)))
            received = bytearray()
            while len(received) < len(data):
                received += await within(loop.sock_recv(right, 65536))
            await within(sending)
            assert received == data

    run(main())


@pytest.mark.asyncio_bug("sock_recvfrom() came with 3.11", when=sys.version_info < (3, 11), run=False)
def test_lookalikes_of_datagram_sockets(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            address = sock.getsockname()
            like: Any = Lookalike(sock)
            assert await loop.sock_sendto(like, b"one", address) == 3
            assert await within(loop.sock_recvfrom(like, 100)) == (b"one", address)
            waiting = asyncio.ensure_future(loop.sock_recvfrom_into(like, bytearray(10)))
            await turns(2)
            await loop.sock_sendto(like, b"four", address)
            assert await within(waiting) == (4, address)

    run(main())


def test_lookalikes_accept_and_connect(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener() as listening, socket.socket() as sock:
            sock.setblocking(False)
            waiting = asyncio.ensure_future(loop.sock_accept(Lookalike(listening)))  # type: ignore[arg-type]
            await turns(2)
            await within(loop.sock_connect(Lookalike(sock), listening.getsockname()))  # type: ignore[arg-type]
            accepted, address = await within(waiting)
            with accepted:
                assert address == sock.getsockname()
                assert accepted.gettimeout() == 0

    run(main())


def test_a_blocking_lookalike_is_refused_in_debug_mode(run):
    async def main() -> None:
        with lookalikes() as (left, _):
            left.setblocking(True)
            with pytest.raises(ValueError, match="must be non-blocking"):
                await asyncio.get_running_loop().sock_recv(left, 1)

    run(main(), debug=True)


def test_a_cancelled_call_on_a_lookalike_leaves_no_watch(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with lookalikes() as (left, _):
            waiting = asyncio.ensure_future(loop.sock_recv(left, 1))
            await turns(2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not loop.remove_reader(left)
            # a reader that took the descriptor over stays
            waiting = asyncio.ensure_future(loop.sock_recv(left, 1))
            await turns(2)
            loop.add_reader(left, print)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert loop.remove_reader(left)

    run(main())


def test_readiness_after_a_cancellation_is_nobodys():
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        _sockets._set(future)
        assert future.cancelled()

    zloop.run(main())


def test_readiness_before_a_reader_takes_over_is_kept():
    class Taken:
        def cancelled(self) -> bool:
            return True

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()

        def watch(fd: int, callback: Any, ready: asyncio.Future[None]) -> Taken:
            right.send(b"x")
            callback(ready)
            return Taken()

        with lookalikes() as (left, right):
            assert await within(loop._retry(left, watch, pytest.fail, "recv", (1,))) == b"x"

    zloop.run(main())


def test_connections_over_a_lookalike(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with lookalikes() as (left, right):
            transport, log = await loop.create_connection(Log, sock=left)
            await loop.sock_sendall(right, b"hello")
            assert await log.got(5) == b"hello"
            transport.write(b"answer")
            assert await within(loop.sock_recv(right, 100)) == b"answer"
            assert await within(loop.sendfile(transport, io.BytesIO(b"memory"))) == 6
            assert await within(loop.sock_recv(right, 100)) == b"memory"
            transport.close()
            await within(log.lost)

    run(main())


def test_datagrams_over_a_lookalike(run):
    class Reader(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.got.set_result(data)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        transport, reader = await loop.create_datagram_endpoint(Reader, sock=Lookalike(sock))  # type: ignore[arg-type]
        transport.sendto(b"itself", sock.getsockname())
        assert await within(reader.got) == b"itself"
        transport.close()
        await turns(3)

    run(main())


# --- sendfile ---


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(b"x" * 100_000)
    return found


def test_an_empty_file_and_a_lookalike_are_sent(run, path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with lookalikes() as (left, right):
            with open(path, "rb") as file:
                assert await within(loop.sock_sendfile(left, file, 0, 1000)) == 1000
                assert len(await within(loop.sock_recv(right, 5000))) == 1000
            path.write_bytes(b"")
            with open(path, "rb") as file:
                assert await within(loop.sock_sendfile(left._sock, file)) == 0

    run(main())


def test_a_file_that_cannot_be_read_is_not_sent(run, path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with lookalikes() as (left, _), open(path, "ab") as file:
            sending = loop.sock_sendfile(left._sock, file, 0, 10, fallback=False)
            with pytest.raises(asyncio.SendfileNotAvailableError):
                await sending

    run(main())


def test_a_peer_that_leaves_while_a_file_waits(run, path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets(small_buffers=True)
        with left, open(path, "rb") as file:
            try:
                while True:
                    left.send(b"x" * 65536)
            except BlockingIOError:
                pass
            waiting = asyncio.ensure_future(loop.sock_sendfile(left, file, fallback=False))
            await turns(3)
            assert not waiting.done()
            reset(right)
            with pytest.raises(asyncio.SendfileNotAvailableError):
                await within(waiting)

    run(main())


@only_zloop
def test_a_system_without_sendfile(run, path, monkeypatch):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with lookalikes() as (left, right), open(path, "rb") as file:
            monkeypatch.delattr(os, "sendfile")
            assert await within(loop.sock_sendfile(left._sock, file, 0, 1000)) == 1000
            assert len(await within(loop.sock_recv(right, 5000))) == 1000

    run(main())


class Sending:
    """What the engine gives to await: fails after some bytes."""

    def __init__(self, sent: int, error: OSError) -> None:
        self.sent, self.error = sent, error

    def __await__(self) -> Any:
        raise self.error
        yield


@only_zloop
@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.EIO])
def test_an_error_in_the_middle_of_a_file(run, path, monkeypatch, code):
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        loop._try_sendfile = lambda *args: Sending(10, OSError(code, os.strerror(code)))
        with lookalikes() as (left, _), open(path, "rb") as file:
            with pytest.raises(OSError) as caught:
                await loop.sock_sendfile(left._sock, file)
            assert file.tell() == 10
        assert caught.value.errno == code if code == errno.EIO else type(caught.value) is ConnectionError

    run(main())


def test_a_transport_that_does_not_read_still_does_not_after_sendfile(run, path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected("tcp") as pair:
            pair.client_transport.pause_reading()
            with open(path, "rb") as file:
                assert await within(loop.sendfile(pair.client_transport, file)) == 100_000
            assert not pair.client_transport.is_reading()
            await pair.server.got(100_000)

    run(main())


# --- names ---


def test_hosts_of_odd_kinds_fail_as_in_the_socket_module(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for host in (b"\xff\xfe", 5, object()):
            with pytest.raises(Exception) as theirs:
                socket.getaddrinfo(host, 80)  # type: ignore[arg-type]
            with pytest.raises(type(theirs.value)):
                await within(loop.getaddrinfo(host, 80))  # type: ignore[arg-type]

    run(main())


@only_zloop
def test_lookups_without_daemon_threads(run, monkeypatch):
    started: list[bool] = []

    class Thread(threading.Thread):
        def __init__(self, *args: Any, daemon: bool | None = None, **kwargs: Any) -> None:
            started.append(bool(daemon))
            if daemon:
                raise RuntimeError("daemon threads are disabled in this (sub)interpreter")
            super().__init__(*args, **kwargs)

    async def main() -> None:
        monkeypatch.setattr(threading, "Thread", Thread)
        try:
            assert await within(asyncio.get_running_loop().getaddrinfo("localhost", 80))
        finally:
            monkeypatch.undo()

    run(main())
    assert started[:2] == [True, False]


@only_zloop
def test_threads_without_work_end_and_are_replaced(run, monkeypatch):
    monkeypatch.setattr(_resolver, "IDLE_S", 0.01)

    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == _resolver.THREAD_NAME]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(3):
            assert await within(loop.getaddrinfo("localhost", 80))
            await until(lambda: not threads())

    run(main())


def test_a_thread_on_which_a_job_counts_stays(monkeypatch):
    monkeypatch.setattr(_resolver, "IDLE_S", 0.001)
    pool = _resolver.Pool()
    pool._thread_count = pool._job_count = 1
    asked = threading.Event()
    leave = pool._leave

    def leave_and_tell() -> bool:
        stays = leave()
        asked.set()
        return stays

    monkeypatch.setattr(pool, "_leave", leave_and_tell)
    thread = threading.Thread(target=pool._work)
    thread.start()
    assert asked.wait(60)
    assert pool._thread_count == 1
    pool._jobs.put(None)
    thread.join(60)
    assert not thread.is_alive()


def test_a_lookup_that_outlives_its_loop(loop, monkeypatch):
    entered, go_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        entered.set()
        go_on.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    task = loop.create_task(loop.getaddrinfo("name", 80))
    loop.run_until_complete(until(entered.is_set))
    task.cancel()
    loop.run_until_complete(turns(2))
    running = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    loop.close()
    go_on.set()
    for thread in running:
        if thread.name.startswith("asyncio_"):
            thread.join(60)
            assert not thread.is_alive()


def test_the_answer_to_a_closed_loop_is_dropped():
    loop = zloop.new_event_loop()
    future = loop.create_future()

    def close_and_answer() -> str:
        loop.close()
        return "too late"

    _resolver._Job(loop, future, close_and_answer, ()).run()
    assert not future.done()
    # one that is cancelled or whose loop is closed is not even begun
    _resolver._Job(loop, future, pytest.fail, ("called",)).run()


# --- children ---


async def child(*, options: str = "read line", **more: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec("/bin/sh", "-c", options, stdin=PIPE, **more)


@only_zloop
def test_a_status_that_somebody_has_taken_is_reported_as_unknown(run, caplog):
    async def main() -> None:
        process = await child()
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)  # in the loop's thread, so the loop cannot be first
        assert await within(process.wait()) == 255
        assert "already read" in caplog.text

    run(main())


@only_zloop
def test_a_status_that_is_not_there_yet_is_waited_for_by_a_thread(run, monkeypatch):
    """A debugger sees the end of a child first: its descriptor is readable, its status is not there."""
    asked: list[int] = []
    waitpid = os.waitpid

    def wait_later(pid: int, options: int) -> tuple[int, int]:
        asked.append(options)
        return (0, 0) if len(asked) == 1 else waitpid(pid, options)

    async def main() -> None:
        process = await child()
        monkeypatch.setattr(os, "waitpid", wait_later)
        process.kill()
        assert await within(process.wait()) == -signal.SIGKILL
        assert asked == [os.WNOHANG, 0]

    run(main())


def without_exit_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel tells of a child's exit: neither Linux's way nor that of macOS and the BSDs."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.delattr(select, "kqueue", raising=False)


@only_zloop
def test_a_thread_finds_the_status_taken(run, monkeypatch):
    without_exit_descriptor(monkeypatch)
    waitid = os.waitid

    def taken(*args: Any) -> Any:
        waitid(*args)
        raise ChildProcessError

    async def main() -> None:
        monkeypatch.setattr(os, "waitid", taken)
        process = await child()
        process.kill()
        assert await within(process.wait()) == -signal.SIGKILL

    run(main())


@pytest.mark.parametrize("reaped", [False, True])
def test_a_child_that_outlives_its_loop_leaves_no_zombie(reaped):
    with subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=PIPE) as process:
        loop = zloop.new_event_loop()
        thread = _subprocess._ExitThread(loop, process.pid, print)
        # The name that asyncio gives such threads.
        assert thread.name == f"waitpid-{process.pid}"
        loop.close()
        process.kill()
        if reaped:
            process.wait()
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        with pytest.raises(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


@only_zloop
def test_a_child_is_ended_when_nothing_can_wait_for_it(run, monkeypatch):
    pids: list[int] = []

    def refuse(self: Any) -> None:
        pids.append(self._pid)
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        without_exit_descriptor(monkeypatch)
        monkeypatch.setattr(_subprocess._ExitThread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await child()
        await turns(3)

    run(main())
    (pid,) = pids
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@only_zloop
@pytest.mark.parametrize("exit_by", [asyncio.CancelledError, KeyboardInterrupt])
def test_a_start_that_is_given_up(run, exit_by):
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        made: list[Any] = []

        class Protocol(asyncio.SubprocessProtocol):
            def connection_made(self, transport: Any) -> None:
                made.append(transport)

        starting = loop._make_subprocess_transport(
            Protocol(), ["/bin/sh", "-c", "read line"], False, PIPE, None, None, 0
        )
        assert asyncio.isfuture(starting.send(None))  # the child runs, its pipes are being connected
        if exit_by is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                starting.throw(KeyboardInterrupt())
            await until(lambda: made)
            made[0].close()
            await within(made[0]._wait())
            return
        waiting = starting.throw(asyncio.CancelledError())  # for the child, which is killed
        assert asyncio.isfuture(waiting)
        await until(waiting.done)
        with pytest.raises(asyncio.CancelledError):
            starting.send(None)

    run(main())


class Queue:
    """A kqueue for one child's exit: a thread waits and closes the writing end of a pipe."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def fileno(self) -> int:
        return self._reader

    def control(self, changes: list[Any], count: int) -> None:
        (pid,) = changes

        def wait() -> None:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            os.close(self._writer)

        threading.Thread(target=wait).start()

    def close(self) -> None:
        reader, self._reader = self._reader, -1
        if reader >= 0:
            os.close(reader)


@only_zloop
def test_children_by_way_of_kqueue(run, monkeypatch):
    without_exit_descriptor(monkeypatch)
    names = {"kqueue": Queue, "kevent": lambda pid, *flags: pid}
    for name in ("KQ_FILTER_PROC", "KQ_EV_ADD", "KQ_EV_ONESHOT", "KQ_NOTE_EXIT"):
        names[name] = 1  # type: ignore[assignment]
    for name, value in names.items():
        monkeypatch.setattr(select, name, value, raising=False)

    async def main() -> None:
        process = await child(options="exit 7")
        assert await within(process.wait()) == 7

    run(main())


def test_a_status_that_is_no_exit_is_handed_on():
    stopped = 0x137F
    with pytest.raises(ValueError):
        os.waitstatus_to_exitcode(stopped)
    assert _subprocess._exitcode(stopped) == stopped


# --- pipes ---


def test_a_file_that_was_not_blocking_stays_so():
    master, slave = os.openpty()
    with open(master, "rb", 0) as first, open(slave, "rb", 0) as second:
        modes = _pipes.Modes()
        os.set_blocking(second.fileno(), False)
        assert not modes.take(second.fileno(), os.fstat(second.fileno()))
        modes.give_back(second)
        assert not os.get_blocking(second.fileno())
        first.close()
        modes.give_back(first)  # closed by the program meanwhile


# --- accepting ---


def lowest_free(sock: socket.socket) -> int:
    """The next descriptor that is given out: with a limit of this none is."""
    lowest = os.dup(sock.fileno())
    os.close(lowest)
    return lowest


@only_zloop
def test_a_listener_that_is_closed_while_it_is_out_of_descriptors(run, monkeypatch):
    monkeypatch.setattr(asyncio.constants, "ACCEPT_RETRY_DELAY", 0.01)
    reports: list[Report] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Log, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()

        def report(_: object, context: Report) -> None:
            # At once: the retry is still to come, whatever else keeps the machine busy.
            server.close()
            reports.append(context)

        loop.set_exception_handler(report)
        with socket.socket() as client:
            with descriptor_limit(lowest_free(client)):
                client.connect(address)
                await until(lambda: reports)
            await asyncio.sleep(0.03)  # a retry that finds the listener closed does nothing

    run(main())
    assert [report["message"] for report in reports] == ["socket.accept() out of system resource"]
    assert reports[0]["exception"].errno == errno.EMFILE


@only_zloop
def test_a_listener_out_of_descriptors_accepts_later(run, monkeypatch):
    monkeypatch.setattr(asyncio.constants, "ACCEPT_RETRY_DELAY", 0.01)
    reports: list[Report] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        accepted: list[Log] = []

        def protocol() -> Log:
            accepted.append(Log())
            return accepted[-1]

        server = await loop.create_server(protocol, "127.0.0.1", 0)
        with socket.socket() as client:
            with descriptor_limit(lowest_free(client)):
                client.connect(server.sockets[0].getsockname())
                await until(lambda: reports)
            await until(lambda: accepted)
            await within(accepted[0].made)
        await within(accepted[0].lost)
        server.close()

    run(main(), reports=reports)
    assert reports


@only_zloop
def test_a_listener_that_fails_is_reported(run):
    reports: list[Report] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener() as listening:
            server = await loop.create_server(Log, sock=listening)
            listening.shutdown(socket.SHUT_RD)
            await until(lambda: reports)
            server.close()
            await turns(3)

    run(main(), reports=reports)
    assert {report["message"] for report in reports} == {"socket.accept() failed"}


# --- signals and the selector ---


@only_zloop
def test_a_signal_handler_that_was_cancelled_is_not_called(loop):
    handle = asyncio.Handle(pytest.fail, ("called",), loop)
    handle.cancel()
    loop._add_callback_signalsafe(handle)
    loop.run_until_complete(turns(2))


@only_zloop
def test_the_selector_shows_what_is_watched_and_changes_nothing(loop):
    left, right = socket.socketpair()
    with left, right:
        selector = loop._selector
        with pytest.raises(KeyError):
            selector.get_key(left)
        loop.add_reader(left, print)
        key = selector.get_key(left)
        assert (key.fileobj, key.fd, key.events) == (left, left.fileno(), 1)
        assert selector.get_key(left.fileno()).fd == left.fileno()
        assert dict(selector.get_map()) == {}
        for call in (
            lambda: selector.register(left, 1),
            lambda: selector.unregister(left),
        ):
            with pytest.raises(RuntimeError, match="zloop"):
                call()
        assert loop.remove_reader(left)


# --- TLS ---


def test_default_contexts(run, tls):
    """ssl=True makes a context that trusts the system's authorities, and so not ours."""
    import ssl

    reports: list[Report] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Log, "127.0.0.1", 0, ssl=tls.server)
        with pytest.raises(ssl.SSLCertVerificationError):
            await within(
                loop.create_connection(
                    Log, *server.sockets[0].getsockname(), ssl=True, server_hostname="localhost"
                )
            )
        server.close()
        await turns(5)

    run(main(), reports=reports)
    assert all(isinstance(report["exception"], OSError) for report in reports)


def test_a_python_without_ssl():
    program = """
import sys
for name in ("ssl", "_ssl"):
    sys.modules[name] = None
import asyncio, zloop
async def main():
    loop = asyncio.get_running_loop()
    assert loop.tls_engine == "asyncio"
    try:
        await loop.start_tls(None, None, None)
    except (RuntimeError, TypeError, AttributeError) as exc:
        return type(exc).__name__
print(zloop.run(main()))
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != "None"


def test_a_file_object_without_a_number_is_sent_by_the_fallback(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with lookalikes() as (left, right):
            assert await within(loop.sock_sendfile(left._sock, io.BytesIO(b"memory"))) == 6
            assert await within(loop.sock_recv(right, 100)) == b"memory"

    run(main())
