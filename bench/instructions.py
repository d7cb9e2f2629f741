"""A guard against slow-downs that noise hides: instructions executed per operation, counted by callgrind.

    python -m bench.instructions               compares with bench/budget.json, fails above its tolerance
    python -m bench.instructions --update      writes what it measured as the new budget

The count of one operation is the difference of two runs of different length, so start-up cancels out. Counts
depend on the interpreter: the budget has a column for each Python version, and one without is not judged.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import loops, machine
from bench.instruction_child import PATHS
from bench.paths import BENCH, ROOT

BUDGET = BENCH / "budget.json"
TOLERANCE = 0.05
SHORT, LONG = 500, 1500
"""Operations of the two runs; callgrind makes each about fifty times slower."""
RUN_TIMEOUT_S = 300.0
TOTAL = re.compile(r"^(?:summary|totals):\s+(\d+)", re.MULTILINE)


def per_operation(loop: str, path: str, short: int = SHORT, long: int = LONG) -> float:
    return (instructions(loop, path, long) - instructions(loop, path, short)) / (long - short)


def instructions(loop: str, path: str, count: int) -> int:
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        profile = Path(folder, "profile")
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}", sys.executable]
        command += ["-m", "bench.instruction_child", "--loop", loop, "--path", path, "--count", str(count)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{path} on {loop} failed under callgrind:\n{done.stderr[-3000:]}")
        match = TOTAL.search(profile.read_text(encoding="utf-8", errors="replace"))
        assert match, "callgrind wrote no total"
        return int(match[1])


def verdict(measured: float, budget: float | None) -> str:
    if budget is None:
        return "no budget"
    change = measured / budget - 1
    if change > TOLERANCE:
        return f"{change:+.1%}: over budget"
    if change < -TOLERANCE:
        return f"{change:+.1%}: under budget, update it"
    return f"{change:+.1%}"


def main(arguments: list[str] | None = None) -> int:
    command_line = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command_line.add_argument("--loop", default=loops.SUBJECT)
    command_line.add_argument("--paths", default=",".join(PATHS), help="which paths to count")
    command_line.add_argument("--update", action="store_true", help="store the counts as the new budget")
    command_line.add_argument("--tiny", action="store_true", help="very short runs, never judged")
    options = command_line.parse_args(arguments)
    if not shutil.which("valgrind"):
        raise SystemExit("valgrind is not installed")
    budgets = json.loads(BUDGET.read_text(encoding="utf-8")) if BUDGET.exists() else {}
    column = budgets.setdefault(options.loop, {}).setdefault(machine.python_tag(), {})
    is_over = False
    for path in options.paths.split(","):
        measured = per_operation(options.loop, path, *((20, 60) if options.tiny else (SHORT, LONG)))
        result = "not judged" if options.tiny else verdict(measured, column.get(path))
        is_over = is_over or "over budget" in result
        print(f"{path}: {measured:,.0f} instructions ({result})", flush=True)
        if options.update:
            column[path] = round(measured)
    if options.update:
        BUDGET.write_text(json.dumps(budgets, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    return 1 if is_over else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
