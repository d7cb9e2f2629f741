"""Run a suite, or find the stored run of its control."""

from __future__ import annotations

import glob
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from harness import cache, results
from harness.errors import ConformanceError
from harness.interpreters import Interpreter
from harness.loops import CONTROL, Loop
from harness.results import ModuleResult, RunResult
from harness.suites import Start, Suite, environment_of_child
from harness.supervise import Order, run_module, stop

# A test that fails once on asyncio and passes when run again, alone, can pass: it must pass on the subject.
CONTROL_LOOKS_MAX = 3
# With more failures than this something is wrong that no second look explains.
CONFIRMED_MAX = 10


@dataclass(frozen=True)
class Settings:
    jobs: int
    only: list[str]
    logs: Path
    progress: Callable[[str, str, ModuleResult], None]
    """Called with the loop, the module and its result as each module ends."""


def run_suite(suite: Suite, interpreter: Interpreter, loop: Loop, settings: Settings) -> RunResult:
    start = suite.start(interpreter, loop)
    run = RunResult(
        suite=suite.name,
        version=suite.version(interpreter),
        loop=loop.spec,
        interpreter=interpreter.facts(),
        fingerprint=suite.fingerprint(interpreter),
        partial=bool(settings.only),
    )
    orders = []
    for module in suite.modules(interpreter):
        only = _chosen(suite.target(module), module, settings.only)
        if only != []:
            orders.append(_order(suite, run, loop, start, module, only, settings.logs))

    def execute(order: Order) -> ModuleResult:
        result = run_module(order)
        settings.progress(loop.spec, order.module, result)
        return result

    with ThreadPoolExecutor(settings.jobs) as pool:
        try:
            found = list(pool.map(execute, orders))
        except BaseException:
            # Modules run in sessions of their own, out of reach of the terminal's interrupt.
            stop()
            pool.shutdown(cancel_futures=True)
            raise
    run.modules = {order.module: result for order, result in zip(orders, found, strict=True)}
    return run


def control(suite: Suite, interpreter: Interpreter, settings: Settings, *, fresh: bool) -> RunResult:
    """The suite's run on asyncio, made once for each interpreter and version of the suite."""
    title = f"{suite.name}-{suite.version(interpreter)}-{interpreter.name}"
    path = cache.folder("control") / f"{title}-{suite.fingerprint(interpreter)[:6]}.json"
    with cache.locked(path.stem):
        stored = results.load(path) if path.exists() and not fresh else None
        return stored or _make_control(suite, interpreter, settings, path)


def _make_control(suite: Suite, interpreter: Interpreter, settings: Settings, path: Path) -> RunResult:
    loop = Loop(CONTROL, None)
    settings = replace(settings, only=[])
    run = run_suite(suite, interpreter, loop, settings)
    for look in range(CONTROL_LOOKS_MAX - 1):
        bad = [
            name
            for name, test in run.tests.items()
            if not test.good and test.outcome not in (("skipped",) if look == 0 else ("skipped", "timeout"))
        ]
        for name, module, test in look_again(suite, interpreter, loop, settings, run, bad):
            if test.good:
                run.modules[module].tests[name] = replace(
                    test, detail="passed on asyncio only when run again"
                )
    _refuse_unloadable(run)
    run.save(path)
    return run


def control_of_failures(
    suite: Suite, interpreter: Interpreter, settings: Settings, run: RunResult
) -> RunResult:
    """asyncio's results for the tests that did not pass in `run`, and for no others."""
    loop = Loop(CONTROL, None)
    reference = replace(run, loop=CONTROL, modules={}, verdict=None)
    bad = [name for name, test in run.tests.items() if not test.good]
    for name, module, test in look_again(suite, interpreter, loop, settings, run, bad):
        reference.modules.setdefault(module, ModuleResult({}, 0, 0)).tests[name] = test
    return reference


def confirm(
    suite: Suite, interpreter: Interpreter, loop: Loop, settings: Settings, run: RunResult
) -> list[str]:
    """Run what failed once more, by itself; a test that passes then counts as passed, and is named."""
    failed = [
        name for name, test in run.tests.items() if test.outcome in ("failed", "error") and "::<" not in name
    ]
    if len(failed) > CONFIRMED_MAX:
        return []
    steady = []
    for name, module, test in look_again(suite, interpreter, loop, settings, run, failed):
        if test.good:
            run.modules[module].tests[name] = replace(test, detail="passed only when run again")
            steady.append(name)
    return steady


def _refuse_unloadable(run: RunResult) -> None:
    """A module that cannot even be loaded on asyncio says nothing about a loop: its preparation is wrong."""
    marks = ("::<loading>", "::setUpModule", "unittest.loader._FailedTest.")
    bad = {name: test for name, test in run.tests.items() if any(mark in name for mark in marks)}
    if bad:
        details = "\n".join(f"{name}: {test.detail[-2000:]}" for name, test in list(bad.items())[:3])
        raise ConformanceError(
            f"{run.suite} {run.version} cannot be loaded on asyncio, {len(bad)} modules:\n{details}"
        )


def look_again(
    suite: Suite, interpreter: Interpreter, loop: Loop, settings: Settings, run: RunResult, names: list[str]
) -> list[tuple[str, str, results.CaseResult]]:
    """Run the named tests once more, without the rest of their modules: name, module and new result."""
    start = suite.start(interpreter, loop)
    found = []
    for module, result in run.modules.items():
        only = [glob.escape(name) for name in names if name in result.tests and "::<" not in name]
        if only:
            again = run_module(_order(suite, run, loop, start, module, only, settings.logs / "again"))
            found += [(name, module, test) for name, test in again.tests.items() if name in names]
    return found


def _order(
    suite: Suite, run: RunResult, loop: Loop, start: Start, module: str, only: list[str] | None, logs: Path
) -> Order:
    log = logs / run.file_name.removesuffix(".json") / f"{module.replace('/', '.')}.log"
    return Order(
        module=module,
        target=suite.target(module),
        loop=loop.spec,
        start=start,
        env=environment_of_child(start, loop),
        limit_s=suite.test_limit_s,
        log=log,
        only=only,
        exclude=list(suite.excluded),
    )


def _chosen(target: str, module: str, patterns: list[str]) -> list[str] | None:
    """Which tests of a module the patterns ask for: None for all, an empty list for none."""
    if not patterns or any(fnmatchcase(module, pattern) for pattern in patterns):
        return None
    starts = (f"{module}.", f"{target}::", "*")
    return [pattern for pattern in patterns if pattern.startswith(starts)]
