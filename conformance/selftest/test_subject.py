"""Every name that makes a loop makes the loop under test, is counted, and the loop keeps its own base."""

from __future__ import annotations

from pathlib import Path

from test_supervise import outcomes, run_source

# A loop as zloop is one: it derives from asyncio's, calls its base by name, and is made by a function.
SUBJECT = """
import asyncio

class Loop(asyncio.SelectorEventLoop):
    def time(self):
        return asyncio.SelectorEventLoop.time(self)

def new_event_loop():
    return Loop()
"""

SOURCE = """
import asyncio, selectors, sys, unittest, warnings
import subject_loop

warnings.simplefilter("ignore", DeprecationWarning)

class Names(unittest.TestCase):
    def check(self, loop):
        try:
            self.assertIs(type(loop), subject_loop.Loop)
            self.assertGreater(loop.time(), 0)
        finally:
            loop.close()

    def test_new_event_loop(self): self.check(asyncio.new_event_loop())
    def test_policy(self): self.check(asyncio.get_event_loop_policy().new_event_loop())
    def test_fresh_policy(self): self.check(asyncio.DefaultEventLoopPolicy().new_event_loop())
    def test_class(self): self.check(asyncio.SelectorEventLoop())
    def test_module_class(self): self.check(asyncio.unix_events.SelectorEventLoop())
    def test_selector(self): self.check(asyncio.SelectorEventLoop(selectors.SelectSelector()))
    def test_event_loop(self):
        if sys.version_info < (3, 13):
            self.skipTest("asyncio.EventLoop is new in 3.13")
        self.check(asyncio.EventLoop())

    def test_run(self):
        async def main():
            return type(asyncio.get_running_loop())
        self.assertIs(asyncio.run(main()), subject_loop.Loop)

    def test_subclass(self):
        class Mine(asyncio.SelectorEventLoop):
            pass
        self.assertIs(Mine.__base__, subject_loop.Loop)
        Mine().close()

class Async(unittest.IsolatedAsyncioTestCase):
    async def test_isolated(self):
        self.assertIs(type(asyncio.get_running_loop()), subject_loop.Loop)

class Types(unittest.TestCase):
    def test_isinstance(self):
        loop = subject_loop.new_event_loop()
        self.assertIsInstance(loop, asyncio.SelectorEventLoop)
        self.assertTrue(issubclass(subject_loop.Loop, asyncio.SelectorEventLoop))
        self.assertFalse(issubclass(asyncio.BaseEventLoop, asyncio.SelectorEventLoop))
        loop.close()
"""


def test_every_name_leads_to_the_subject(tmp_path: Path) -> None:
    (tmp_path / "subject_loop.py").write_text(SUBJECT)
    result = run_source(tmp_path, SOURCE, loop="subject_loop:new_event_loop", path=[str(tmp_path)])
    assert set(outcomes(result).values()) <= {"passed", "skipped"}, outcomes(result)
    made = {name: test.loops for name, test in result.tests.items() if test.outcome == "passed"}
    for name, count in made.items():
        without = ("test_isinstance", "test_subclass")
        assert count == (0 if name.endswith(without) else 1), name
    assert result.loops == sum(made.values())


def test_the_stock_loop_is_given_its_selector(tmp_path: Path) -> None:
    source = """
import asyncio, selectors, unittest

class T(unittest.TestCase):
    def test_selector(self):
        selector = selectors.SelectSelector()
        loop = asyncio.SelectorEventLoop(selector)
        self.assertIs(loop._selector, selector)
        loop.close()
"""
    assert outcomes(run_source(tmp_path, source)) == {"T.test_selector": "passed"}


def test_names_can_be_left_alone(tmp_path: Path) -> None:
    source = """
import asyncio, unittest

class T(unittest.TestCase):
    def test_class(self):
        self.assertIsInstance(asyncio.SelectorEventLoop, type)
"""
    result = run_source(tmp_path, source, loop="default")
    assert outcomes(result) == {"T.test_class": "passed"}
    assert result.loops == 0
