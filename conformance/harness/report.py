"""What a person reads: a line for each module as it ends, the differences, and a table."""

from __future__ import annotations

import re
import sys
import threading
from collections import defaultdict
from collections.abc import Sequence

from harness.results import CaseResult, ModuleResult, RunResult
from harness.verdict import Verdict

DETAIL_LINES_MAX = 16
CAUSE_CHARS_MAX = 160
_lock = threading.Lock()


def module_line(loop: str, module: str, result: ModuleResult) -> None:
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result.counts.items())) or "no tests"
    loops = f"{result.loops} loops" if result.loops else "not loop-dependent"
    with _lock:
        print(f"  {loop:28} {module:34} {result.seconds:7.1f} s  {loops:>18}  {counts}", flush=True)


def differences(run: RunResult, verdict: Verdict, again: dict[str, str]) -> None:
    """Differences by cause, as far as the last line of a traceback tells it: one defect fails many tests."""
    title = f"{run.suite} {run.version} on {run.loop}, CPython {run.interpreter['version']}"
    causes: dict[str, list[str]] = defaultdict(list)
    for name, test in verdict.differs.items():
        causes[_cause(test)].append(name)
    for cause, names in sorted(causes.items(), key=lambda item: -len(item[1])):
        print(f"\nDIFFERS  {title}: {len(names)} x {cause}")
        for name in names:
            print(f"  {name}: {verdict.differs[name].outcome}{again.get(name, '')}")
        for line in verdict.differs[names[0]].detail.rstrip().splitlines()[-DETAIL_LINES_MAX:]:
            print(f"      {line}")
    for name, reason in verdict.passes.items():
        print(f"\nPASSES   {title}: {name}: it is in expectations.toml ({reason})")
    for pattern in verdict.stale:
        print(f"\nSTALE    {title}: no test fits the pattern {pattern!r} in expectations.toml")


def _cause(test: CaseResult) -> str:
    if test.outcome in ("timeout", "crash"):
        return test.detail.partition("\n")[0]
    lines = test.detail.splitlines()
    # pytest marks the exception's lines; in a plain traceback it is the last line that is not indented.
    marked = [line.removeprefix("E").strip() for line in lines if line.startswith("E  ")]
    plain = [line for line in lines if line and not line[0].isspace()]
    cause = marked[0] if marked else plain[-1] if plain else test.outcome
    # Descriptors, ports and addresses differ between tests of one cause.
    return re.sub(r"0x[0-9a-f]+|\d+", "N", cause)[:CAUSE_CHARS_MAX]


def table(rows: Sequence[tuple[RunResult, Verdict]]) -> None:
    head = (
        "suite",
        "version",
        "python",
        "loop",
        "passed",
        "skipped",
        "expected",
        "fails on asyncio",
        "unexpected",
        "",
    )
    lines = [head]
    for run, verdict in rows:
        unexpected = len(verdict.differs) + len(verdict.passes) + len(verdict.stale)
        lines.append(
            (
                run.suite,
                run.version,
                run.interpreter["version"] + run.interpreter["tag"].lstrip("0123456789"),
                run.loop,
                str(len(verdict.passed)),
                str(len(verdict.skipped)),
                str(len(verdict.expected)),
                str(len(verdict.control_fails)),
                str(unexpected),
                "ok" if verdict.clean else "NOT AS EXPECTED",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    print()
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    sys.stdout.flush()
