"""Medians and spreads. A shared machine has outliers in one direction, so means are not used anywhere."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def spread(samples: Sequence[float]) -> float:
    """Interquartile range as a share of the median."""
    if len(samples) < 2 or median(samples) == 0:
        return 0.0
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / median(samples)


def human(value: float) -> str:
    """A number with about three digits: 1234567 is 1,235k and 12.345 is 12.3."""
    if value >= 1_000_000:
        return f"{value / 1000:,.0f}k"
    if value >= 10_000:
        return f"{value / 1000:.1f}k"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
