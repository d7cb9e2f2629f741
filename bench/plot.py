"""Two pictures: all rows, a dot for each contender, placed by its ratio to uvloop; and six rows as bars."""

from __future__ import annotations

import math
import textwrap
from typing import Any
from xml.sax.saxutils import escape

from bench import loops, stats

GROUPS = {
    "micro": "scheduling",
    "echo": "servers",
    "tls": "TLS servers",
    "connect": "connections",
    "http": "HTTP",
    "latency": "latency",
}
COLOURS = {
    "zloop": "#d9480f",
    "asyncio": "#868e96",
    "uvloop": "#1864ab",
    "rloop": "#2b8a3e",
    "blazio": "#862e9c",
    "zuvloop": "#0b7285",
    "rsloop": "#a61e4d",
    "talyn": "#5f3dc4",
    "aiofastnet": "#a57c00",
    "C limit": "#212529",
}
LABEL_PX, CHART_PX, MARGIN_PX, LINE_PX = 268, 340, 20, 18
"""Narrow enough for a phone to show most of it at once."""
LABEL_CHARS = 42
RATIO_MIN, RATIO_MAX = 1 / 8, 8
"""Both ends of the logarithmic axis; what lies beyond is drawn at the end."""
TEXT = 'font-family="system-ui, sans-serif" font-size="12"'


def ratios_to_reference(documents: dict[str, dict[str, Any]]) -> str:
    body: list[str] = []
    y = MARGIN_PX + 2 * LINE_PX
    top = y
    for group, title in GROUPS.items():
        rows = [row for row in documents.get(group, {}).get("rows", []) if row_ratios(row)]
        if not rows:
            continue
        body.append(text(MARGIN_PX, y, title, 'font-weight="bold"'))
        y += LINE_PX
        for row in rows:
            lines = textwrap.wrap(row["name"], LABEL_CHARS)
            body += [text(MARGIN_PX + 8, y + n * LINE_PX, line) for n, line in enumerate(lines)]
            body += dots(row_ratios(row), y - 4 + (len(lines) - 1) * LINE_PX / 2)
            y += LINE_PX * len(lines)
        y += LINE_PX // 2
    height = y
    width = LABEL_PX + CHART_PX + 2 * MARGIN_PX
    size = f'width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width} {height}" {TEXT}>'
    background = f'<rect {size} fill="white"/>'
    bottom = y - LINE_PX
    return "\n".join([head, background, *legend(), *axis(top, bottom), *body, "</svg>", ""])


SUMMARY = (
    ("http", "uvicorn, plain ASGI, 32 connections", "uvicorn"),
    ("http", "uvicorn, FastAPI, 32 connections", "FastAPI"),
    ("http", "aiohttp server, 32 connections", "aiohttp server"),
    ("echo", "tcp proto 1 KiB, 10 connections", "TCP echo, 1 KiB"),
    ("tls", "tls proto 1 KiB, 10 connections", "TLS echo, 1 KiB"),
    ("micro", "call_soon chain", "call_soon()"),
)
"""Group, row, and what a newcomer calls it."""
BAR_PX, BAR_GAP_PX, BARS_PX = 13, 2, 300
SUMMARY_LABEL_PX = 130


def summary(documents: dict[str, dict[str, Any]]) -> str:
    """Operations a second of zloop, uvloop, asyncio and the best of the others, as bars.

    A row without results is left out.
    """
    body: list[str] = []
    y = MARGIN_PX + LINE_PX
    for group, name, label in SUMMARY:
        row = next((row for row in documents.get(group, {}).get("rows", []) if row["name"] == name), None)
        bars = summary_bars(row) if row else []
        if not bars:
            continue
        longest = max(value for _, value in bars)
        middle = y + len(bars) * (BAR_PX + BAR_GAP_PX) / 2
        body.append(text(MARGIN_PX, middle, label, 'font-weight="bold" class="ink"'))
        for contender, value in bars:
            width = BARS_PX * value / longest
            colour = COLOURS.get(contender, "#868e96")
            body.append(
                f'<rect x="{SUMMARY_LABEL_PX}" y="{y}" width="{width:.1f}" height="{BAR_PX}" fill="{colour}">'
                f"<title>{escape(contender)}: {value:,.0f} a second</title></rect>"
            )
            words = f"{contender} {stats.human(value)}/s"
            body.append(text(SUMMARY_LABEL_PX + width + 6, y + BAR_PX - 2, words, 'class="ink"'))
            y += BAR_PX + BAR_GAP_PX
        y += LINE_PX // 2
    width_px = SUMMARY_LABEL_PX + BARS_PX + 140
    size = f'width="{width_px}" height="{y}"'
    style = (
        "<style>.ink { fill: #212529 } @media (prefers-color-scheme: dark) { .ink { fill: #e9ecef } }</style>"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width_px} {y}" {TEXT}>'
    title = text(MARGIN_PX, MARGIN_PX, "Operations a second, longer is better", 'class="ink"')
    return "\n".join([head, style, title, *body, "</svg>", ""])


def summary_bars(row: dict[str, Any]) -> list[tuple[str, float]]:
    """In a fixed order: the subject, the reference, the control, and the best of the others."""
    rates = {
        name: stats.median(result["rate"])
        for name, result in row["results"].items()
        if "rate" in result and name != loops.LIMIT
    }
    chosen = [name for name in (loops.SUBJECT, loops.REFERENCE, loops.CONTROL) if name in rates]
    others = {name: rate for name, rate in rates.items() if name not in chosen}
    if others:
        chosen.insert(2, max(others, key=lambda name: others[name]))
    return [(name, rates[name]) for name in chosen]


def row_ratios(row: dict[str, Any]) -> dict[str, float]:
    """By what is published first of the row."""
    metric = row["metrics"][0]
    medians = {
        name: stats.median(result[metric["key"]])
        for name, result in row["results"].items()
        if "error" not in result
    }
    reference = medians.get(loops.REFERENCE)
    if not reference:
        return {}
    ratios = {name: value / reference for name, value in medians.items() if value > 0}
    return {name: 1 / ratio for name, ratio in ratios.items()} if metric["lower_is_better"] else ratios


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
        x += 28 + 7.5 * len(name)
    parts.append(text(MARGIN_PX, MARGIN_PX - 4 + LINE_PX, f"{loops.REFERENCE} = 1, to the right is better"))
    return parts


def text(x: float, y: float, content: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(content)}</text>'
