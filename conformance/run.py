"""Run other projects' test suites on zloop and compare with asyncio and with the differences that are known.

    python conformance/run.py                                   # every suite, zloop, this interpreter
    python conformance/run.py --suite cpython --python PATH     # one suite, another interpreter
    python conformance/run.py --suite uvicorn --only '*ssl*'    # some tests
    python conformance/run.py --loop uvloop:new_event_loop      # another loop: every difference is shown

The status is 0 only if every suite's result equals what `expectations.toml` says. See README.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

# The interpreter under test may be older, and is easily taken for this one.
if sys.version_info < (3, 11, 4):
    sys.exit("conformance/run.py itself needs Python 3.11.4 or newer; --python names the interpreter to test")

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import cache, expectations, interpreters, loops, report, verdict
from harness.errors import ConformanceError
from harness.interpreters import Interpreter
from harness.results import RunResult
from harness.runner import Settings, confirm, control, control_of_failures, look_again, run_suite
from harness.suites import Suite, suites
from harness.verdict import Verdict

# With more differences than this, none is a mystery of its own.
LOOKS_MAX = 20
EXPECTATIONS = cache.CONFORMANCE_ROOT / "expectations.toml"


def main() -> int:
    options = _options()
    # Ended from outside, as by a time limit, the run ends its own processes like after an interrupt.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    known = suites(options.cpython_tests)
    chosen = known if options.suite == "all" else {options.suite: known[options.suite]}
    folder = options.json or cache.folder("results")
    rows = []
    try:
        interpreter = interpreters.probe(options.python)
        loop = loops.prepare(options.loop, interpreter, from_environment=options.zloop_from_env)
        for suite in chosen.values():
            print(f"{suite.name} {suite.version(interpreter)}, CPython {interpreter.version}", flush=True)
            rows.append(_judged(suite, interpreter, loop, options, folder))
    except ConformanceError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("conformance: interrupted", file=sys.stderr)
        return 130
    report.table(rows)
    return 0 if all(found.clean for _, found in rows) else 1


def _judged(
    suite: Suite, interpreter: Interpreter, loop: loops.Loop, options: argparse.Namespace, folder: Path
) -> tuple[RunResult, Verdict]:
    settings = Settings(
        jobs=options.jobs, only=options.only, logs=folder / "logs", progress=report.module_line
    )
    if options.quick:
        run = run_suite(suite, interpreter, loop, settings)
        for name in confirm(suite, interpreter, loop, settings, run):
            print(f"  {name} failed, and passed when it was run again by itself", flush=True)
        reference = control_of_failures(suite, interpreter, settings, run)
    else:
        reference = control(suite, interpreter, settings, fresh=options.fresh_control)
        run = run_suite(suite, interpreter, loop, settings)
    differences = [
        difference
        for difference in expectations.load(EXPECTATIONS, loop.package)
        if difference.applies(suite.name, run.version, interpreter)
    ]
    found = verdict.judge(run, reference, differences)
    # Only to help whoever reads the report: a test that passes when it is run again has failed all the same.
    puzzling = [name for name, test in found.differs.items() if test.outcome in ("failed", "error")]
    again = {
        name: f" (again: {test.outcome})"
        for name, _, test in look_again(
            suite, interpreter, loop, settings, run, puzzling if len(puzzling) <= LOOKS_MAX else []
        )
    }
    run.verdict = found.as_json()
    run.save(folder / run.file_name)
    report.differences(run, found, again)
    return run, found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--suite", default="all", choices=[*suites(), "all"])
    parser.add_argument("--loop", default="zloop:new_event_loop", help="the factory, module:callable")
    parser.add_argument("--python", default=sys.executable, help="the interpreter under test")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="modules or tests, as a shell pattern"
    )
    parser.add_argument("--json", type=Path, metavar="DIR", help="where results and logs go")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="modules run at the same time")
    parser.add_argument(
        "--zloop-from-env",
        action="store_true",
        help="take the loop's package as the interpreter has it, instead of building the repository",
    )
    parser.add_argument(
        "--cpython-tests", type=Path, metavar="DIR", help="contains test_asyncio, if the interpreter does not"
    )
    parser.add_argument("--fresh-control", action="store_true", help="run the suites on asyncio again, too")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="asyncio runs only what did not pass; a failure counts if it repeats by itself",
    )
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error("--jobs is at least 1")
    if options.cpython_tests is not None:
        options.cpython_tests = options.cpython_tests.resolve()
    return options


if __name__ == "__main__":
    sys.exit(main())
