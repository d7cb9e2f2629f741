"""When written bytes are in the kernel: wherever a program can tell, as with asyncio, which sends at once.

The peer is a blocking socket of the test's own: a callback writes, does something, and reads the peer before
it returns. zloop may keep an answer until the end of the turn, but not from any of these.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sysconfig
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from harness import DatagramLog, Log, child_env, run_program, run_python, turns, within

pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")

#: The peer waits so long for what must be there already; reached only by a failing test.
PEER_PATIENCE_S = 5.0

KINDS = [
    pytest.param(("tcp", "native"), id="tcp"),
    pytest.param(("unix", "native"), id="unix"),
    pytest.param(("tls", "native"), id="tls-native"),
    pytest.param(("tls", "asyncio"), id="tls-asyncio"),
]
PLAIN = KINDS[:2]

without_gil = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
free_threaded_asks_its_own_thread = pytest.mark.skipif(
    without_gil, reason="without the GIL no thread may touch a transport of another one's loop"
)


@pytest.fixture
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, unix_path: str) -> Any:
    """served(protocol): a connection of a server, which has received one byte, and its blocking peer."""
    kind, engine = request.param
    if kind == "tls":
        if engine == "native" and request.node.callspec.params["loop_factory"] == "asyncio":
            pytest.skip("the control has one engine")
        monkeypatch.setenv("ZLOOP_TLS", engine)
        tls = request.getfixturevalue("tls")

    @contextlib.asynccontextmanager
    async def connection(
        protocol: Callable[[], Any] = Log, *, asks: bool = True
    ) -> AsyncIterator[tuple[Any, Any]]:
        loop = asyncio.get_running_loop()
        made = loop.create_future()

        def factory() -> Any:
            made.set_result(protocol())
            return made.result()

        if kind == "unix":
            server = await loop.create_unix_server(factory, unix_path)
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(unix_path)
        else:
            server = await loop.create_server(
                factory, "127.0.0.1", 0, ssl=tls.server if kind == "tls" else None
            )
            peer = socket.create_connection(server.sockets[0].getsockname())
        peer.settimeout(PEER_PATIENCE_S)
        try:
            if kind == "tls":
                peer = await loop.run_in_executor(
                    None, lambda: tls.client.wrap_socket(peer, server_hostname="localhost")
                )
            log = await within(made)
            await within(log.made)
            if asks:
                peer.sendall(b"?")
                assert await log.got(1) == b"?"
            yield log, peer
            log.transport.abort()
            await within(log.lost)
        finally:
            peer.close()
            server.close()
            await within(server.wait_closed())

    connection.kind = kind  # type: ignore[attr-defined]
    return connection


everywhere = pytest.mark.parametrize("served", KINDS, indirect=True)
where_answers_wait = pytest.mark.parametrize("served", KINDS[:3], indirect=True)
on_plain_sockets = pytest.mark.parametrize("served", PLAIN, indirect=True)


def receive(peer: Any, count: int) -> bytes:
    """So many bytes, without the loop's help."""
    got = b""
    while len(got) < count:
        piece = peer.recv(count - len(got))
        if not piece:
            break
        got += piece
    return got


def shown(transport: Any) -> Any:
    return transport.get_extra_info("socket")


def forks(peer: Any) -> None:
    """The child receives what its parent wrote."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if receive(peer, 6) == b"answer" else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def in_a_thread(act: Callable[[], object]) -> None:
    """The callback waits for a thread."""
    failed: list[BaseException] = []

    def body() -> None:
        try:
            act()
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert not failed


@pytest.mark.only_zloop("asyncio sends at once")
@where_answers_wait
def test_an_answer_may_wait_for_the_end_of_the_turn(run, served):
    """What the other tests here rest on: without what they do, the bytes are not there."""

    async def main() -> None:
        async with served() as (log, peer):
            log.transport.write(b"an")
            log.transport.writelines([b"sw", b"er"])
            peer.settimeout(0.05)
            with pytest.raises(TimeoutError):
                peer.recv(1)
            peer.settimeout(PEER_PATIENCE_S)
            await turns(1)
            assert receive(peer, 6) == b"answer"

    run(main())


ACTS: dict[str, Callable[[Any], object]] = {
    "get_write_buffer_size": lambda transport: transport.get_write_buffer_size(),
    "shutdown": lambda transport: shown(transport).shutdown(socket.SHUT_WR),
    "setsockopt": lambda transport: shown(transport).setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "getsockopt": lambda transport: shown(transport).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
    "fileno": lambda transport: shown(transport).fileno(),
    "dup": lambda transport: shown(transport).dup().close(),
    "abort": lambda transport: transport.abort(),
    "close": lambda transport: transport.close(),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@everywhere
def test_what_acts_on_the_connection_sends_first(run, served, act):
    async def main() -> None:
        async with served() as (log, peer):
            log.transport.write(b"answer")
            act(log.transport)
            assert receive(peer, 6) == b"answer"

    run(main())


@on_plain_sockets
def test_write_eof_sends_first(run, served):
    async def main() -> None:
        async with served() as (log, peer):
            log.transport.write(b"answer")
            log.transport.write_eof()
            assert receive(peer, 7) == b"answer"

    run(main())


@everywhere
def test_private_names_of_the_socket_send_first(run, served):
    async def main() -> None:
        async with served() as (log, peer):
            for name in ("_sock", "_sock_fd"):
                stream = log.transport if served.kind != "tls" else log.transport._ssl_protocol._transport
                log.transport.write(b"answer")
                assert getattr(stream, name)
                assert receive(peer, 6) == b"answer"

    run(main())


LET_OUT: dict[str, Callable[[Any], object]] = {
    "fileno": lambda transport: shown(transport).fileno(),
    "dup": lambda transport: shown(transport).dup().close(),
    "add_reader": lambda transport: refused(asyncio.get_running_loop().add_reader, shown(transport), int),
    "_sock": lambda transport: shown(transport)._sock,
}


def refused(function: Callable[..., Any], *args: Any) -> None:
    with pytest.raises(RuntimeError, match="is used by transport"):
        function(*args)


@pytest.mark.parametrize("let_out", LET_OUT.values(), ids=LET_OUT)
@everywhere
def test_once_the_descriptor_is_out_all_leaves_at_once(run, served, let_out):
    async def main() -> None:
        async with served() as (log, peer):
            let_out(log.transport)
            for _ in range(2):
                log.transport.write(b"answer")
                assert receive(peer, 6) == b"answer"
                await turns(1)

    run(main())


@on_plain_sockets
def test_bytes_sent_by_the_descriptor_come_behind_those_written(run, served):
    async def main() -> None:
        async with served() as (log, peer):
            log.transport.write(b"1")
            fd = shown(log.transport).fileno()
            os.write(fd, b"2")
            log.transport.write(b"3")
            os.write(fd, b"4")
            with shown(log.transport).dup() as copy:
                log.transport.write(b"5")
                copy.send(b"6")
            subprocess.run(["printf", "7"], stdout=fd, check=True)
            assert receive(peer, 7) == b"1234567"

    run(main())


@on_plain_sockets
def test_a_child_of_the_loop_that_gets_the_descriptor_writes_behind(run, served):
    async def main() -> None:
        async with served() as (log, peer):
            log.transport.write(b"header ")
            fd = shown(log.transport).fileno()
            process = await asyncio.create_subprocess_exec("printf", "body", stdout=fd)
            assert await within(process.wait()) == 0
            assert receive(peer, 11) == b"header body"

    run(main())


@everywhere
def test_drain_sends(run, served):
    """`StreamWriter.drain()` returns without a turn in between."""

    async def main() -> None:
        streams = asyncio.get_running_loop().create_future()

        class Streams(asyncio.StreamReaderProtocol):
            def __init__(self) -> None:
                super().__init__(asyncio.StreamReader(), lambda *both: streams.set_result(both))
                self.made = self.lost = asyncio.get_running_loop().create_future()
                self.made.set_result(None)

            async def got(self, count: int) -> bytes:
                self.reader, self.writer = await streams
                self.transport = self.writer.transport
                return await self.reader.readexactly(count)

        async with served(Streams) as (log, peer):
            for _ in range(2):
                log.writer.write(b"an")
                log.writer.write(b"swer")
                await log.writer.drain()
                assert receive(peer, 6) == b"answer"
                await turns(2)
            log.transport.write(b"answer")
            await log.writer.drain()
            assert receive(peer, 6) == b"answer"

    run(main())


@everywhere
def test_drain_of_a_writer_over_a_protocol_of_the_programs_own(run, served):
    async def main() -> None:
        class Mixed(asyncio.streams.FlowControlMixin, Log):  # type: ignore[misc]
            def __init__(self) -> None:
                Log.__init__(self)
                asyncio.streams.FlowControlMixin.__init__(self, asyncio.get_running_loop())

            pause_writing = asyncio.streams.FlowControlMixin.pause_writing
            resume_writing = asyncio.streams.FlowControlMixin.resume_writing
            connection_lost = Log.connection_lost

        async with served(Mixed) as (log, peer):
            writer = asyncio.StreamWriter(log.transport, log, None, asyncio.get_running_loop())
            writer.write(b"answer")
            await writer.drain()
            assert receive(peer, 6) == b"answer"
            writer.close()

    run(main())


@everywhere
def test_a_fork_sends_first(run, served):
    async def main() -> None:
        async with served() as (log, peer):
            log.transport.write(b"answer")
            forks(peer)
            if served.kind != "tls":  # the child has read a record that the parent's side of the peer misses
                log.transport.write(b"second")
                await turns(1)
                assert receive(peer, 6) == b"second"

    run(main())


@free_threaded_asks_its_own_thread
@everywhere
def test_another_threads_use_of_the_socket_sends_first(run, served):
    async def main() -> None:
        async with served() as (log, peer):
            log.transport.write(b"answer")
            in_a_thread(lambda: shown(log.transport).shutdown(socket.SHUT_WR))
            assert receive(peer, 6) == b"answer"

    run(main())


@free_threaded_asks_its_own_thread
@everywhere
def test_a_fork_by_another_thread_sends_first(run, served):
    async def main() -> None:
        async with served() as (log, peer):
            log.transport.write(b"answer")
            in_a_thread(lambda: forks(peer))

    run(main())


@on_plain_sockets
def test_a_fork_for_a_child_with_a_function_of_its_own_sends_first(run, served):
    """`preexec_fn` runs in a forked child."""

    async def main() -> None:
        async with served() as (log, peer):
            log.transport.write(b"answer")
            subprocess.run(
                ["true"], preexec_fn=lambda: receive(peer, 6) == b"answer" or os._exit(1), check=True
            )

    run(main())


@pytest.mark.only_zloop("asyncio's child takes the parent's connection out of the epoll that both share")
@where_answers_wait
def test_a_forked_child_never_sends_what_its_parent_queued(run, served):
    """Neither what waits for the end of the turn nor what the kernel has no room for."""

    async def main() -> None:
        async with served() as (log, peer):
            filling = bytes(8_000_000)
            log.transport.write(filling)
            assert log.transport.get_write_buffer_size() > 0
            pid = os.fork()
            if pid == 0:
                try:
                    log.transport.get_write_buffer_size()
                    log.transport.abort()
                    os._exit(0)
                finally:
                    os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            log.transport.write(b"end")
            received = await within(
                asyncio.get_running_loop().run_in_executor(None, receive, peer, len(filling) + 3)
            )
            assert received == filling + b"end"

    run(main())


@everywhere
def test_what_another_thread_writes_leaves_at_once(run, served):
    async def main() -> None:
        async with served() as (log, peer):
            in_a_thread(lambda: log.transport.write(b"answer"))
            assert receive(peer, 6) == b"answer"

    run(main())


@everywhere
def test_what_is_no_answer_leaves_at_once(run, served):
    """Nothing has come from the peer yet."""

    async def main() -> None:
        async with served(asks=False) as (log, peer):
            for _ in range(2):
                log.transport.write(b"answer")
                assert receive(peer, 6) == b"answer"
                await turns(1)

    run(main())


@on_plain_sockets
def test_while_the_program_holds_the_socket_object_all_leaves_at_once(run, served):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        left.setblocking(False)
        right.settimeout(PEER_PATIENCE_S)
        transport, log = await loop.create_connection(Log, sock=left)
        right.send(b"?")
        assert await log.got(1) == b"?"
        transport.write(b"an")
        assert receive(right, 2) == b"an"
        shown(transport).getsockname()
        transport.write(b"swer")
        left.shutdown(socket.SHUT_WR)
        assert receive(right, 5) == b"swer"
        transport.abort()
        await within(log.lost)
        right.close()

    run(main())


@pytest.mark.parametrize("end", ["loop.stop()", "raise SystemExit", "raise KeyboardInterrupt"])
def test_the_end_of_the_run_sends(loop_name, end):
    done = run_program(
        loop_name,
        f"""
        class P(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport
            def data_received(self, data):
                self.transport.write(b"answer")
                {end}
        loop = factory()
        server = loop.run_until_complete(loop.create_server(P, "127.0.0.1", 0))
        peer = socket.create_connection(server.sockets[0].getsockname())
        peer.settimeout({PEER_PATIENCE_S})
        peer.send(b"?")
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as exc:
            print(type(exc).__name__)
        print(peer.recv(10))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "b'answer'"


def test_pipes_and_datagrams_never_wait(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        pipe, pipe_log = await loop.connect_write_pipe(Log, os.fdopen(writing, "wb", 0))
        pipe.write(b"to a pipe")
        assert os.read(reading, 100) == b"to a pipe"
        pipe.close()
        await within(pipe_log.lost)
        os.close(reading)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.settimeout(PEER_PATIENCE_S)
            endpoint, log = await loop.create_datagram_endpoint(DatagramLog, remote_addr=peer.getsockname())
            peer.sendto(b"?", endpoint.get_extra_info("sockname"))
            await log.packet()
            endpoint.sendto(b"a datagram")
            assert peer.recv(100) == b"a datagram"
            endpoint.close()
            await within(log.lost)

    run(main())


@pytest.mark.parametrize("served", [KINDS[0]], indirect=True)
def test_the_shown_socket_is_asyncios(run, served):
    async def main() -> None:
        async with served() as (log, _):
            sock = shown(log.transport)
            assert isinstance(sock, asyncio.trsock.TransportSocket)
            assert sock is shown(log.transport)
            plain = asyncio.trsock.TransportSocket(sock._sock)
            assert repr(sock) == repr(plain)
            for name in ("family", "type", "proto"):
                assert getattr(sock, name) == getattr(plain, name)
            for name in ("getpeername", "getsockname", "get_inheritable", "gettimeout", "fileno"):
                assert getattr(sock, name)() == getattr(plain, name)()
            log.transport.abort()
            await within(log.lost)
            assert sock.fileno() == -1
            assert "fd=-1" in repr(sock)
            with pytest.raises(OSError):
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    run(main())


@pytest.mark.parametrize("served", [KINDS[0]], indirect=True)
def test_a_shown_socket_outlives_its_transport(run, served):
    async def main() -> None:
        async with served() as (log, _):
            sock = shown(log.transport)
            transport = weakref.ref(log.transport)
        del log
        await turns(2)
        gc.collect()
        assert transport() is None
        assert sock.fileno() == -1
        with pytest.raises(OSError):
            sock.shutdown(socket.SHUT_WR)

    run(main())


@pytest.mark.only_zloop("asyncio has no choice to offer")
@where_answers_wait
def test_a_transport_can_be_told_to_send_at_once(run, served):
    async def main() -> None:
        async with served() as (log, peer):
            log.transport.write(b"answer")
            log.transport.set_send_at_once(True)
            assert receive(peer, 6) == b"answer"
            log.transport.write(b"second")
            assert receive(peer, 6) == b"second"
            log.transport.set_send_at_once(False)
            log.transport.write(b"third")
            peer.settimeout(0.05)
            with pytest.raises(TimeoutError):
                peer.recv(1)
            log.transport.abort()
            await within(log.lost)
            log.transport.set_send_at_once(True)

    run(main())


@pytest.mark.only_zloop("asyncio has no choice to offer")
@where_answers_wait
def test_a_loop_can_be_told_to_send_at_once(run, served):
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        async with served() as (log, peer):
            assert loop.send_at_once is False
            log.transport.write(b"answer")
            loop.send_at_once = True
            assert loop.send_at_once is True
            assert receive(peer, 6) == b"answer"
            log.transport.write(b"second")
            assert receive(peer, 6) == b"second"
            loop.send_at_once = False
            log.transport.write(b"third")
            peer.settimeout(0.05)
            with pytest.raises(TimeoutError):
                peer.recv(1)

    run(main())


@pytest.mark.only_zloop("the variable is zloop's")
@pytest.mark.parametrize("choice", ["", "turn", "now", "later"])
def test_the_environment_can_say_so(loop_factory, choice):
    done = run_python(
        "-c",
        "import zloop; loop = zloop.new_event_loop(); print(loop.send_at_once); loop.close()",
        env={**child_env(), "ZLOOP_SEND": choice},
    )
    if choice == "later":
        assert done.returncode != 0
        assert "ValueError: ZLOOP_SEND is 'later'; it can be turn, now" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, f"{choice == 'now'}\n"), done.stderr
