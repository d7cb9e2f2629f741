"""Run one file of pytest tests on the loop under test: `python -m pytest -p conformance_child.pytest_plugin`.

Importing the plugin installs the loop: pytest imports `-p` plugins before any conftest, so the code under
test and its fixtures find asyncio's names already rebound.
"""

from __future__ import annotations

from typing import Any

import pytest

from conformance_child import inherited
from conformance_child import job as jobs
from conformance_child import subject as subjects
from conformance_child.reporter import Reporter, stable_name

inherited.restore_signals()
_job = jobs.load()
_subject = subjects.install(_job.loop)
_reporter = Reporter(_job, _subject)


class _Test:
    """What the phases of the running test have said so far."""

    outcome = "passed"
    details: tuple[str, ...] = ()


_current = _Test()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = [item for item in items if _reporter.wanted(stable_name(item.nodeid))]
    _reporter.collected([stable_name(item.nodeid) for item in wanted])
    items[:] = [item for item in wanted if not _reporter.already_run(stable_name(item.nodeid))]


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if not report.passed:
        _reporter.group(f"setUpModule ({report.nodeid})", report.outcome, _text(report))


def pytest_runtest_logstart(nodeid: str) -> None:
    _current.outcome, _current.details = "passed", ()
    _reporter.start(stable_name(nodeid))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.passed:
        return
    if hasattr(report, "wasxfail"):
        outcome = "xfailed"
    elif report.skipped:
        outcome = "skipped"
    else:
        outcome = "failed" if report.when == "call" else "error"
    if _current.outcome in ("passed", "skipped", "xfailed"):
        _current.outcome = outcome
    _current.details += (_text(report),)


def pytest_runtest_logfinish(nodeid: str) -> None:
    _reporter.end(stable_name(nodeid), _current.outcome, "\n".join(_current.details))


def pytest_sessionfinish() -> None:
    _reporter.done()


def _text(report: Any) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[-1])
    return str(report.longrepr)
