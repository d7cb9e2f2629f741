"""After fork() the child's copy of a loop is dead, the parent's is untouched, and a new one works."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from harness import run_program, within

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork"),
    pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning"),
]


def child(loop_name: str, body: str) -> str:
    """Run a program of its own: it forks, and what both halves print is the result."""
    program = textwrap.dedent(
        """
        def say(*words):
            os.write(1, (" ".join(map(str, words)) + "\\n").encode())
        def reap(pid):
            say("child's exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        signal.alarm(50)
        """
    )
    done = run_program(loop_name, program + textwrap.dedent(body))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_childs_new_loop_works_and_the_parent_goes_on(loop_name):
    output = child(
        loop_name,
        """
        async def parent():
            loop = asyncio.get_running_loop()
            left, right = socket.socketpair()
            left.setblocking(False)
            waiting = asyncio.ensure_future(loop.sock_recv(left, 10))
            await asyncio.sleep(0)
            pid = os.fork()
            if pid == 0:
                try:
                    asyncio._set_running_loop(None)
                    async def main():
                        await asyncio.sleep(0.01)
                        return "child's own loop works"
                    fresh = factory()
                    say(fresh.run_until_complete(main()))
                    fresh.close()
                finally:
                    os._exit(0)
            reap(pid)
            right.send(b"x")
            say("parent got", await waiting)
            await asyncio.sleep(0.01)
            left.close(); right.close()
        loop = factory()
        loop.run_until_complete(parent())
        loop.close()
        """,
    )
    assert output == "child's own loop works\nchild's exit 0\nparent got b'x'\n"


@pytest.mark.parametrize("held", ["loop", "nothing"])
def test_registrations_of_the_parent_survive_what_the_child_does(loop_name, held):
    """The child closes its copies; the kernel objects they share with the parent must not notice."""
    output = child(
        loop_name,
        f"""
        held = {held!r}
        loop = factory()
        left, right = socket.socketpair()
        left.setblocking(False)
        got = []
        loop.add_reader(left, lambda: (got.append(left.recv(10)), loop.stop()))
        loop.call_soon(loop.stop)
        loop.run_forever()
        pid = os.fork()
        if pid == 0:
            try:
                if held == "nothing":
                    del loop
                    import gc
                    gc.collect()
            finally:
                os._exit(0)
        reap(pid)
        right.send(b"x")
        loop.run_forever()
        say("parent got", got)
        loop.remove_reader(left)
        loop.close()
        """,
    )
    assert output == "child's exit 0\nparent got [b'x']\n"


@pytest.mark.only_zloop("asyncio's child shares the parent's epoll without a word")
@pytest.mark.parametrize("call", ["run_forever()", "run_until_complete(asyncio.sleep(0))"])
def test_the_childs_copy_refuses_to_run(loop_name, call):
    output = child(
        loop_name,
        f"""
        loop = factory()
        loop.call_soon(loop.stop)
        loop.run_forever()
        pid = os.fork()
        if pid == 0:
            try:
                loop.{call}
            except RuntimeError as exc:
                say("refused:", "fork" in str(exc))
            finally:
                os._exit(0)
        reap(pid)
        loop.call_later(0.001, loop.stop)
        loop.run_forever()
        loop.close()
        say("parent done")
        """,
    )
    assert output == "refused: True\nchild's exit 0\nparent done\n"


@pytest.mark.only_zloop("asyncio's child unregisters from the parent's epoll")
def test_the_childs_close_does_not_touch_the_parent(loop_name):
    output = child(
        loop_name,
        """
        loop = factory()
        left, right = socket.socketpair()
        left.setblocking(False)
        got = []
        loop.add_reader(left, lambda: (got.append(left.recv(10)), loop.stop()))
        pid = os.fork()
        if pid == 0:
            try:
                try:
                    loop.remove_reader(left)
                except RuntimeError:
                    pass
                loop.close()
                say("child closed its copy:", loop.is_closed())
            finally:
                os._exit(0)
        reap(pid)
        right.send(b"x")
        loop.run_forever()
        say("parent got", got)
        loop.remove_reader(left)
        loop.close()
        """,
    )
    assert output == "child closed its copy: True\nchild's exit 0\nparent got [b'x']\n"


def test_fork_from_a_thread(loop_name):
    output = child(
        loop_name,
        """
        async def parent():
            loop = asyncio.get_running_loop()
            def work():
                pid = os.fork()
                if pid == 0:
                    try:
                        fresh = factory()
                        fresh.run_until_complete(asyncio.sleep(0.001))
                        fresh.close()
                        say("child done")
                    finally:
                        os._exit(0)
                reap(pid)
            await loop.run_in_executor(None, work)
            say("parent done")
        loop = factory()
        loop.run_until_complete(parent())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        """,
    )
    assert output == "child done\nchild's exit 0\nparent done\n"


def test_multiprocessing_by_fork_inside_a_running_loop(loop_name):
    output = child(
        loop_name,
        """
        import multiprocessing
        context = multiprocessing.get_context("fork")
        def work(queue):
            asyncio._set_running_loop(None)
            fresh = factory()
            async def main():
                await asyncio.sleep(0.001)
                return 42
            queue.put(fresh.run_until_complete(main()))
            fresh.close()
        async def parent():
            queue = context.SimpleQueue()
            process = context.Process(target=work, args=[queue])
            process.start()
            say("child's answer", await asyncio.get_running_loop().run_in_executor(None, queue.get))
            process.join()
        loop = factory()
        loop.run_until_complete(parent())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        """,
    )
    assert output == "child's answer 42\n"


def test_a_multiprocessing_pipe_is_watched_without_changing_it(run):
    import multiprocessing

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = multiprocessing.Pipe()
        readable = asyncio.Event()
        blocking = os.get_blocking(left.fileno())
        loop.add_reader(left.fileno(), readable.set)
        right.send_bytes(b"message")
        await within(readable.wait())
        loop.remove_reader(left.fileno())
        assert os.get_blocking(left.fileno()) == blocking
        assert left.recv_bytes() == b"message"
        left.close()
        right.close()

    run(main())


def test_descriptors_of_the_loop_are_not_inherited(run):
    async def main() -> Any:
        with socket.socket() as sock:
            sock.setblocking(False)
            program = "import os; print(sorted(int(fd) for fd in os.listdir('/dev/fd')))"
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-Sc", program, stdout=subprocess.PIPE, close_fds=False
            )
            output, _ = await within(process.communicate())
            # 0-2, the one listdir uses, and what pytest itself left inheritable
            return [fd for fd in eval(output) if fd > 3]

    inherited = run(main())
    assert all(fd_is_inheritable(fd) for fd in inherited), inherited


def fd_is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def test_the_childs_copy_takes_work_and_the_parent_hears_nothing_of_it(loop_name):
    """What an inherited signal handler, log handler or callback of a future schedules in the child."""
    output = child(
        loop_name,
        """
        loop = factory()
        future = loop.create_future()
        future.add_done_callback(print)
        async def coroutine():
            say("never run")
        def run_in_the_child():
            say("never run")
        def split():
            if os.fork() == 0:
                loop.call_soon(run_in_the_child)
                loop.call_soon_threadsafe(run_in_the_child)
                thread = threading.Thread(target=loop.call_soon_threadsafe, args=[run_in_the_child])
                thread.start()
                thread.join()
                loop.call_later(0, run_in_the_child).cancel()
                loop.call_at(0, run_in_the_child)
                future.cancel()
                task = loop.create_task(coroutine())
                task.cancel()
                loop.stop()
                say("taken", loop.is_running(), loop.is_closed())
                os._exit(0)
            os.wait()
            say("the parent's future", future.cancelled())
        async def main():
            split()
            await asyncio.sleep(0.01)
        loop.run_until_complete(main())
        loop.close()
        """,
    )
    assert output == "taken True False\nthe parent's future False\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.run() has no signal handler")
def test_ctrl_c_of_a_pool_lets_the_workers_finish(loop_name):
    """A terminal's Ctrl-C reaches the workers, which have inherited the handler of asyncio.Runner."""
    output = child(
        loop_name,
        """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        ready, go = os.pipe(), os.pipe()
        def job():
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            return "finished"
        async def main():
            loop = asyncio.get_running_loop()
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
                future = loop.run_in_executor(pool, job)
                await asyncio.to_thread(os.read, ready[0], 1)
                for pid in [*pool._processes, os.getpid()]:
                    os.kill(pid, signal.SIGINT)
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    os.write(go[1], b"xx")
                    say("the job", await future)
                    say("one more", await loop.run_in_executor(pool, job))
        with asyncio.Runner(loop_factory=factory) as runner:
            try:
                runner.run(main())
            except KeyboardInterrupt:
                say("interrupted")
        """,
    )
    assert output in (
        "the job finished\none more finished\n",
        "the job finished\none more finished\ninterrupted\n",
    )


@pytest.mark.parametrize("way", ["sys.exit(3)", "signal.raise_signal(signal.SIGTERM)"])
def test_a_child_that_exits_from_a_callback_may_run_its_copy_to_the_end(loop_name, way):
    output = child(
        loop_name,
        f"""
        def leave(*args):
            sys.exit(3)
        signal.signal(signal.SIGTERM, leave)
        def split():
            if os.fork() == 0:
                {way}
            say("child's exit", os.waitstatus_to_exitcode(os.wait()[1]))
            loop.stop()
        async def ends():
            await asyncio.sleep(0.001)
            say("ended")
        loop = factory()
        loop.call_soon(split)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(ends())
            loop.close()
        """,
    )
    assert output == "ended\nchild's exit 3\nended\n"


@pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="a child of CPython's knows none of the tasks any more"
)
@pytest.mark.parametrize(
    ("way", "inside"),
    [
        ("sys.exit(3)", "a callback"),
        ("signal.raise_signal(signal.SIGTERM)", "a callback"),
        ("sys.exit(3)", "a task"),
    ],
)
def test_an_exit_of_a_child_that_forked_inside_a_run_is_its_exit(loop_name, way, inside):
    """The run is taken to its end as after any exit: tasks are cancelled, generators closed."""
    watches = not loop_name.startswith("asyncio")
    output = child(
        loop_name,
        f"""
        parent = os.getpid()
        async def sleeper():
            try:
                await asyncio.sleep(3600)
            finally:
                say("cancelled in the", "parent" if os.getpid() == parent else "child")
        def leave(*args):
            sys.exit(3)
        signal.signal(signal.SIGTERM, leave)
        def split():
            if os.fork() == 0:
                {way}
            say("child's exit", os.waitstatus_to_exitcode(os.wait()[1]))
        async def main():
            loop = asyncio.get_running_loop()
            left, right = socket.socketpair()
            left.setblocking(False)
            # asyncio's child takes what the parent watches out of the epoll that they share.
            receives = asyncio.ensure_future(loop.sock_recv(left, 20) if {watches} else asyncio.sleep(0))
            sleeps = asyncio.ensure_future(sleeper())
            await asyncio.sleep(0)
            if {inside == "a task"}:
                split()
            else:
                loop.call_soon(split)
                await asyncio.sleep(0)
            right.send(b"for the parent")
            say("received", await receives)
        loop = factory()
        try:
            loop.run_until_complete(main())
        finally:
            try:
                asyncio.runners._cancel_all_tasks(loop)
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                loop.close()
        """,
    )
    received = b"for the parent" if watches else None
    assert output == (
        f"cancelled in the child\nchild's exit 3\nreceived {received}\ncancelled in the parent\n"
    )


@pytest.mark.only_zloop("asyncio's child changes what the parent watches, and runs what it queued")
def test_the_childs_copy_touches_nothing_of_the_kernels(loop_name):
    output = child(
        loop_name,
        """
        loop = factory()
        left, right = socket.socketpair()
        left.setblocking(False)
        ran = []
        def split():
            if os.fork() == 0:
                calls = {
                    "add_reader": lambda: loop.add_reader(left, print),
                    "sock_recv": lambda: loop.sock_recv(left, 10).send(None),
                    "run_forever": lambda: loop.run_forever(),
                }
                for name, call in calls.items():
                    try:
                        call()
                        say(name, "was taken")
                    except RuntimeError as exc:
                        assert "fork" in str(exc), exc
        loop.call_soon(split)
        loop.call_soon(lambda: ran.append(os.getpid()))
        loop.call_soon(loop.stop)
        try:
            loop.run_forever()
        except RuntimeError as exc:
            # The child came back from the callback: the rest of the turn is the parent's.
            say("child left", "fork" in str(exc), ran)
            loop.close()
            os._exit(0)
        os.wait()
        say("parent ran", ran == [os.getpid()])
        loop.close()
        """,
    )
    assert output == "child left True []\nparent ran True\n"


@pytest.mark.parametrize(
    "wakeup",
    [
        pytest.param(
            "loop's",
            marks=pytest.mark.asyncio_bug(
                "its child signals the parent's loop", when=sys.version_info < (3, 12)
            ),
        ),
        "program's",
    ],
)
def test_signals_of_the_child_are_not_the_parents(loop_name, wakeup):
    """The handler stays in the child, and with it the descriptor by which it would tell the parent's loop."""
    output = child(
        loop_name,
        f"""
        loop = factory()
        got = []
        loop.add_signal_handler(signal.SIGUSR1, got.append, "signal")
        left, right = socket.socketpair()
        left.setblocking(False); right.setblocking(False)
        if {wakeup!r} == "program's":
            loops = signal.set_wakeup_fd(right.fileno())
        pid = os.fork()
        if pid == 0:
            try:
                os.kill(os.getpid(), signal.SIGUSR1)
                # asyncio takes away any descriptor since 3.12.
                fd = signal.set_wakeup_fd(-1)
                say("child's descriptor", "the program's" if fd == right.fileno() else fd)
            finally:
                os._exit(0)
        reap(pid)
        # What the child wrote is there by now: a few looks at the descriptors would find it.
        async def look():
            for _ in range(5):
                await asyncio.sleep(0)
        loop.run_until_complete(look())
        say("parent got", got)
        if {wakeup!r} == "program's":
            assert signal.set_wakeup_fd(loops) == right.fileno()
        os.kill(os.getpid(), signal.SIGUSR1)
        loop.run_until_complete(look())
        say("parent got", got)
        loop.close()
        """,
    )
    kept = wakeup == "program's" and sys.version_info < (3, 12)
    assert output.splitlines() == [
        "child's descriptor " + ("the program's" if kept else "-1"),
        "child's exit 0",
        "parent got []",
        "parent got ['signal']",
    ]


@pytest.mark.parametrize("ends", ["pass", "transport.get_write_buffer_size()", "transport.write(b'child')"])
def test_what_was_written_before_the_fork_leaves_once(loop_name, ends):
    output = child(
        loop_name,
        f"""
        async def parent():
            loop = asyncio.get_running_loop()
            ours, theirs = socket.socketpair()
            theirs.settimeout(20)
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            forked = loop.create_future()
            def write():
                transport.write(b"once")
                pid = os.fork()
                if pid == 0:
                    {ends}
                    # Back to a loop that runs no further here.
                    loop.stop()
                    return
                reap(pid)
                forked.set_result(None)
            loop.call_soon(write)
            await forked
            transport.close()
            await asyncio.sleep(0)
            received = b""
            while data := theirs.recv(100):
                received += data
            say("parent's bytes", received.count(b"once"), "child's", received.count(b"child"))
            theirs.close()
        before = os.getpid()
        loop = factory()
        try:
            loop.run_until_complete(parent())
        except BaseException:
            if os.getpid() == before:
                raise
        finally:
            if os.getpid() != before:
                os._exit(0)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        """,
    )
    childs = 1 if "child" in ends else 0
    assert output == f"child's exit 0\nparent's bytes 1 child's {childs}\n"
