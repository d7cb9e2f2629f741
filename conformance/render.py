"""Write docs/compatibility.md from stored results: `python conformance/render.py [DIR] [--output FILE]`.

DIR is what `run.py --json DIR` wrote; without it, the runner's own results folder. Only whole runs of zloop
whose result was as expected are taken; anything else in the folder ends the rendering, because a table that
leaves out what went wrong is worth nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import cache, results
from harness.results import RunResult
from harness.suites import suites

OUTPUT = cache.REPOSITORY_ROOT / "docs" / "compatibility.md"
LOOP = "zloop:new_event_loop"

HEAD = """\
# Compatibility

<!-- Written by conformance/render.py; change the text there and the figures by running the suites again. -->

zloop is judged by test suites that were written for other loops. They run unchanged, each module in a
process of its own, with every loop that the tests make being zloop's: asyncio's own names (`new_event_loop`,
`Runner`, `run`, `SelectorEventLoop`, `EventLoop`, the default policy) lead to it for the time of the run, and
a counter in each test shows that it was really made.

The same suites run on asyncio in the same environment, and each test is compared. A test that passes on
asyncio must pass on zloop, or be in [expectations.toml](../conformance/expectations.toml) with a reason. That
list is strict: an entry whose test passes fails the run as well, and nothing may be marked as unreliable.

How to run the suites is told in [conformance/README.md](../conformance/README.md).

What no suite thought of is looked for by [fuzz/differential.py](../fuzz/differential.py), which plays the
same random operations on asyncio and on zloop and compares what both ends of the connections saw. Its last
run of an hour (`python fuzz/differential.py --seconds 3600`, CPython 3.13) played 71,322 scenarios without a
difference.

## Results

- *on zloop*: tests that passed and during which at least one zloop loop was made; loops that fixtures share
  between tests are not in this figure.
- *skipped*: the suite skips the test on asyncio, too, for the platform or for something not installed.
- *differences*: does not pass on zloop, with a reason, listed below.
- *fails on asyncio*: does not pass in this environment on either loop.

"""

COLUMNS = ("suite", "version", "CPython", "passed", "on zloop", "skipped", "differences", "fails on asyncio")


class RenderError(Exception):
    """The folder does not hold what a page can be made from."""


def load(folder: Path) -> list[RunResult]:
    runs = [run for path in sorted(folder.glob("*.json")) if (run := results.load(path)) is not None]
    runs = [run for run in runs if run.loop == LOOP and not run.partial]
    if not runs:
        raise RenderError(f"{folder} has no whole run of {LOOP}")
    bad = [run.file_name for run in runs if not (run.verdict and run.verdict["clean"])]
    if bad:
        raise RenderError(f"not as expected: {', '.join(bad)}")
    order = list(suites())
    return sorted(runs, key=lambda run: (order.index(run.suite), run.version, _python(run)))


def page(runs: list[RunResult]) -> str:
    lines = [HEAD + _row(COLUMNS), _row(tuple("---" if n < 3 else "---:" for n in range(len(COLUMNS))))]
    lines += [_row(_cells(run)) for run in runs]
    systems = ", ".join(sorted({run.interpreter["system"] for run in runs}))
    lines += ["", f"Made on {systems}.", "", "## Differences", ""]
    lines += _differences(runs) or ["None: every test that passes on asyncio passes on zloop."]
    lines += ["", "## Not run", ""]
    lines += _left_out({run.suite for run in runs})
    return "\n".join(lines) + "\n"


def _python(run: RunResult) -> tuple[tuple[int, ...], str]:
    return tuple(int(part) for part in run.interpreter["version"].split(".")[:2]), run.interpreter["tag"]


def _cells(run: RunResult) -> tuple[str, ...]:
    verdict = run.verdict or {}
    build = {"t": " free-threaded", "d": " debug", "td": " free-threaded debug"}
    kind = build.get(run.interpreter["tag"].lstrip("0123456789"), "")
    on_zloop = sum(test.good and test.loops > 0 for test in run.tests.values())
    counts = (verdict["passed"], on_zloop, verdict["skipped"], len(verdict["expected"]))
    return (
        run.suite,
        run.version,
        run.interpreter["version"] + kind,
        *(f"{count:,}" for count in counts),
        f"{len(verdict['control_fails']):,}",
    )


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _differences(runs: list[RunResult]) -> list[str]:
    """One paragraph for each suite and reason, with the tests that it explains."""
    found: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run in runs:
        for test, reason in (run.verdict or {})["expected"].items():
            major_minor = ".".join(run.interpreter["version"].split(".")[:2])
            found[run.suite, " ".join(reason.split())][test].add(major_minor)
    lines = []
    for (suite, reason), tests in sorted(found.items()):
        lines.append(f"**{suite}**: {reason}")
        lines.append("")
        for test, versions in sorted(tests.items()):
            ordered = sorted(versions, key=lambda version: tuple(map(int, version.split("."))))
            lines.append(f"- `{test}` ({', '.join(ordered)})")
        lines.append("")
    return lines[:-1]


def _left_out(names: set[str]) -> list[str]:
    """What the runner never starts, for the suites of the table."""
    lines = []
    for name, suite in suites().items():
        if name in names:
            entries = {**suite.left_out, **suite.excluded}
            lines += [f"- {name}: `{pattern}`: {reason}" for pattern, reason in entries.items()]
    return lines or ["Nothing is left out."]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="results in JSON")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    options = parser.parse_args()
    try:
        text = page(load(options.folder or cache.folder("results")))
    except RenderError as error:
        print(f"render: {error}", file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
