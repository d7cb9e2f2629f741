"""The page of results: taken only from whole runs that were as expected."""

from __future__ import annotations

from pathlib import Path

import pytest
import render
from harness import verdict
from harness.expectations import Difference
from harness.results import CaseResult, ModuleResult, RunResult

FACTS = {"version": "3.13.0", "tag": "313", "system": "linux-x86_64"}


def store(folder: Path, outcome: str, *, partial: bool = False) -> None:
    tests = {"m.T.a": CaseResult("passed", 0.0, 1), "m.T.b": CaseResult(outcome, 0.0, 0)}
    control = {name: CaseResult("passed", 0.0, 0) for name in tests}
    run = RunResult("cpython", "3.13.0", render.LOOP, FACTS, "", partial=partial)
    run.modules = {"m": ModuleResult(tests, 1, 0.0)}
    reference = RunResult("cpython", "3.13.0", "asyncio:SelectorEventLoop", FACTS, "")
    reference.modules = {"m": ModuleResult(control, 0, 0.0)}
    differences = [Difference("cpython", ("m.T.b",), "the poller is\nanother", outcome="failed")]
    run.verdict = verdict.judge(run, reference, differences).as_json()
    run.save(folder / run.file_name)


def test_the_table_and_the_reasons(tmp_path: Path) -> None:
    store(tmp_path, "failed")
    text = render.page(render.load(tmp_path))
    assert "| cpython | 3.13.0 | 3.13.0 | 1 | 1 | 0 | 1 | 0 |" in text
    assert "**cpython**: the poller is another\n\n- `m.T.b` (3.13)\n" in text
    assert "Windows only" in text


@pytest.mark.parametrize("partial", [False, True], ids=["unexpected", "partial"])
def test_what_cannot_be_published(tmp_path: Path, partial: bool) -> None:
    store(tmp_path, "failed" if partial else "crash", partial=partial)
    with pytest.raises(render.RenderError):
        render.load(tmp_path)
