"""What a run found, in memory and as one JSON file for each suite, version, interpreter and loop."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
OUTCOMES = ("passed", "xfailed", "skipped", "failed", "error", "crash", "timeout", "not run")
GOOD = ("passed", "xfailed")


@dataclass
class CaseResult:
    outcome: str
    seconds: float
    loops: int
    """How many loops under test were made while the test ran."""
    detail: str = ""

    @property
    def good(self) -> bool:
        """It passed, or failed as the suite itself expects."""
        return self.outcome in GOOD


@dataclass
class ModuleResult:
    tests: dict[str, CaseResult]
    loops: int
    seconds: float

    @property
    def counts(self) -> Counter[str]:
        return Counter(test.outcome for test in self.tests.values())


@dataclass
class RunResult:
    suite: str
    version: str
    loop: str
    interpreter: dict[str, str]
    fingerprint: str
    modules: dict[str, ModuleResult] = field(default_factory=dict)
    verdict: dict[str, Any] | None = None
    """Counts and lists against the control and the expectations; None for a control run."""
    partial: bool = False
    """Only some tests were asked for."""

    @property
    def tests(self) -> dict[str, CaseResult]:
        return {name: test for module in self.modules.values() for name, test in module.tests.items()}

    @property
    def counts(self) -> Counter[str]:
        return Counter(test.outcome for test in self.tests.values())

    @property
    def file_name(self) -> str:
        loop = self.loop.replace(":", ".")
        return f"{self.suite}-{self.version}-cp{self.interpreter['tag']}-{loop}.json"

    def save(self, path: Path) -> None:
        modules = {
            name: {
                "loop_dependent": module.loops > 0,
                "loops": module.loops,
                "seconds": module.seconds,
                "counts": dict(module.counts),
                "tests": {test_name: _test_json(test) for test_name, test in module.tests.items()},
            }
            for name, module in self.modules.items()
        }
        data = {
            "schema": SCHEMA,
            "suite": self.suite,
            "version": self.version,
            "loop": self.loop,
            "interpreter": self.interpreter,
            "fingerprint": self.fingerprint,
            "partial": self.partial,
            "counts": dict(self.counts),
            "verdict": self.verdict,
            "modules": modules,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_text(json.dumps(data, indent=1) + "\n")
        unfinished.rename(path)


def load(path: Path) -> RunResult | None:
    """The stored run; None if it was stored in another schema."""
    data = json.loads(path.read_text())
    if data.get("schema") != SCHEMA:
        return None
    modules = {
        name: ModuleResult(
            {test: CaseResult(**values) for test, values in module["tests"].items()},
            module["loops"],
            module["seconds"],
        )
        for name, module in data["modules"].items()
    }
    return RunResult(
        suite=data["suite"],
        version=data["version"],
        loop=data["loop"],
        interpreter=data["interpreter"],
        fingerprint=data["fingerprint"],
        modules=modules,
        verdict=data["verdict"],
        partial=data["partial"],
    )


def _test_json(test: CaseResult) -> dict[str, Any]:
    data: dict[str, Any] = {"outcome": test.outcome, "seconds": test.seconds, "loops": test.loops}
    if test.outcome != "passed":
        data["detail"] = test.detail
    return data
