"""A run judged against its control, the same suite on asyncio, and against the differences that are known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from harness.expectations import Difference
from harness.results import CaseResult, RunResult

MISSING = CaseResult("missing", 0, 0, "the test exists on asyncio and was not found here")


@dataclass
class Verdict:
    passed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Skipped on asyncio, too."""
    expected: dict[str, str] = field(default_factory=dict)
    """Known differences: test and reason."""
    control_fails: list[str] = field(default_factory=list)
    """Does not pass here and does not pass on asyncio."""
    beyond: list[str] = field(default_factory=list)
    """Passes here and does not pass on asyncio; also among `passed`."""
    differs: dict[str, CaseResult] = field(default_factory=dict)
    """Does not pass here, passes on asyncio, and is not a known difference."""
    passes: dict[str, str] = field(default_factory=dict)
    """A known difference that is gone: test and reason."""
    stale: list[str] = field(default_factory=list)
    """Patterns of known differences that fit no test."""

    @property
    def clean(self) -> bool:
        return not (self.differs or self.passes or self.stale)

    def as_json(self) -> dict[str, Any]:
        return {
            "clean": self.clean,
            "passed": len(self.passed),
            "skipped": len(self.skipped),
            "expected": self.expected,
            "control_fails": self.control_fails,
            "beyond": self.beyond,
            "differs": {name: test.outcome for name, test in self.differs.items()},
            "passes": self.passes,
            "stale": self.stale,
        }


def judge(run: RunResult, control: RunResult, differences: Iterable[Difference]) -> Verdict:
    """`differences` are those that apply to the run's suite, version and interpreter."""
    differences = list(differences)
    verdict = Verdict()
    here, there = run.tests, control.tests
    names = list(here)
    if not run.partial:
        names += [
            name
            for name, test in there.items()
            if name not in here and (test.good or test.outcome == "skipped")
        ]
        verdict.stale = [
            pattern
            for difference in differences
            for pattern in difference.tests
            if not any(Difference(difference.suite, (pattern,), "").covers(name) for name in names)
        ]
    for name in names:
        _place(verdict, name, here.get(name, MISSING), there.get(name), differences)
    return verdict


def _place(
    verdict: Verdict,
    name: str,
    test: CaseResult,
    control: CaseResult | None,
    differences: list[Difference],
) -> None:
    known = next((difference for difference in differences if difference.covers(name)), None)
    if test.good:
        if known is not None:
            verdict.passes[name] = known.reason
        else:
            verdict.passed.append(name)
        if control is not None and not control.good and control.outcome != "skipped":
            verdict.beyond.append(name)
    elif control is not None and test.outcome == control.outcome == "skipped":
        verdict.skipped.append(name)
    elif control is not None and not control.good and control.outcome != "skipped":
        verdict.control_fails.append(name)
    elif known is not None and known.outcome in ("", test.outcome):
        verdict.expected[name] = known.reason
    else:
        verdict.differs[name] = test
