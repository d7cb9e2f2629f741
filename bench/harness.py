"""Interleaved rounds: in each round every contender runs a row once, in a process of its own.

Noise of a shared machine comes in stretches of seconds. Contenders measured one after the other within a
second or two see the same stretch, so their ratio survives what their absolute numbers do not.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import loops, machine, stats
from bench.paths import CACHE, RESULTS, ROOT

CHILD_TIMEOUT_S = 60.0

Sample = dict[str, float]


class SampleFailed(RuntimeError):
    """One contender cannot run one row; the message goes into the results."""


@dataclass(frozen=True)
class Effort:
    """How long and how often: a tiny run only proves that every row works."""

    name: str
    duration_s: float
    rounds: int


@dataclass(frozen=True)
class Metric:
    key: str
    unit: str
    lower_is_better: bool = False


@dataclass
class Row:
    name: str
    metrics: tuple[Metric, ...]
    """What is published, each with its ratios; samples may hold more. The first is printed while it runs."""
    sample: Callable[[str, Effort], Sample]
    """Measures one contender once."""
    includes: Callable[[str], bool] = lambda _: True
    """Whether a contender takes part."""
    has_limit: bool = False
    cpu_metric: Metric | None = None
    """What takes the metrics' place when CPU time is compared: it is almost free of noise on a machine that
    others use too, but blind to time spent waiting."""
    results: dict[str, dict[str, object]] = field(default_factory=dict)


def effort_of(options: argparse.Namespace, full: tuple[float, int]) -> Effort:
    full_duration_s, full_rounds = full
    if options.tiny:
        effort = Effort("tiny", 0.02, 1)
    elif options.quick:
        effort = Effort("quick", full_duration_s / 2, 3)
    else:
        effort = Effort("full", full_duration_s, full_rounds)
    duration_s = options.duration if options.duration is not None else effort.duration_s
    return Effort(effort.name, duration_s, options.rounds or effort.rounds)


def parser(description: str) -> argparse.ArgumentParser:
    command_line = argparse.ArgumentParser(description=description)
    names = ",".join(loops.CONTENDERS)
    command_line.add_argument(
        "--loops", default=names, help=f"contenders, or module:callable (default: {names})"
    )
    command_line.add_argument("--rows", default="", help="only rows whose name matches this expression")
    command_line.add_argument("--list", action="store_true", help="print the rows and stop")
    command_line.add_argument("--by-cpu", action="store_true", help="compare CPU time where rows know it")
    command_line.add_argument("--quick", action="store_true", help="three short rounds")
    command_line.add_argument(
        "--tiny", action="store_true", help="about 20 ms a sample: does everything run?"
    )
    command_line.add_argument("--duration", type=float, help="seconds a sample")
    command_line.add_argument("--rounds", type=int, help="samples a contender")
    command_line.add_argument("--out", type=Path, help="where to write the results")
    command_line.add_argument("--label", default="", help="suffix of the default result file's name")
    return command_line


def run_group(
    group: str, rows: Sequence[Row], options: argparse.Namespace, full: tuple[float, int]
) -> Path | None:
    """Measures the rows that the command line asks for, prints a table as it goes, and stores the results."""
    chosen = [row for row in rows if re.search(options.rows, row.name)]
    if options.list:
        print("\n".join(row.name for row in chosen))
        return None
    for row in chosen:
        if options.by_cpu and row.cpu_metric:
            row.metrics = (row.cpu_metric,)
    effort = effort_of(options, full)
    asked_for = [name for name in options.loops.split(",") if name]
    missing = {name: package for name in asked_for if (package := loops.contender(name).missing_package())}
    for name, package in missing.items():
        report(f"{name}: left out, {package} is not installed")
    present = [name for name in asked_for if name not in missing]
    load = [machine.load()]
    for row in chosen:
        collect(row, present, effort)
        load.append(machine.load())
    path = options.out or default_path(group, effort, options.label)
    write(path, group, effort, chosen, load, present, sorted(missing))
    report(f"results: {path}")
    return path


def collect(row: Row, names: Sequence[str], effort: Effort) -> None:
    """All rounds of one row. A contender that fails once is out of the row: half a median is none."""
    contenders = [name for name in names if row.includes(name)]
    if row.has_limit:
        contenders.append(loops.LIMIT)
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    failures: dict[str, str] = {}
    for index in range(effort.rounds):
        turn = index % max(len(contenders), 1)
        for name in contenders[turn:] + contenders[:turn]:
            if name in failures:
                continue
            try:
                samples[name].append(row.sample(name, effort))
            except SampleFailed as error:
                failures[name] = str(error)
    for name in contenders:
        if name in failures:
            row.results[name] = {"error": failures[name]}
        elif samples[name]:
            row.results[name] = {key: [sample[key] for sample in samples[name]] for key in samples[name][0]}
    report(line_of(row))


def line_of(row: Row) -> str:
    cells = []
    for name, result in row.results.items():
        if "error" in result:
            cells.append(f"{name} failed ({str(result['error']).splitlines()[-1][:60]})")
            continue
        values = result[row.metrics[0].key]
        assert isinstance(values, list)
        cells.append(f"{name} {stats.human(stats.median(values))} ±{stats.spread(values) * 100:.0f}%")
    return f"{row.name} [{row.metrics[0].unit}]: " + ", ".join(cells)


def write(
    path: Path,
    group: str,
    effort: Effort,
    rows: Sequence[Row],
    load: list[float],
    names: list[str],
    missing: list[str],
) -> None:
    document = {
        "group": group,
        "effort": {"name": effort.name, "duration_s": effort.duration_s, "rounds": effort.rounds},
        "date": datetime.date.today().isoformat(),
        "machine": machine.facts(),
        "load": stats.median(load),
        "versions": loops.versions(names),
        "not_installed": missing,
        "rows": [
            {
                "name": row.name,
                "metrics": [dataclasses.asdict(metric) for metric in row.metrics],
                "results": row.results,
            }
            for row in rows
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def default_path(group: str, effort: Effort, label: str) -> Path:
    """Only a full run may replace published results, which each Python has a folder for."""
    name = f"{group}-{label}" if label else group
    if effort.name == "full":
        return RESULTS / machine.python_tag() / f"{name}.json"
    return CACHE / "results" / f"{name}-{effort.name}.json"


def run_child(module: str, arguments: Sequence[object], prefix: Sequence[str] = ()) -> Sample:
    """Runs a module of this package in a fresh interpreter and reads the JSON object it prints last."""
    command = [*prefix, sys.executable, "-m", module, *map(str, arguments)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SampleFailed(f"no result within {CHILD_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0 or not done.stdout.strip():
        raise SampleFailed(done.stderr.strip()[-2000:] or f"ended with status {done.returncode}")
    sample: Sample = json.loads(done.stdout.strip().splitlines()[-1])
    return sample


def report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
