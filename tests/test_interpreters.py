"""Subinterpreters, loops in daemon threads at exit, and other ends of an interpreter."""

from __future__ import annotations

import functools
import sys

import pytest
from harness import run_program

#: Under the limit of a test, so that a hang shows what the program said.
program = functools.partial(run_program, timeout=40)

INTERPRETERS = """
try:
    import _interpreters
except ImportError:
    import _xxsubinterpreters as _interpreters
import textwrap
if sys.version_info >= (3, 13):
    def create(): return _interpreters.create("legacy")
else:
    def create():
        try:
            return _interpreters.create(isolated=False)
        except TypeError:
            return _interpreters.create()
def run_in(ident, source):
    prefix = "import sys; sys.path[:] = " + repr(sys.path) + chr(10)
    if hasattr(_interpreters, "exec"):
        problem = _interpreters.exec(ident, prefix + source)
        if problem is not None:
            raise RuntimeError(problem.formatted)
    else:
        _interpreters.run_string(ident, prefix + source)
WORK = textwrap.dedent('''
import asyncio, importlib, os
module, _, attribute = %r.partition(":")
loop = getattr(importlib.import_module(module), attribute)()
async def main():
    await asyncio.sleep(0.001)
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    server.close()
loop.run_until_complete(main())
loop.run_until_complete(asyncio.sleep(0))
loop.close()
os.write(1, b"interpreter done\\\\n")
''') % (module + ":" + attribute,)
"""


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="asyncio's C module refuses subinterpreters before 3.12"
)
def test_a_loop_in_a_subinterpreter(loop_name):
    done = program(
        loop_name,
        INTERPRETERS
        + """
for _ in range(3):
    ident = create()
    run_in(ident, WORK)
    _interpreters.destroy(ident)
loop = factory()
loop.run_until_complete(asyncio.sleep(0.001))
loop.close()
print("main done")
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "interpreter done\n" * 3 + "main done\n"


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="asyncio's C module refuses subinterpreters before 3.12"
)
def test_both_interpreters_have_loops_and_one_spawns(loop_name):
    done = program(
        loop_name,
        INTERPRETERS
        + """
loop = factory()
ident = create()
async def main():
    run_in(ident, WORK.replace("loop.close()", "import builtins; builtins.kept = loop"))
    for _ in range(3):
        process = await asyncio.create_subprocess_exec("/bin/sh", "-c", "exit 5")
        print("child", await process.wait())
asyncio.run(main()) if False else loop.run_until_complete(main())
loop.close()
_interpreters.destroy(ident)
print("main done")
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "interpreter done\n" + "child 5\n" * 3 + "main done\n"


@pytest.mark.parametrize("state", ["idle", "busy", "timers", "streams"])
def test_a_daemon_thread_at_exit(loop_name, state):
    done = program(
        loop_name,
        f"""
state = {state!r}
ready = threading.Event()
async def echo(reader, writer):
    while data := await reader.read(100):
        writer.write(data)
async def main():
    loop = asyncio.get_running_loop()
    if state == "busy":
        def spin():
            loop.call_soon(spin)
        loop.call_soon(spin)
    elif state == "timers":
        async def tick():
            while True:
                await asyncio.sleep(0.0005)
        kept = [loop.create_task(tick()) for _ in range(20)]
    elif state == "streams":
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        async def ping():
            while True:
                writer.write(b"x")
                await reader.read(1)
        kept = [loop.create_task(ping()), server]
    await asyncio.sleep(0.01)
    ready.set()
    await loop.create_future()
def work():
    loop = factory()
    loop.run_until_complete(main())
threading.Thread(target=work, daemon=True).start()
ready.wait(60)
print("main thread leaves")
""",
    )
    assert done.stdout == "main thread leaves\n"
    assert done.returncode == 0, done.stderr
    assert "Fatal" not in done.stderr


def test_an_open_loop_at_exit(loop_name):
    done = program(
        loop_name,
        """
loop = factory()
async def main():
    global server, kept
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    kept = await asyncio.open_connection(*server.sockets[0].getsockname())
    loop.call_later(3600, print, "never")
    loop.call_soon(print, "never")
    await asyncio.sleep(0.001)
    return kept
kept_too = loop.run_until_complete(main())
print("leaves with everything open")
""",
    )
    assert done.returncode == 0, done.stderr
    assert "Fatal" not in done.stderr
    assert done.stdout.endswith("leaves with everything open\n")


def test_sys_exit_inside_a_callback_leaves_the_process(loop_name):
    done = program(
        loop_name,
        """
loop = factory()
loop.call_soon(sys.exit, 3)
loop.run_forever()
""",
    )
    assert done.returncode == 3, done.stderr


def test_a_loop_made_at_exit(loop_name):
    done = program(
        loop_name,
        """
import atexit
def last():
    loop = factory()
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    print("last loop done")
atexit.register(last)
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "last loop done\n"


def test_the_module_can_be_imported_again(loop_name):
    if loop_name.startswith("asyncio"):
        pytest.skip("asyncio itself cannot be imported twice")
    done = program(
        loop_name,
        """
for _ in range(3):
    loop = factory()
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        del sys.modules[name]
print("imported three times")
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "imported three times\n"
