"""System calls a request, counted by strace on a server that is already serving.

strace makes each call many times slower, which changes how much work a loop finds per turn: calls that a turn
makes once (epoll_wait) are fewer than those of an unwatched server; the other counts are exact.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.harness import Sample, SampleFailed
from bench.serving import Running

ATTACH_TIMEOUT_S = 10.0
ROW = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$")


def per_request(server: Running, requests: int, **load_options: object) -> Sample:
    if not shutil.which("strace"):
        raise SampleFailed("strace is not installed")
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        summary = Path(folder, "summary")
        command = ["strace", "-c", "-f", "-o", str(summary), "-p", str(server.pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert tracer.stderr is not None
            # The first line is "Process N attached": before it, calls would go uncounted.
            if "attached" not in tracer.stderr.readline():
                raise SampleFailed("strace cannot attach here")
            server.load("echo", count=requests, warmup_ms=0, **load_options)
        finally:
            tracer.terminate()
            tracer.communicate(timeout=ATTACH_TIMEOUT_S)
        return counts(summary.read_text(encoding="ascii", errors="replace"), requests)


def counts(summary: str, requests: int) -> Sample:
    """Calls a request by name, and their total. Fewer than one call in a hundred requests is start-up."""
    found = {
        match[2]: int(match[1]) / requests for line in summary.splitlines() if (match := ROW.match(line))
    }
    found.pop("total", None)
    if not found:
        raise SampleFailed("strace counted nothing")
    steady = {name: value for name, value in found.items() if value >= 0.01}
    return {"total": sum(steady.values()), **steady}
