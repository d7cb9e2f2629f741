"""Tell the runner what happens, as it happens, so that a crash leaves a record of the test it came in.

Each event is one line, written with one `write` to a file opened for appending: nothing is buffered in a
process that may die at any moment.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import time

from conformance_child.job import Job
from conformance_child.subject import Subject

DETAIL_CHARS_MAX = 6000

# An object's default repr in a parametrised test's name differs from run to run.
_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


class Reporter:
    def __init__(self, job: Job, subject: Subject | None) -> None:
        self._job = job
        self._subject = subject
        self._fd = os.open(job.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        # A test that forks leaves a copy of this object in a child whose news is not the runner's business.
        self._pid = os.getpid()
        self._started_at_s = 0.0
        self._loops_before = 0

    def wanted(self, test_id: str) -> bool:
        """Whether the job asks for this test; tests that an earlier process ran are not asked for."""
        job = self._job
        if any(fnmatch.fnmatchcase(test_id, pattern) for pattern in job.exclude):
            return False
        if job.only is None:
            return True
        return any(fnmatch.fnmatchcase(test_id, pattern) for pattern in job.only)

    def already_run(self, test_id: str) -> bool:
        return test_id in self._job.skip

    def collected(self, test_ids: list[str]) -> None:
        self._emit(event="collected", tests=test_ids)

    def start(self, test_id: str) -> None:
        self._started_at_s = time.monotonic()
        self._loops_before = self._loops()
        self._emit(event="start", test=test_id)

    def end(self, test_id: str, outcome: str, detail: str = "") -> None:
        self._emit(
            event="end",
            test=test_id,
            outcome=outcome,
            seconds=round(time.monotonic() - self._started_at_s, 3),
            loops=self._loops() - self._loops_before,
            detail=detail[-DETAIL_CHARS_MAX:],
        )

    def group(self, name: str, outcome: str, detail: str) -> None:
        """A class's or a module's set-up or tear-down did not succeed; tests in it may not have run."""
        self._emit(event="group", name=name, outcome=outcome, detail=detail[-DETAIL_CHARS_MAX:])

    def done(self) -> None:
        self._emit(event="done", loops=self._loops())

    def _loops(self) -> int:
        return self._subject.made_count if self._subject else 0

    def _emit(self, **event: object) -> None:
        if os.getpid() == self._pid:
            os.write(self._fd, json.dumps(event).encode() + b"\n")


def stable_name(test_id: str) -> str:
    return _ADDRESS.sub("0x", test_id)
