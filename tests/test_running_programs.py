"""`python -m zloop`: a program sees what `python` would show it, and its loops are zloop's."""

from __future__ import annotations

import sys
from pathlib import Path

import harness
import pytest

REPORT_LOOPS = """
import asyncio

async def kind():
    return type(asyncio.get_running_loop())

kinds = [asyncio.run(kind())]
if hasattr(asyncio, "Runner"):
    with asyncio.Runner() as runner:
        kinds.append(runner.run(kind()))
loop = asyncio.new_event_loop()
kinds.append(type(loop))
loop.close()
print({kind.__module__.partition(".")[0] for kind in kinds})
"""

REPORT_SURROUNDINGS = """
import sys
print([__name__, sys.modules["__main__"].__dict__ is globals(), sys.argv[1:], sys.path[0]])
"""


def output(*arguments: object, cwd: Path | None = None) -> str:
    result = harness.run_python(*arguments, cwd=cwd)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


@pytest.fixture
def write(tmp_path: Path):
    def write(source: str, name: str = "program.py") -> Path:
        path = tmp_path / name
        path.write_text(source)
        return path

    return write


@pytest.mark.parametrize("flags", [[], ["-W", "error"]], ids=["plain", "warnings-are-errors"])
def test_every_maker_of_loops_makes_zloop_loops(write, flags):
    assert output(*flags, "-m", "zloop", write(REPORT_LOOPS)) == "{'zloop'}"


#: Makes this Python one without policies, as 3.16 is.
WITHOUT_POLICIES = """
import asyncio
from asyncio import events, unix_events

asyncio.set_event_loop = events.set_event_loop = lambda loop: None
for module in (asyncio, events, unix_events):
    for name in [name for name in vars(module) if "policy" in name.lower()]:
        delattr(module, name)
"""


def test_loops_without_policies(write):
    without = WITHOUT_POLICIES + "from zloop.__main__ import main; main()"
    assert output("-c", without, write(REPORT_LOOPS)) == "{'zloop'}"


def test_the_package_without_policies(write):
    """What stands on policies is absent, and says why; the rest works."""
    program = """
import zloop
for name in ("install", "EventLoopPolicy", "no_such_name"):
    assert not hasattr(zloop, name) and name not in zloop.__all__
    try:
        getattr(zloop, name)
    except AttributeError as exc:
        print(exc)
async def kind():
    return type(asyncio.get_running_loop())
assert zloop.run(kind()) is zloop.Loop
"""
    absent = "module 'zloop' has no attribute"
    reason = (
        ": this Python has no event loop policies; use asyncio.run(main(), loop_factory=zloop.new_event_loop)"
        " or python -m zloop"
    )
    assert output("-c", WITHOUT_POLICIES + program).splitlines() == [
        f"{absent} 'install'{reason}",
        f"{absent} 'EventLoopPolicy'{reason}",
        f"{absent} 'no_such_name'",
    ]


def test_a_module_runs_on_zloop(write, tmp_path):
    write(REPORT_LOOPS, "some_module.py")
    assert output("-m", "zloop", "-m", "some_module", cwd=tmp_path) == "{'zloop'}"


def test_a_file_sees_what_python_shows_it(write, tmp_path):
    program = write(REPORT_SURROUNDINGS)
    linked = tmp_path / "elsewhere" / "link.py"
    linked.parent.mkdir()
    linked.symlink_to(program)
    for path in (program, linked):
        assert output("-m", "zloop", path, "a", "-b", "--help") == output(path, "a", "-b", "--help")


def test_a_module_sees_what_python_shows_it(write, tmp_path):
    write(REPORT_SURROUNDINGS, "some_module.py")
    plain = output("-m", "some_module", "a", "-m", cwd=tmp_path)
    assert output("-m", "zloop", "-m", "some_module", "a", "-m", cwd=tmp_path) == plain


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no -P")
def test_a_safe_path_stays_safe(write, tmp_path):
    program = write("import sys; print(sys.path)")
    assert output("-P", "-m", "zloop", program) == output("-P", program)


def test_functions_of_the_program_reach_spawned_processes(write):
    program = write(
        """
import multiprocessing

def double(value):
    return value * 2

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(double, [1, 2]))
        pool.close()
        pool.join()
"""
    )
    assert output("-m", "zloop", program) == "[2, 4]"


def test_the_exit_status_is_the_programs(write):
    assert harness.run_python("-m", "zloop", write("raise SystemExit(7)")).returncode == 7
    failed = harness.run_python("-m", "zloop", write("1 / 0"))
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr


def test_a_missing_file_is_reported_as_python_does(tmp_path):
    result = harness.run_python("-m", "zloop", tmp_path / "missing.py")
    assert result.returncode == 2
    assert "can't open file" in result.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["-m"], ["--unknown"]], ids=["none", "no-module", "unknown-option"]
)
def test_a_wrong_command_line_shows_the_usage(arguments):
    result = harness.run_python("-m", "zloop", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage:")


def test_help_and_version():
    import zloop

    assert output("-m", "zloop", "--help").startswith("usage:")
    assert output("-m", "zloop", "--version").startswith(f"zloop {zloop.__version__} on cpython")


def test_the_default_is_left_alone_unless_asked(write):
    assert output(write("import zloop\n" + REPORT_LOOPS)) == "{'asyncio'}"
