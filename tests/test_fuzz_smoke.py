"""The differential fuzzer runs, finds nothing in some scenarios, and would find something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from harness import child_env, run_python

FUZZER = Path(__file__).resolve().parent.parent / "fuzz" / "differential.py"


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python("-W", "ignore", FUZZER, *arguments)


def test_some_scenarios_without_a_difference(loop_name):
    loops = f"asyncio,{loop_name.partition(':')[0]}"
    # The same scenarios each time; new ones are for the long run.
    done = fuzz("--seed", "20", "--scenarios", "50", "--loops", loops)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "50 scenarios, 0 with differences"


def test_a_seed_is_one_scenario_and_always_the_same():
    first, second = fuzz("--seed", "7", "--loops", "asyncio"), fuzz("--seed", "7", "--loops", "asyncio")
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout == second.stdout
    assert first.stdout.splitlines()[0] == "seed 7"
    assert first.stdout.splitlines()[-1] == "1 scenarios, 0 with differences"


BROKEN_LOOPS = """
import asyncio

class Transport(asyncio.selector_events._SelectorSocketTransport):
    def write(self, data):
        super().write(data[:-1] if len(data) == 4096 else data)

def new_event_loop():
    class Loop(asyncio.SelectorEventLoop):
        def _make_socket_transport(self, sock, protocol, waiter=None, *, extra=None, server=None):
            return Transport(self, sock, protocol, waiter, extra, server)
    return Loop()
"""


def test_a_loop_that_loses_a_byte_is_found(tmp_path, monkeypatch):
    (tmp_path / "losing_loop.py").write_text(BROKEN_LOOPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    done = fuzz("--scenarios", "100", "--seed", "1", "--loops", "asyncio,losing_loop")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "DIFFERENCE, again by --seed" in done.stdout


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ten_minutes_without_a_difference(loop_name):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(FUZZER), "--seconds", "600", "--loops", f"asyncio,{loop_name}"],
        env=child_env(),
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
