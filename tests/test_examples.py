"""Every example runs, ends by itself, quickly, and prints what it promises."""

from __future__ import annotations

import importlib.util
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from harness import child_env

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

EXPECTED = {
    "datagrams.py": "second got ball 1\nfirst got ball 2\nsecond got ball 3\nfirst got ball 4\n",
    "echo_server.py": "echoed: message 1\nechoed: message 2\nechoed: message 3\n",
    "hello.py": "hello from zloop\n",
    "http_client.py": "HTTP/1.1 200 OK\nyou asked with GET for /some/path\n",
    "subprocesses.py": "it said: from a child\ngot one\ngot two\nexit code 0\nended by signal 15\n",
    "threads.py": "computed in a thread: 499500\nmessage 1\nmessage 2\nmessage 3\n",
    "timers.py": (
        "quick is done\na timer fired\nslow is done\n"
        "in the order they were asked for: slow, quick\nthe last one took too long\n"
    ),
    "tls_echo.py": "protocol: TLSv1.3\nanswer: WHISPER\n",
    "uvicorn_app.py": "/hello served on zloop\nstopped\n",
}


def test_every_example_is_listed():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example(name: str):
    text = (EXAMPLES / name).read_text()
    for module in re.findall(r"^import (\w+)", text, re.MULTILINE):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", str(EXAMPLES / name)],
        env={**child_env(), "PYTHONWARNINGS": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == EXPECTED[name], done.stderr
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Nobody wants to wait for an example; what else the machine does is not its fault.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
