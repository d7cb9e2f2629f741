"""One module in a process of its own: outcomes, crashes, hangs, and going on after them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from harness.results import ModuleResult
from harness.suites import CHILD_ROOT, Start
from harness.supervise import Order, run_module

LIMIT_S = 5.0


def run_source(
    tmp_path: Path,
    source: str,
    *,
    loop: str = "asyncio:SelectorEventLoop",
    only: list[str] | None = None,
    path: list[str] | None = None,
    limit_s: float = LIMIT_S,
) -> ModuleResult:
    (tmp_path / "sample.py").write_text(source)
    start = Start(
        command=[sys.executable, "-X", "faulthandler", "-m", "conformance_child.unittest_runner"],
        path=[],
        directory=None,
        options={"path": [str(tmp_path)]},
        target_is_argument=False,
    )
    order = Order(
        module="sample",
        target="sample",
        loop=loop,
        start=start,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CHILD_ROOT), *(path or [])])},
        limit_s=limit_s,
        log=tmp_path / "log",
        only=only,
        exclude=[],
    )
    return run_module(order)


def outcomes(result: ModuleResult) -> dict[str, str]:
    return {name.removeprefix("sample."): test.outcome for name, test in result.tests.items()}


ORDINARY = """
import unittest

class T(unittest.TestCase):
    def test_pass(self): pass
    def test_fail(self): self.assertEqual(1, 2)
    def test_error(self): raise KeyError("missing")
    @unittest.skip("no reason at all")
    def test_skip(self): pass
    @unittest.expectedFailure
    def test_expected(self): self.fail()
    @unittest.expectedFailure
    def test_surprise(self): pass
    def test_subtests(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertNotEqual(number, 1)
    def test_subtest_skips(self):
        with self.subTest():
            self.skipTest("only this part")
"""


def test_each_outcome_is_told_apart(tmp_path: Path) -> None:
    result = run_source(tmp_path, ORDINARY)
    assert outcomes(result) == {
        "T.test_pass": "passed",
        "T.test_fail": "failed",
        "T.test_error": "error",
        "T.test_skip": "skipped",
        "T.test_expected": "xfailed",
        "T.test_surprise": "failed",
        "T.test_subtests": "failed",
        "T.test_subtest_skips": "skipped",
    }
    assert "KeyError" in result.tests["sample.T.test_error"].detail
    assert "number=1" in result.tests["sample.T.test_subtests"].detail
    assert result.tests["sample.T.test_skip"].detail == "no reason at all"


CRASHES = """
import os, sys, threading, unittest

class T(unittest.TestCase):
    def test_1(self): pass
    def test_2_signal(self): os.abort()
    def test_3(self): pass
    def test_4_exit(self): os._exit(3)
    def test_5_hang(self): threading.Event().wait()
    def test_6(self): pass
"""


def test_a_death_is_reported_with_its_test_and_the_others_still_run(tmp_path: Path) -> None:
    result = run_source(tmp_path, CRASHES, limit_s=2.0)
    assert outcomes(result) == {
        "T.test_1": "passed",
        "T.test_2_signal": "crash",
        "T.test_3": "passed",
        "T.test_4_exit": "crash",
        "T.test_5_hang": "timeout",
        "T.test_6": "passed",
    }
    assert "SIGABRT" in result.tests["sample.T.test_2_signal"].detail
    assert "status 3" in result.tests["sample.T.test_4_exit"].detail
    # faulthandler says where the hanging thread was.
    assert "test_5_hang" in result.tests["sample.T.test_5_hang"].detail


GROUPS = """
import unittest

class Broken(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise RuntimeError("no server")
    def test_1(self): pass

class Skipped(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise unittest.SkipTest("not here")
    def test_1(self): pass

class Fine(unittest.TestCase):
    def test_1(self): pass
"""


def test_set_up_of_a_class_counts_for_its_tests(tmp_path: Path) -> None:
    assert outcomes(run_source(tmp_path, GROUPS)) == {
        "sample::setUpClass (sample.Broken)": "error",
        "Broken.test_1": "not run",
        "Skipped.test_1": "skipped",
        "Fine.test_1": "passed",
    }


@pytest.mark.parametrize(
    ("source", "name", "outcome"),
    [
        ("import os; os._exit(4)", "sample::<loading>", "crash"),
        ("raise RuntimeError('broken')", "sample::<loading>", "crash"),
        ("import unittest\nraise unittest.SkipTest('elsewhere')", None, None),
        (
            "import atexit, os, unittest\natexit.register(os.abort)\n"
            "class T(unittest.TestCase):\n    def test_1(self): pass\n",
            "sample::<exit>",
            "crash",
        ),
    ],
    ids=["dies", "raises", "skips", "dies at exit"],
)
def test_what_happens_outside_tests(tmp_path: Path, source: str, name: str | None, outcome: str) -> None:
    result = run_source(tmp_path, source)
    found = {test: result.tests[test].outcome for test in result.tests if "::" in test}
    assert found == ({} if name is None else {name: outcome})


def test_patterns_choose_tests(tmp_path: Path) -> None:
    assert outcomes(run_source(tmp_path, ORDINARY, only=["sample.T.*skip*"])) == {
        "T.test_skip": "skipped",
        "T.test_subtest_skips": "skipped",
    }


def test_interrupts_work_although_the_shell_ignores_them(tmp_path: Path) -> None:
    source = """
import signal, unittest

class T(unittest.TestCase):
    def test_interrupt(self):
        with self.assertRaises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
"""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert outcomes(run_source(tmp_path, source)) == {"T.test_interrupt": "passed"}
    finally:
        signal.signal(signal.SIGINT, previous)
