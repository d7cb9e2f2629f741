"""A run against its control and the known differences: strict in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import expectations, verdict
from harness.errors import ConformanceError
from harness.expectations import Difference
from harness.interpreters import Interpreter
from harness.results import CaseResult, ModuleResult, RunResult, load


def run_of(outcomes: dict[str, str], *, partial: bool = False) -> RunResult:
    tests = {name: CaseResult(outcome, 0.0, 1) for name, outcome in outcomes.items()}
    run = RunResult("cpython", "3.13.0", "zloop:new_event_loop", {"tag": "313"}, "", partial=partial)
    run.modules = {"m": ModuleResult(tests, len(tests), 0.0)}
    return run


def known(*tests: str, outcome: str = "") -> Difference:
    return Difference("cpython", tests, "it is so", outcome=outcome)


@pytest.mark.parametrize(
    ("here", "there", "differences", "place", "clean"),
    [
        ("passed", "passed", [], "passed", True),
        ("xfailed", "xfailed", [], "passed", True),
        ("passed", "failed", [], "passed", True),
        ("passed", None, [], "passed", True),
        ("skipped", "skipped", [], "skipped", True),
        ("failed", "passed", [], "differs", False),
        ("skipped", "passed", [], "differs", False),
        ("timeout", "xfailed", [], "differs", False),
        ("failed", "skipped", [], "differs", False),
        ("failed", None, [], "differs", False),
        ("failed", "error", [], "control_fails", True),
        ("crash", "passed", [known("m.T.*")], "expected", True),
        ("failed", "passed", [known("m.T.*", outcome="failed")], "expected", True),
        ("crash", "passed", [known("m.T.*", outcome="failed")], "differs", False),
        ("passed", "passed", [known("m.T.*")], "passes", False),
    ],
)
def test_a_test_has_one_place(
    here: str, there: str | None, differences: list[Difference], place: str, clean: bool
) -> None:
    control = run_of({"m.T.test": there} if there else {})
    found = verdict.judge(run_of({"m.T.test": here}), control, differences)
    places = ("passed", "skipped", "expected", "control_fails", "differs", "passes")
    assert [name for name in places if getattr(found, name)] == [place]
    assert found.clean is clean


def test_a_test_that_is_missing_differs() -> None:
    control = run_of({"m.T.a": "passed", "m.T.b": "passed", "m.T.c": "failed"})
    found = verdict.judge(run_of({"m.T.a": "passed"}), control, [])
    assert {name: test.outcome for name, test in found.differs.items()} == {"m.T.b": "missing"}
    found = verdict.judge(run_of({"m.T.a": "passed"}, partial=True), control, [])
    assert found.clean


def test_a_pattern_that_fits_nothing_is_stale() -> None:
    differences = [known("m.T.a", "m.T.gone")]
    run, control = run_of({"m.T.a": "failed"}), run_of({"m.T.a": "passed"})
    found = verdict.judge(run, control, differences)
    assert found.stale == ["m.T.gone"]
    assert not found.clean


def interpreter(version: str, tag: str) -> Interpreter:
    return Interpreter("python", "/usr", "cpython", version, "build", tag, "OpenSSL", "linux-x86_64", None)


@pytest.mark.parametrize(
    ("entry", "version", "tag", "applies"),
    [
        ({}, "3.10.13", "310", True),
        ({"python": ">=3.12,<3.14"}, "3.13.0", "313", True),
        ({"python": ">=3.12,<3.14"}, "3.14.8", "314", False),
        ({"python": "==3.10"}, "3.10.13", "310", True),
        ({"python": "!=3.10"}, "3.10.13", "310", False),
        ({"version": "3.13.0"}, "3.13.0", "313", True),
        ({"version": "3.13.1"}, "3.13.0", "313", False),
        ({"build": "debug"}, "3.14.8", "314d", True),
        ({"build": "debug"}, "3.14.8", "314", False),
        ({"build": "free-threaded"}, "3.13.5", "313t", True),
        ({"build": "gil"}, "3.13.5", "313t", False),
    ],
)
def test_where_a_difference_applies(entry: dict[str, str], version: str, tag: str, applies: bool) -> None:
    difference = Difference("cpython", ("*",), "it is so", **entry)
    assert difference.applies("cpython", version, interpreter(version, tag)) is applies
    assert not difference.applies("uvloop", version, interpreter(version, tag))


@pytest.mark.parametrize(
    "entry",
    [
        'tests = ["a"]\nreason = "x"',
        'suite = "cpython"\nreason = "x"',
        'suite = "cpython"\ntests = ["a"]',
        'suite = "cpython"\ntests = ["a"]\nreason = "  "',
        'suite = "cpython"\ntests = []\nreason = "x"',
        'suite = "cpython"\ntests = ["a"]\nreason = "x"\nflaky = true',
        'suite = "cpython"\ntests = ["a"]\nreason = "x"\npython = "3.12"',
        'suite = "cpython"\ntests = ["a"]\nreason = "x"\nbuild = "fast"',
        'suite = "cpython"\ntests = ["a"]\nreason = "x"\noutcome = "maybe"',
    ],
)
def test_a_careless_entry_is_refused(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "expectations.toml"
    path.write_text(f'loop = "zloop"\n[[difference]]\n{entry}\n')
    with pytest.raises(ConformanceError):
        expectations.load(path, "zloop")


def test_the_file_in_the_repository_is_well_formed() -> None:
    path = Path(__file__).parent.parent / "expectations.toml"
    expectations.load(path, "zloop")
    assert expectations.load(path, "uvloop") == []


def test_a_stored_run_comes_back_whole(tmp_path: Path) -> None:
    run = run_of({"m.T.a": "passed", "m.T.b": "failed"})
    run.tests["m.T.b"].detail = "because"
    path = tmp_path / "run.json"
    run.save(path)
    assert load(path) == run
