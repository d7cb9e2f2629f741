"""Run one module of a suite in a process of its own, and learn everything about it even if the process dies.

The child appends events to a file. A crash therefore leaves a record of the test that was running; that test
is reported as crashed, and a new process goes on with the tests after it. A process that says nothing for too
long gets SIGABRT, so that faulthandler writes where each thread is, and is then killed with its descendants.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import hosts
from harness.results import CaseResult, ModuleResult
from harness.suites import Start

_stopping = threading.Event()

POLL_S = 0.1
ABORT_GRACE_S = 10.0
# More deaths than this in one module mean that it cannot be run; the tests that are left say so.
PROCESS_COUNT_MAX = 40
LOG_TAIL_CHARS = 6000
_C_STACK = re.compile(r"Current thread's C stack trace.*?(\n\n|\Z)", re.DOTALL)
# After a few hangs a module gets less time for each further one, or a broken loop would take hours to judge.
PATIENT_TIMEOUT_COUNT = 3
IMPATIENCE = 3
# pytest: all passed, some failed, interrupted by errors in collecting, nothing collected.
EXIT_STATUSES_FINE = {False: (0,), True: (0, 1, 2, 5)}


@dataclass
class Attempt:
    """What one process of the module said."""

    collected: list[str] | None = None
    ended: dict[str, CaseResult] = field(default_factory=dict)
    groups: list[dict[str, str]] = field(default_factory=list)
    running: str | None = None
    done: bool = False
    loops: int = 0
    timed_out: bool = False
    status: int = 0

    def take(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "collected":
                self.collected = event["tests"]
            case "start":
                self.running = event["test"]
            case "end":
                self.running = None
                self.loops += event["loops"]
                self.ended[event["test"]] = CaseResult(
                    event["outcome"], event["seconds"], event["loops"], event["detail"]
                )
            case "group":
                self.groups.append(event)
            case "done":
                self.done = True
                # Includes loops made between tests, by fixtures that serve several.
                self.loops = event["loops"]


@dataclass(frozen=True)
class Order:
    """One module to run, with all that its processes need."""

    module: str
    target: str
    loop: str
    start: Start
    env: dict[str, str]
    limit_s: float
    log: Path
    only: list[str] | None
    exclude: list[str]


def run_module(order: Order) -> ModuleResult:
    began = time.monotonic()
    order.log.parent.mkdir(parents=True, exist_ok=True)
    order.log.unlink(missing_ok=True)
    tests: dict[str, CaseResult] = {}
    loops = 0
    attempt = Attempt()
    for _ in range(PROCESS_COUNT_MAX):
        timeouts = sum(test.outcome == "timeout" for test in tests.values())
        limit_s = order.limit_s / (IMPATIENCE if timeouts >= PATIENT_TIMEOUT_COUNT else 1)
        attempt = _run_process(order, list(tests), limit_s)
        loops += attempt.loops
        tests.update(attempt.ended)
        if attempt.done or attempt.collected is None or _stopping.is_set():
            break
        victim = attempt.running or next((test for test in attempt.collected if test not in tests), None)
        if victim is None:
            break
        tests[victim] = _death(attempt, order.log)
    tests.update(_left_over(order.module, attempt, tests, order.log, order.start.target_is_argument))
    return ModuleResult(tests, loops, round(time.monotonic() - began, 1))


def stop() -> None:
    """End all running modules; nothing that is still to come starts. For when the run is interrupted."""
    _stopping.set()


def _left_over(
    module: str, attempt: Attempt, tests: dict[str, CaseResult], log: Path, is_pytest: bool
) -> dict[str, CaseResult]:
    """Results for what no test of its own stands for: set-up of groups, loading, the process's end."""
    found: dict[str, CaseResult] = {}
    for group in attempt.groups:
        if group["outcome"] != "skipped":
            found[f"{module}::{group['name']}"] = CaseResult(group["outcome"], 0, 0, group["detail"])
    skips = [group for group in attempt.groups if group["outcome"] == "skipped"]
    for test in attempt.collected or []:
        if test in tests:
            continue
        reason = next((g["detail"] for g in skips if _belongs(test, g["name"])), None)
        if reason is not None:
            found[test] = CaseResult("skipped", 0, 0, reason)
        else:
            found[test] = CaseResult(
                "not run", 0, 0, "its group's set-up failed, or the module died too often"
            )
    if attempt.collected is None and not attempt.groups:
        found[f"{module}::<loading>"] = _death(attempt, log)
    elif attempt.done and (attempt.timed_out or attempt.status not in EXIT_STATUSES_FINE[is_pytest]):
        found[f"{module}::<exit>"] = _death(attempt, log)
    return found


def _belongs(test: str, group: str) -> bool:
    """Whether a group such as `setUpClass (test.test_asyncio.test_x.Class)` contains the test."""
    kind, _, inner = group.partition(" (")
    return kind == "setUpModule" or test.rpartition(".")[0] in inner.rstrip(")")


def _death(attempt: Attempt, log: Path) -> CaseResult:
    if attempt.timed_out:
        outcome, text = "timeout", "nothing happened for too long; killed"
    elif attempt.status < 0:
        outcome, text = "crash", f"killed by {signal.Signals(-attempt.status).name}"
    else:
        outcome, text = "crash", f"the process ended with status {attempt.status}"
    return CaseResult(outcome, 0, 0, f"{text}\n{_tail(log)}")


def _tail(log: Path) -> str:
    """The end of the log, without the C stack that Python 3.14 prints after its own stacks."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return _C_STACK.sub("", text)[-LOG_TAIL_CHARS:]


def _run_process(order: Order, skip: list[str], limit_s: float) -> Attempt:
    with tempfile.TemporaryDirectory(prefix="conformance-") as scratch:
        events = Path(scratch, "events")
        events.touch()
        job = {
            "loop": order.loop,
            "events": str(events),
            "target": order.target,
            "skip": skip,
            "only": order.only,
            "exclude": order.exclude,
            "options": order.start.options,
        }
        job_file = Path(scratch, "job.json")
        job_file.write_text(json.dumps(job))
        directory = order.start.directory
        if directory is None:
            directory = Path(scratch, "work")
            directory.mkdir()
        command = [
            *hosts.command_prefix(),
            *order.start.command,
            *([order.target] if order.start.target_is_argument else []),
        ]
        env = {**order.env, "ZLOOP_CONFORMANCE_JOB": str(job_file), "TMPDIR": _temporary(scratch)}
        with open(order.log, "ab") as log:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A session of its own: what the tests leave running can be found and ended.
                start_new_session=True,
            )
            with _ended(process):
                return _watch(process, events, limit_s)


def _temporary(scratch: str) -> str:
    """A folder for the tests' temporary files, with a short path: Unix socket addresses hold 107 bytes."""
    path = Path(scratch, "t")
    path.mkdir()
    return str(path)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _watch(process: subprocess.Popen[bytes], events: Path, limit_s: float) -> Attempt:
    attempt = Attempt()
    deadline = time.monotonic() + limit_s
    with open(events, "rb") as file:
        while True:
            try:
                process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                pass
            exited = process.returncode is not None
            for event in _whole_lines(file):
                attempt.take(event)
                deadline = time.monotonic() + limit_s
            if exited or _stopping.is_set():
                attempt.status = process.returncode or 0
                return attempt
            if time.monotonic() > deadline:
                attempt.timed_out = True
                _abort(process)
                return attempt


def _abort(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGABRT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(ABORT_GRACE_S)


def _whole_lines(file: Any) -> Iterator[dict[str, Any]]:
    while True:
        position = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(position)
            return
        yield json.loads(line)
