"""Child processes."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from harness import LogBase, pattern, spawn_tells_errors, until, within
from harness import run as run_on

SHELL = "/bin/sh"
PIPE = subprocess.PIPE


async def sh(script: str, **options: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(SHELL, "-c", script, **options)


def test_exit_codes(run):
    async def main() -> None:
        for code in (0, 1, 77, 255):
            process = await sh(f"exit {code}")
            assert process.pid > 0
            assert await within(process.wait()) == code
            assert process.returncode == code
            assert await within(process.wait()) == code

    run(main())


def test_communicate(run):
    async def main() -> None:
        process = await sh("cat; echo error >&2", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        data = pattern(1_000_000)
        assert await within(process.communicate(data)) == (data, b"error\n")
        assert process.returncode == 0

    run(main())


def test_conversation(run):
    async def main() -> None:
        process = await sh("while read line; do echo got $line; done", stdin=PIPE, stdout=PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(20):
            process.stdin.write(b"%d\n" % number)
            await process.stdin.drain()
            assert await within(process.stdout.readline()) == b"got %d\n" % number
        process.stdin.close()
        await within(process.stdin.wait_closed())
        assert await within(process.stdout.read()) == b""
        assert await within(process.wait()) == 0

    run(main())


def test_shell(run):
    async def main() -> None:
        process = await asyncio.create_subprocess_shell("echo $((6 * 7))", stdout=PIPE)
        assert await within(process.communicate()) == (b"42\n", None)

    run(main())


def test_stderr_to_stdout_and_devnull(run):
    async def main() -> None:
        process = await sh("echo out; echo err >&2", stdout=PIPE, stderr=subprocess.STDOUT)
        assert await within(process.communicate()) == (b"out\nerr\n", None)
        process = await sh("cat; echo x", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        assert process.stdin is None
        assert process.stdout is None
        assert await within(process.wait()) == 0

    run(main())


def test_files_as_stdio(run, tmp_path):
    async def main() -> None:
        (tmp_path / "in").write_bytes(b"from a file")
        with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as target:
            process = await sh("cat", stdin=source, stdout=target.fileno())
            assert await within(process.wait()) == 0
        assert (tmp_path / "out").read_bytes() == b"from a file"

    run(main())


@pytest.mark.parametrize("method", ["terminate", "kill", "send_signal"])
def test_signals(run, method):
    async def main() -> None:
        process = await sh("exec sleep 60")
        number = {"terminate": signal.SIGTERM, "kill": signal.SIGKILL, "send_signal": signal.SIGINT}[method]
        getattr(process, method)(*([number] if method == "send_signal" else []))
        assert await within(process.wait()) == -number
        with pytest.raises(ProcessLookupError):
            process.send_signal(signal.SIGTERM)

    run(main())


def test_cwd_env_and_paths(run, tmp_path):
    async def main() -> None:
        process = await sh("pwd; echo $VALUE", cwd=tmp_path, env={"VALUE": "seen"}, stdout=PIPE)
        output, _ = await within(process.communicate())
        assert output.decode().splitlines() == [os.path.realpath(tmp_path), "seen"]
        process = await asyncio.create_subprocess_exec(Path(SHELL), "-c", "exit 3")
        assert await within(process.wait()) == 3
        process = await asyncio.create_subprocess_exec(b"/bin/sh", b"-c", b"exit 4")
        assert await within(process.wait()) == 4

    run(main())


@spawn_tells_errors
def test_missing_and_forbidden_programs(run, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("no program")

    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec("/no/such/program")
        with pytest.raises(PermissionError):
            await asyncio.create_subprocess_exec(str(plain))
        with pytest.raises(FileNotFoundError):
            await sh("exit", cwd="/no/such/folder")

    run(main())


def test_a_new_session_and_popen_options(run):
    async def main() -> None:
        process = await sh("ps -o sid= -p $$ || true; ulimit -n; umask", stdout=PIPE, start_new_session=True)
        await within(process.communicate())
        process = await sh("echo $0", stdout=PIPE, close_fds=True, restore_signals=True)
        assert (await within(process.communicate()))[0].strip() == SHELL.encode()
        if sys.version_info >= (3, 11):
            process = await sh("exec sleep 60", process_group=0)
            assert os.getpgid(process.pid) == process.pid
            os.killpg(process.pid, signal.SIGTERM)
            assert await within(process.wait()) == -signal.SIGTERM

    run(main())


def test_pass_fds(run):
    async def main() -> None:
        reader, writer = os.pipe()
        program = f"import os; os.write({writer}, b'through')"
        process = await asyncio.create_subprocess_exec(sys.executable, "-Sc", program, pass_fds=[writer])
        os.close(writer)
        assert await within(process.wait()) == 0
        assert os.read(reader, 100) == b"through"
        os.close(reader)

    run(main())


def test_text_modes_and_buffers_are_refused(run):
    async def main() -> None:
        for options in (
            {"universal_newlines": True},
            {"text": True},
            {"encoding": "utf-8"},
            {"errors": "strict"},
            {"bufsize": 4096},
            {"shell": True},
        ):
            with pytest.raises(ValueError):
                await sh("exit", **options)
        with pytest.raises(TypeError):
            await asyncio.create_subprocess_exec(SHELL, "-c", 5)  # type: ignore[arg-type]

    run(main())


class ChildLog(asyncio.SubprocessProtocol):
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.events: list[Any] = []
        self.output = {1: bytearray(), 2: bytearray()}
        self.exited: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[Any] = loop.create_future()

    def connection_made(self, transport: Any) -> None:
        self.events.append("made")

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.output[fd] += data

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.events.append(("pipe lost", fd))

    def process_exited(self) -> None:
        self.events.append("exited")
        self.exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.lost.set_result(exc)


def test_the_protocol_sees_every_event(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, log = await loop.subprocess_exec(ChildLog, SHELL, "-c", "cat; echo err >&2; exit 5")
        assert isinstance(transport, asyncio.SubprocessTransport)
        assert transport.get_pid() > 0
        assert transport.get_returncode() is None
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        assert isinstance(transport.get_pipe_transport(1), asyncio.ReadTransport)
        assert transport.get_pipe_transport(7) is None
        assert transport.get_extra_info("subprocess") is not None
        assert repr(transport)
        stdin.write(b"out")
        stdin.write_eof()
        assert await within(log.lost) is None
        assert bytes(log.output[1]) == b"out"
        assert bytes(log.output[2]) == b"err\n"
        assert transport.get_returncode() == 5
        assert log.events[0] == "made"
        assert log.events[-1] == "lost"
        assert set(log.events) == {"made", "exited", "lost", *(("pipe lost", fd) for fd in range(3))}
        transport.close()
        assert repr(transport)

    run(main())


def test_closing_the_transport_kills_the_child(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, log = await loop.subprocess_exec(ChildLog, "/bin/sleep", "60")
        pid = transport.get_pid()
        transport.close()
        assert transport.is_closing()
        await within(log.exited)
        await within(log.lost)
        assert transport.get_returncode() == -signal.SIGKILL
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # reaped: no zombie is left
        with pytest.raises(ProcessLookupError):
            transport.send_signal(signal.SIGTERM)

    run(main())


def test_many_children_at_once(run):
    async def main() -> None:
        async def one(number: int) -> None:
            process = await sh(f"exit {number % 100}")
            assert await within(process.wait()) == number % 100

        for start in range(0, 60, 20):
            await asyncio.gather(*(one(start + number) for number in range(20)))

    run(main())


def test_children_that_exit_before_anyone_waits(run):
    async def main() -> None:
        process = await sh("exit 9", stdout=PIPE)
        assert process.stdout is not None
        assert await within(process.stdout.read()) == b""
        await until(lambda: process.returncode is not None)
        assert await within(process.wait()) == 9

    run(main())


def test_cancelled_wait_can_be_repeated(run):
    async def main() -> None:
        process = await sh("read line; exit 2", stdin=PIPE)
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), 0.005)
        assert process.stdin is not None
        process.stdin.close()
        await within(process.stdin.wait_closed())
        assert await within(process.wait()) == 2

    run(main())


@pytest.mark.asyncio_bug("logs that the child has left its input", when=sys.version_info < (3, 12), run=False)
def test_a_child_that_ignores_its_input(run):
    async def main() -> None:
        process = await sh("exit 0", stdin=PIPE)
        assert process.stdin is not None
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                process.stdin.write(bytes(100_000))
                await within(process.stdin.drain())
        assert await within(process.wait()) == 0
        assert await within((await sh("exit 0", stdin=PIPE)).communicate(bytes(1_000_000))) == (None, None)

    run(main())


def test_a_grandchild_keeps_the_pipe_open(run):
    async def main() -> None:
        process = await sh("sleep 0.2 & exit 0", stdout=PIPE)
        assert await within(process.wait()) == 0
        assert process.stdout is not None
        assert await within(process.stdout.read()) == b""

    run(main())


def test_large_output_is_not_lost_at_exit(run):
    async def main() -> None:
        for _ in range(5):
            process = await sh("head -c 300000 /dev/zero", stdout=PIPE)
            output, _ = await within(process.communicate())
            assert len(output) == 300_000

    run(main())


def test_from_a_loop_in_a_thread(loop_factory):
    results: list[Any] = []

    async def main() -> None:
        process = await sh("echo thread", stdout=PIPE)
        results.append(await within(process.communicate()))

    thread = threading.Thread(target=run_on, args=[main(), loop_factory])
    thread.start()
    thread.join(60)
    assert results == [(b"thread\n", None)]


def test_a_users_sigchld_handler_and_a_users_child_are_left_alone(run):
    seen: list[int] = []
    previous = signal.signal(signal.SIGCHLD, lambda number, _frame: seen.append(number))
    try:

        async def main() -> None:
            mine = subprocess.Popen([SHELL, "-c", "read line; exit 6"], stdin=PIPE)
            process = await sh("exit 1")
            assert await within(process.wait()) == 1
            assert mine.poll() is None
            assert mine.stdin is not None
            mine.stdin.close()
            assert mine.wait(60) == 6
            await until(lambda: seen)

        run(main())
        assert signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, previous)


def test_somebody_else_reaps_the_child(run, caplog):
    async def main() -> None:
        process = await sh("read line; exit 3", stdin=PIPE)
        assert process.stdin is not None
        reaped = asyncio.get_running_loop().run_in_executor(None, os.waitpid, process.pid, 0)
        await asyncio.sleep(0.05)  # so that the thief waits first; either order is legal
        process.stdin.close()
        await within(process.stdin.wait_closed())
        # whoever wins, wait() ends, and the code is the right one or the documented 255
        assert await within(process.wait()) in (3, 255)
        try:
            await within(reaped)
        except ChildProcessError:
            pass

    run(main())


def test_stdin_is_half_of_a_real_pipe(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, log = await loop.subprocess_exec(ChildLog, SHELL, "-c", "cat /dev/stdin")
        stdin = transport.get_pipe_transport(0)
        assert stdin.get_extra_info("pipe") is not None
        stdin.write(b"by name")
        stdin.close()
        await within(log.lost)
        assert bytes(log.output[1]) == b"by name"
        transport.close()

    if not sys.platform.startswith("linux"):
        pytest.skip("/dev/stdin of a pipe is opened anew only on Linux")
    run(main())


def test_a_protocol_without_streams(run):
    class Plain(LogBase, asyncio.SubprocessProtocol):
        def process_exited(self) -> None:
            self.events.append("exited")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, log = await loop.subprocess_exec(
            Plain, SHELL, "-c", "exit", stdin=None, stdout=None, stderr=None
        )
        assert await within(log.lost) is None
        assert log.events == ["made", "exited", "lost"]
        transport.close()

    run(main())


def test_subprocess_shell_of_the_loop(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, log = await loop.subprocess_shell(ChildLog, "echo shell")
        await within(log.lost)
        assert bytes(log.output[1]) == b"shell\n"
        transport.close()
        with pytest.raises(ValueError):
            await loop.subprocess_shell(ChildLog, ["no", "list"])
        with pytest.raises(ValueError):
            await loop.subprocess_exec(ChildLog, SHELL, shell=True)

    run(main())


@pytest.mark.only_zloop("how asyncio waits for children differs by version")
@pytest.mark.parametrize("reason", ["missing", "forbidden", "no descriptor left"])
def test_without_an_exit_descriptor_a_thread_waits(run, monkeypatch, reason):
    if reason == "missing":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
        monkeypatch.delattr(select, "kqueue", raising=False)
    else:
        error = PermissionError() if reason == "forbidden" else OSError(24, "Too many open files")

        def refuse(pid: int, flags: int = 0) -> int:
            raise error

        monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)

    pids: list[int] = []

    async def main() -> None:
        processes = await asyncio.gather(*[sh(f"exit {code}", stdout=PIPE) for code in range(10)])
        pids.extend(process.pid for process in processes)
        ended = await within(asyncio.gather(*[process.wait() for process in processes]))
        assert ended == list(range(10))
        process = await sh("read line", stdin=PIPE)
        pids.append(process.pid)
        process.kill()
        assert await within(process.wait()) == -signal.SIGKILL

    run(main())
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


@pytest.mark.only_zloop("asyncio reports 255 for a child whose status Popen itself has taken")
def test_a_status_that_popen_has_taken_is_not_lost(run):
    async def main() -> None:
        process = await sh("read line", stdin=PIPE)
        popen = process._transport.get_extra_info("subprocess")
        os.kill(process.pid, signal.SIGKILL)
        assert popen.wait() == -signal.SIGKILL  # in the loop's thread, so the loop cannot be first
        assert await within(process.wait()) == -signal.SIGKILL

    run(main())


@pytest.mark.only_zloop("some versions of asyncio signal the number again, whoever has it by then")
def test_a_child_that_was_reaped_is_not_signalled(run, monkeypatch):
    async def main() -> None:
        # A grandchild keeps the pipe, and so the transport, alive after the child.
        process = await sh("sleep 60 & echo $!; exit 0", stdout=PIPE)
        assert process.stdout is not None
        grandchild = int(await within(process.stdout.readline()))
        try:
            await until(lambda: process.returncode == 0)
            signalled: list[tuple[int, int]] = []
            with monkeypatch.context() as patch:
                patch.setattr(os, "kill", lambda *what: signalled.append(what))
                process._transport.send_signal(signal.SIGTERM)
                process._transport.kill()
            assert signalled == []
        finally:
            os.kill(grandchild, signal.SIGKILL)
        assert await within(process.stdout.read()) == b""
        assert await within(process.wait()) == 0

    run(main())
