"""Renders the stored results: the one source of every published number.

    python -m bench.report                                  prints all tables
    python -m bench.report --write docs/performance.md      replaces what stands between the markers of a page
    python -m bench.report --plot docs/performance.svg      draws the ratios to uvloop
    python -m bench.report --summary docs/assets/speed.svg  draws six rows as bars
    python -m bench.report --write PAGE --check             fails if the page is not up to date

The markers of a table are `<!-- bench:PYTHON/GROUP -->` and `<!-- /bench:PYTHON/GROUP -->`; `losses` lists
the rows of the page's other tables in which a peer is better, and `plot` shows the picture.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import loops, machine, plot, stats
from bench.paths import RESULTS

ORDER = (*loops.CONTENDERS, loops.LIMIT)
MARKED = re.compile(r"(<!-- bench:(?P<group>[\w./-]+) -->\n).*?(<!-- /bench:(?P=group) -->)", re.DOTALL)
PICTURE = f"""<div class="wide" markdown>
![Every row of the tables below by its ratio to {loops.REFERENCE}: to the right is better](performance.svg)
</div>"""
FAILED = "fails"
ABSENT = ""


def load(folder: Path) -> dict[str, dict[str, Any]]:
    documents = {}
    for path in sorted(folder.glob("*/*.json")):
        documents[f"{path.parent.name}/{path.stem}"] = json.loads(path.read_text(encoding="utf-8"))
    return documents


def of_python(documents: dict[str, dict[str, Any]], tag: str | None) -> dict[str, dict[str, Any]]:
    """The results of one Python, by group."""
    tags = {name.partition("/")[0] for name in documents}
    chosen = tag or max(tags, key=lambda text: [int(part) for part in re.findall(r"\d+", text)], default="")
    return {
        name.partition("/")[2]: document
        for name, document in documents.items()
        if name.partition("/")[0] == chosen
    }


def table(document: dict[str, Any]) -> str:
    """One markdown table with a line on how it was made."""
    contenders = [name for name in ORDER if any(name in row["results"] for row in document["rows"])]
    contenders += sorted({name for row in document["rows"] for name in row["results"]} - set(contenders))
    has_ratios = loops.SUBJECT in contenders
    header = ["", *contenders]
    if has_ratios:
        header += [f"against {loops.REFERENCE}", "against the best peer"]
    lines = [cells(header), "|---|" + "---:|" * (len(header) - 1)]
    for unit in dict.fromkeys(metric["unit"] for row in document["rows"] for metric in row["metrics"]):
        lines.append(cells([f"*{unit}*", *[""] * (len(header) - 1)]))
        for row in document["rows"]:
            for metric in row["metrics"]:
                if metric["unit"] == unit:
                    values = [cell(row, metric, name) for name in contenders]
                    lines.append(cells([row["name"], *values, *(ratios(row, metric) if has_ratios else [])]))
    return "\n".join([*lines, "", footnote(document)])


def cells(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def cell(row: dict[str, Any], metric: dict[str, Any], name: str) -> str:
    """The median and the spread."""
    result = row["results"].get(name)
    if result is None:
        return ABSENT
    if "error" in result:
        return FAILED
    samples = result[metric["key"]]
    text = stats.human(stats.median(samples))
    return f"{text} ±{stats.spread(samples) * 100:.0f}%" if len(samples) > 1 else text


def ratios(row: dict[str, Any], metric: dict[str, Any]) -> list[str]:
    """How many times better the subject is than the reference and than the best of the peers."""
    key = metric["key"]
    subject = middle(row, key, loops.SUBJECT)
    peers = [
        value for name in row["results"] if is_peer(name) and (value := middle(row, key, name)) is not None
    ]
    best = (min if metric["lower_is_better"] else max)(peers, default=None)
    return [advantage(metric, subject, other) for other in (middle(row, key, loops.REFERENCE), best)]


def advantage(metric: dict[str, Any], subject: float | None, other: float | None) -> str:
    if not subject or not other:
        return ""
    return f"{(other / subject if metric['lower_is_better'] else subject / other):.2f}"


def is_peer(name: str) -> bool:
    return name not in (loops.SUBJECT, loops.LIMIT)


def middle(row: dict[str, Any], key: str, name: str) -> float | None:
    result = row["results"].get(name)
    return None if result is None or "error" in result else stats.median(result[key])


def losses(documents: dict[str, dict[str, Any]]) -> str:
    """The rows in which the best peer's median is better than the subject's, the worst first."""
    found = []
    for group, document in documents.items():
        for row in document["rows"]:
            for metric in row["metrics"]:
                ratio = ratios(row, metric)[1]
                if ratio and float(ratio) < 1:
                    found.append((float(ratio), cells([group, row["name"], metric["unit"], ratio])))
    if not found:
        return "There is no such row."
    return "\n".join(
        [
            cells(["", "row", "", "against the best peer"]),
            "|---|---|---|---:|",
            *(line for _, line in sorted(found)),
        ]
    )


def footnote(document: dict[str, Any]) -> str:
    effort = document["effort"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(document["versions"].items()))
    absent = ", ".join(document["not_installed"])
    notes = [f" Ratios above 1: {loops.SUBJECT} is better."] if loops.SUBJECT in document["versions"] else []
    notes += [f" Not installed: {absent}."] if absent else []
    return (
        f"{machine.summary(document['machine'])}; {versions}. Median and interquartile range of "
        f"{effort['rounds']} interleaved rounds of {effort['duration_s']:g} s, {document['date']}, "
        f"load average {document['load']:.1f}." + "".join(notes)
    )


def rendered(page: str, documents: dict[str, dict[str, Any]]) -> str:
    """The page with every marked table replaced; a marker without results is an error, not an empty table."""
    tables = [match["group"] for match in MARKED.finditer(page)]

    def replace(match: re.Match[str]) -> str:
        group = match["group"]
        if group == "plot":
            content = PICTURE
        elif group == "losses":
            content = losses({name: documents[name] for name in tables if name in documents})
        elif group in documents:
            content = table(documents[group])
        else:
            raise SystemExit(f"the page asks for {group}, and there are no results for it")
        return f"{match[1]}\n{content}\n\n{match[3]}"

    return MARKED.sub(replace, page)


def main(arguments: list[str] | None = None) -> int:
    command_line = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command_line.add_argument("--results", type=Path, default=RESULTS, help="folder of result files")
    command_line.add_argument("--write", type=Path, help="page whose marked tables are replaced")
    command_line.add_argument("--plot", type=Path, help="where to draw the ratios")
    command_line.add_argument("--summary", type=Path, help="where to draw the six rows of the front page")
    command_line.add_argument("--python", help="whose results are drawn (default: the newest that has some)")
    command_line.add_argument("--check", action="store_true", help="change nothing, fail if something would")
    options = command_line.parse_args(arguments)
    documents = load(options.results)
    outputs: dict[Path, str] = {}
    if options.write:
        outputs[options.write] = rendered(options.write.read_text(encoding="utf-8"), documents)
    drawn = of_python(documents, options.python)
    if options.plot:
        outputs[options.plot] = plot.ratios_to_reference(drawn)
    if options.summary:
        outputs[options.summary] = plot.summary(drawn)
    if not outputs:
        for group, document in documents.items():
            print(f"## {group}\n\n{table(document)}\n")
    stale = [path for path, text in outputs.items() if not path.exists() or path.read_text("utf-8") != text]
    if options.check:
        print("\n".join(f"{path} is not up to date" for path in stale))
        return 1 if stale else 0
    for path in stale:
        path.write_text(outputs[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
