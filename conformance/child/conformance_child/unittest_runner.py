"""Run one module of unittest tests on the loop under test: `python -m conformance_child.unittest_runner`."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import unittest
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from conformance_child import inherited
from conformance_child import job as jobs
from conformance_child import subject as subjects
from conformance_child.reporter import Reporter, stable_name

ErrorTriple = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

# CPython's tests ask for "resources"; all are granted but those that leave the machine.
RESOURCES = ["audio", "cpu", "decimal", "largefile", "subprocess", "walltime"]


class Result(unittest.TestResult):
    """Turns unittest's calls into events. A test whose sub-tests fail ends once, with all their failures."""

    def __init__(self, reporter: Reporter, prefix: str) -> None:
        super().__init__()
        self._reporter = reporter
        self._prefix = prefix
        self._running: unittest.TestCase | None = None
        self._outcome = "passed"
        self._details: list[str] = []

    def name(self, test: unittest.TestCase) -> str:
        return stable_name(test.id().removeprefix(self._prefix))

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._begin(test)

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self._running = None
        self._reporter.end(self.name(test), self._outcome, "\n".join(self._details))

    def addError(self, test: unittest.TestCase, err: ErrorTriple) -> None:
        self._not_passed(test, "error", _text(err))

    def addFailure(self, test: unittest.TestCase, err: ErrorTriple) -> None:
        self._not_passed(test, "failed", _text(err))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._not_passed(test, "skipped", reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: ErrorTriple) -> None:
        self._not_passed(test, "xfailed", _text(err))

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._not_passed(test, "failed", "the suite marks this test as an expected failure, and it passed")

    def addSubTest(
        self, test: unittest.TestCase, subtest: unittest.TestCase, err: ErrorTriple | None
    ) -> None:
        if err is not None:
            failed = err[0] is not None and issubclass(err[0], test.failureException)
            self._not_passed(test, "failed" if failed else "error", f"{subtest}\n{_text(err)}")

    def _begin(self, test: unittest.TestCase) -> None:
        self._running = test
        self._outcome = "passed"
        self._details = []
        self._reporter.start(self.name(test))

    def _not_passed(self, test: Any, outcome: str, detail: str) -> None:
        if not isinstance(test, unittest.TestCase):
            self._reporter.group(stable_name(test.id()), outcome, detail)
            return
        # Python 3.12.1 alone stops a decorated skip that it never started.
        if self._running is None:
            self._begin(test)
        # A sub-test's skip does not undo another's failure.
        if self._outcome in ("passed", "skipped", "xfailed"):
            self._outcome = outcome
        self._details.append(detail)


def _text(err: ErrorTriple) -> str:
    return "".join(traceback.format_exception(*err))


def _flatten(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from _flatten(item)
        else:
            yield item


def main() -> None:
    inherited.restore_signals()
    job = jobs.load()
    subject = subjects.install(job.loop)
    reporter = Reporter(job, subject)
    if job.options.get("cpython"):
        importlib.import_module("test.support").use_resources = RESOURCES  # type: ignore[attr-defined]
    sys.path[:0] = job.options.get("path", [])
    result = Result(reporter, job.options.get("prefix", ""))
    loader = unittest.TestLoader()
    try:
        loaded = loader.loadTestsFromName(job.target)
    except unittest.SkipTest as skip:
        reporter.collected([])
        reporter.group(f"setUpModule ({job.target})", "skipped", str(skip))
    else:
        tests = {result.name(test): test for test in _flatten(loaded) if reporter.wanted(result.name(test))}
        reporter.collected(list(tests))
        remaining = [test for name, test in tests.items() if not reporter.already_run(name)]
        unittest.TestSuite(remaining).run(result)
    reporter.done()
    sys.stdout.flush()
    sys.stderr.flush()


if __name__ == "__main__":
    # Tests import and pickle by module name; keep the folder of this file out of their way.
    sys.path[0] = os.getcwd()
    main()
