"""One picture of all throughput rows: a dot for each contender, placed by its ratio to uvloop."""

from __future__ import annotations

import math
from typing import Any
from xml.sax.saxutils import escape

from bench import loops, stats

GROUPS = {
    "micro": "scheduling",
    "echo": "servers",
    "tls": "TLS servers",
    "connect": "connections",
    "http": "HTTP",
}
COLOURS = {
    "zloop": "#d9480f",
    "asyncio": "#868e96",
    "uvloop": "#1864ab",
    "rloop": "#2b8a3e",
    "blazio": "#862e9c",
    "aiofastnet": "#a57c00",
    "C limit": "#212529",
}
LABEL_PX, CHART_PX, MARGIN_PX, LINE_PX = 380, 560, 24, 18
RATIO_MIN, RATIO_MAX = 1 / 8, 8
"""Both ends of the logarithmic axis; what lies beyond is drawn at the end."""
TEXT = 'font-family="system-ui, sans-serif" font-size="12"'


def ratios_to_reference(documents: dict[str, dict[str, Any]]) -> str:
    body: list[str] = []
    y = MARGIN_PX + LINE_PX
    top = y
    for group, title in GROUPS.items():
        rows = [row for row in documents.get(group, {}).get("rows", []) if row_ratios(row)]
        if not rows:
            continue
        body.append(text(MARGIN_PX, y, title, 'font-weight="bold"'))
        y += LINE_PX
        for row in rows:
            body.append(text(MARGIN_PX + 8, y, row["name"]))
            body += dots(row_ratios(row), y - 4)
            y += LINE_PX
        y += LINE_PX // 2
    height = y + MARGIN_PX
    width = LABEL_PX + CHART_PX + 2 * MARGIN_PX
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {TEXT}>'
    background = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, background, *legend(), *axis(top, y), *body, "</svg>", ""])


def row_ratios(row: dict[str, Any]) -> dict[str, float]:
    medians = {
        name: stats.median(result[row["metric"]])
        for name, result in row["results"].items()
        if "error" not in result
    }
    reference = medians.get(loops.REFERENCE)
    if not reference:
        return {}
    ratios = {name: value / reference for name, value in medians.items() if value > 0}
    return {name: 1 / ratio for name, ratio in ratios.items()} if row["lower_is_better"] else ratios


def place(ratio: float) -> float:
    share = math.log(min(max(ratio, RATIO_MIN), RATIO_MAX) / RATIO_MIN) / math.log(RATIO_MAX / RATIO_MIN)
    return MARGIN_PX + LABEL_PX + share * CHART_PX


def dots(found: dict[str, float], y: float) -> list[str]:
    """The subject last, so that it lies on top."""
    names = sorted(found, key=lambda name: name == loops.SUBJECT)
    return [
        f'<circle cx="{place(found[name]):.1f}" cy="{y}" r="{6 if name == loops.SUBJECT else 4}" '
        f'fill="{COLOURS.get(name, "#000000")}"><title>{escape(name)}: {found[name]:.2f}</title></circle>'
        for name in names
    ]


def axis(top: float, bottom: float) -> list[str]:
    lines = []
    ratio = RATIO_MIN
    while ratio <= RATIO_MAX:
        x = place(ratio)
        colour = "#1864ab" if ratio == 1 else "#dee2e6"
        lines.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="{colour}"/>')
        label = f"{ratio:g}x" if ratio >= 1 else f"1/{1 / ratio:g}"
        lines.append(text(x, top - 4, label, 'text-anchor="middle" fill="#495057"'))
        ratio *= 2
    return lines


def legend() -> list[str]:
    parts = []
    x = float(MARGIN_PX)
    for name, colour in COLOURS.items():
        parts.append(f'<circle cx="{x}" cy="{MARGIN_PX - 8}" r="5" fill="{colour}"/>')
        parts.append(text(x + 9, MARGIN_PX - 4, name))
        x += 30 + 7.5 * len(name)
    parts.append(text(x, MARGIN_PX - 4, f"speed, {loops.REFERENCE} = 1"))
    return parts


def text(x: float, y: float, content: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(content)}</text>'
