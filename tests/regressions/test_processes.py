"""R43-R53: children, stdio, signals, exits, fork and interpreters."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pty
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from harness import (
    PATIENCE_S,
    child_env,
    open_fds,
    run_program,
    spawn_tells_errors,
    tcp_sockets,
    turns,
    until,
    within,
)

PIPE = subprocess.PIPE
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="opens /proc/self/fd")


@linux
def test_r43_stdio_by_name(run):
    """uvloop #532, uvloop #505, uvloop #595."""

    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", "cat /dev/stdin > /proc/self/fd/1; echo err > /dev/stderr",
            stdin=PIPE, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip
        assert await within(process.communicate(b"by name")) == (b"by name", b"err\n")
        loop = asyncio.get_running_loop()
        transport, _ = await loop.subprocess_exec(asyncio.SubprocessProtocol, "/bin/cat")
        for fd in (0, 1, 2):
            pipe = transport.get_pipe_transport(fd).get_extra_info("pipe")
            assert pipe is not None
            assert pipe.fileno() >= 0
        transport.close()
        await until(lambda: transport.get_returncode() is not None)
        await turns(5)

    run(main())


@spawn_tells_errors
@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.soak)])
def test_r44_missing_programs(run, count):
    """uvloop #185, uvloop #187."""

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(FileNotFoundError):
                await asyncio.create_subprocess_exec("/no/such/program", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        gc.collect()
        await turns(3)
        before = len(open_fds())
        for _ in range(count):
            with pytest.raises(FileNotFoundError):
                await asyncio.create_subprocess_exec("/no/such/program", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        gc.collect()
        await until(lambda: len(open_fds()) <= before)

    run(main())


@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.soak)])
def test_r45_closing_transports_of_running_children(run, count):
    """uvloop #128, uvloop #64."""

    class Child(asyncio.SubprocessProtocol):
        def __init__(self) -> None:
            self.exited = self.lost = 0

        def process_exited(self) -> None:
            self.exited += 1

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost += 1

    async def main() -> None:
        loop = asyncio.get_running_loop()
        children = [await loop.subprocess_exec(Child, "/bin/sleep", "60") for _ in range(count)]
        pids = [transport.get_pid() for transport, _ in children]
        for transport, _ in children:
            transport.close()
        await until(lambda: all(protocol.lost for _, protocol in children))
        assert all((protocol.exited, protocol.lost) == (1, 1) for _, protocol in children)
        for pid in pids:
            with pytest.raises(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    run(main())


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="changing the user needs root")
@pytest.mark.asyncio_bug("asserts where Popen checks", when=False)
def test_r46_popen_keywords_of_identity(run):
    """uvloop #618, uvloop #328."""

    async def main() -> None:
        options: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": [], "umask": 0o27}
        if sys.version_info >= (3, 11):
            options["process_group"] = 0
        script = "id -u; id -g; umask"
        process = await asyncio.create_subprocess_exec(Path("/bin/sh"), "-c", script, stdout=PIPE, **options)
        output, _ = await within(process.communicate())
        assert output.split() == [b"65534", b"65534", b"0027"]

    run(main())


def test_r46_files_with_a_descriptor_as_stdout(loop_name):
    """uvloop #136: sys.stdout itself."""
    done = run_program(
        loop_name,
        """
        async def main():
            process = await asyncio.create_subprocess_exec("echo", "to the same place", stdout=sys.stdout)
            print("exit", await process.wait(), flush=True)
        loop = factory()
        loop.run_until_complete(main())
        loop.close()
        """,
    )
    assert done.stdout == "to the same place\nexit 0\n", done.stderr


def test_r47_inheritable_descriptors_stay_in_the_parent(run):
    """zuvloop #56."""

    async def main() -> None:
        reader, writer = os.pipe()
        os.set_inheritable(writer, True)
        code = f"import os, sys\ntry: os.fstat({writer})\nexcept OSError: sys.exit(7)"
        for options in ({}, {"pass_fds": ()}):
            process = await asyncio.create_subprocess_exec(sys.executable, "-Sc", code, **options)
            assert await within(process.wait()) == 7
            assert os.get_inheritable(writer)
        process = await asyncio.create_subprocess_exec(sys.executable, "-Sc", code, pass_fds=[writer])
        assert await within(process.wait()) == 0
        process = await asyncio.create_subprocess_exec(sys.executable, "-Sc", code, close_fds=False)
        assert await within(process.wait()) == 0
        os.close(reader)
        os.close(writer)

    run(main())


def test_r48_a_child_killed_with_much_stdin_queued(run):
    """cpython #104340, cpython #105616."""

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("/bin/sleep", "60", stdin=PIPE)
        assert process.stdin is not None
        process.stdin.write(bytes(5_000_000))
        draining = asyncio.ensure_future(process.stdin.drain())
        await turns(3)
        process.kill()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await within(draining)
        await within(process.wait())
        with contextlib.suppress(ConnectionError):
            await within(process.stdin.wait_closed())

    run(main())


def test_r49_a_terminal_as_stdio_keeps_its_mode(loop_name):
    """uvloop #712, uvloop #686, uvloop #460; aioconsole #17, aioconsole #117."""
    code = textwrap.dedent(
        f"""
        import asyncio, importlib, os, sys
        module, _, attribute = {loop_name!r}.partition(":")
        loop = getattr(importlib.import_module(module), attribute)()
        async def main():
            for fd in (0, 1, 2):
                assert os.get_blocking(fd)
            typed = asyncio.Event()
            loop.add_reader(0, typed.set)
            loop.add_writer(1, lambda: loop.remove_writer(1))
            loop.add_writer(2, lambda: loop.remove_writer(2))
            await typed.wait()
            loop.remove_reader(0)
            print("modes", [os.get_blocking(fd) for fd in (0, 1, 2)], "typed", sys.stdin.readline().strip())
        loop.run_until_complete(main())
        loop.close()
        print("modes", [os.get_blocking(fd) for fd in (0, 1, 2)])
        """
    )
    controller, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-Wignore", "-c", code],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=child_env(),
    )
    os.write(controller, b"words\n")
    assert child.wait(PATIENCE_S) == 0
    assert os.get_blocking(terminal)
    os.close(terminal)
    output = b""
    with contextlib.suppress(OSError):
        while data := os.read(controller, 4096):
            output += data
    os.close(controller)
    lines = output.decode().replace("\r", "").splitlines()
    assert lines[1:] == ["modes [True, True, True] typed words", "modes [True, True, True]"], output


@pytest.mark.parametrize("state", ["forever", "callback", "timers"])
def test_r50_sigint_without_handler(loop_name, state):
    """uvloop #295, uvloop #296."""
    done = run_program(
        loop_name,
        f"""
        import time
        loop = factory()
        state = {state!r}
        def slow():
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                pass
        if state == "callback":
            loop.call_soon(slow)
        elif state == "timers":
            for number in range(100):
                loop.call_later(100 + number, print)
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            print("interrupted")
        print("wake-up descriptor", signal.set_wakeup_fd(-1))
        print("again", loop.run_until_complete(asyncio.sleep(0.001, "runs")))
        loop.close()
        """,
    )
    assert done.stdout == "interrupted\nwake-up descriptor -1\nagain runs\n", done.stderr


@pytest.mark.parametrize("where", ["task", "data_received", "tls"])
def test_r51_sys_exit_leaves_the_process(loop_name, tls, where):
    """uvloop #612, uvloop #336."""
    done = run_program(
        loop_name,
        f"""
        import ssl
        where = {where!r}
        class Leaving(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport
            def data_received(self, data):
                sys.exit(3)
        async def main():
            loop = asyncio.get_running_loop()
            if where == "task":
                sys.exit(3)
            context = client_context = None
            if where == "tls":
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain({tls.certificate!r})
                client_context = ssl.create_default_context(cafile={tls.authority!r})
            server = await loop.create_server(Leaving, "127.0.0.1", 0, ssl=context)
            options = {{"server_hostname": "localhost"}} if context else {{}}
            transport, _ = await loop.create_connection(
                asyncio.Protocol, *server.sockets[0].getsockname(), ssl=client_context, **options)
            transport.write(b"x")
            await asyncio.sleep(10)
        loop = factory()
        try:
            loop.run_until_complete(main())
        except SystemExit as exc:
            print("again", loop.run_until_complete(asyncio.sleep(0.001, "runs")), flush=True)
            raise
        """,
    )
    assert done.stdout == "again runs\n", done.stderr
    assert done.returncode == 3, done.stderr


@pytest.mark.parametrize("where", ["loop", "thread", "hook"])
def test_r52_fork_while_the_loop_runs(loop_name, where):
    """uvloop #39; cpython #75155; dd-trace-py #15798."""
    done = run_program(
        loop_name,
        f"""
        where = {where!r}
        events = []
        def fork():
            pid = os.fork()
            if pid == 0:
                try:
                    asyncio._set_running_loop(None)
                    fresh = factory()
                    fresh.run_until_complete(asyncio.sleep(0.001))
                    fresh.close()
                finally:
                    os._exit(0)
            status = os.waitpid(pid, 0)[1]
            events.append(os.waitstatus_to_exitcode(status))
        if where == "hook":
            os.register_at_fork(after_in_child=lambda: events.append("hook"), before=lambda: None)
        async def main():
            loop = asyncio.get_running_loop()
            left, right = socket.socketpair()
            left.setblocking(False)
            seen = []
            loop.add_reader(left, lambda: seen.append(left.recv(10)))
            timer = loop.create_future()
            loop.call_later(0.05, timer.set_result, None)
            right.send(b"before")
            if where == "thread":
                await loop.run_in_executor(None, fork)
            else:
                fork()
            right.send(b"after")
            await timer
            await asyncio.sleep(0.01)
            print(b"".join(seen).decode(), events)
            loop.remove_reader(left)
        loop = factory()
        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        """,
    )
    assert done.stdout == "beforeafter [0]\n", done.stderr
    assert done.returncode == 0


def test_r53_a_daemon_thread_at_exit(loop_name):
    """xpra #4891. (Subinterpreters, uvloop #650, are in test_interpreters.py.)"""
    for _ in range(3):
        done = run_program(
            loop_name,
            """
            import time
            def work():
                loop = factory()
                async def main():
                    while True:
                        await asyncio.sleep(0)
                loop.run_until_complete(main())
            for _ in range(4):
                threading.Thread(target=work, daemon=True).start()
            time.sleep(0.05)
            print("leaves")
            """,
        )
        assert (done.stdout, done.returncode) == ("leaves\n", 0), done.stderr


def test_r22_and_r48_together_never_raise_sigpipe(run):
    """A peer's end must arrive as an exception even where the process wants to die of SIGPIPE."""
    previous = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:

        async def main() -> None:
            loop = asyncio.get_running_loop()
            left, right = tcp_sockets()
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=left)
            right.close()
            for _ in range(5):
                transport.write(b"x" * 1000)
                await turns(2)
            transport.abort()
            await turns(2)

        run(main())
    finally:
        signal.signal(signal.SIGPIPE, previous)
