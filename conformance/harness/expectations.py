"""The differences that are known: `expectations.toml`, read strictly."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

import tomllib

from harness.errors import ConformanceError
from harness.interpreters import Interpreter
from harness.results import OUTCOMES

_KEYS_NEEDED = {"suite", "tests", "reason"}
_KEYS = _KEYS_NEEDED | {"python", "version", "build", "outcome"}
_BUILDS = ("debug", "free-threaded", "gil")
_CONDITION = re.compile(r"(>=|<=|==|!=|<|>)(\d+)\.(\d+)")


@dataclass(frozen=True)
class Difference:
    suite: str
    tests: tuple[str, ...]
    reason: str
    python: str = ""
    version: str = ""
    build: str = ""
    outcome: str = ""

    def applies(self, suite: str, version: str, interpreter: Interpreter) -> bool:
        if suite != self.suite or (self.version and version != self.version):
            return False
        if self.build == "debug" and "d" not in interpreter.tag:
            return False
        if (
            self.build
            and self.build != "debug"
            and (self.build == "free-threaded") != interpreter.free_threaded
        ):
            return False
        return all(
            _compare(interpreter.version_info, operator, (int(major), int(minor)))
            for operator, major, minor in _CONDITION.findall(self.python)
        )

    def covers(self, test: str) -> bool:
        return any(fnmatch.fnmatchcase(test, pattern) for pattern in self.tests)


def _compare(left: tuple[int, ...], operator: str, right: tuple[int, ...]) -> bool:
    return {
        ">=": left >= right,
        "<=": left <= right,
        "==": left == right,
        "!=": left != right,
        "<": left < right,
        ">": left > right,
    }[operator]


def load(path: Path, loop_package: str) -> list[Difference]:
    """All entries of the file, or none if they are about another loop."""
    data = tomllib.loads(path.read_text())
    unknown = set(data) - {"loop", "difference"}
    if unknown or "loop" not in data:
        raise ConformanceError(f"{path.name}: expected the keys loop and difference, found {sorted(data)}")
    differences = [_read(path, entry) for entry in data.get("difference", [])]
    return differences if loop_package == data["loop"] else []


def _read(path: Path, entry: dict[str, object]) -> Difference:
    where = f"{path.name}: {entry}"
    if not _KEYS_NEEDED <= set(entry) <= _KEYS:
        raise ConformanceError(f"{where}: needs {sorted(_KEYS_NEEDED)} and knows {sorted(_KEYS)}")
    tests = entry["tests"]
    if not isinstance(tests, list) or not tests:
        raise ConformanceError(f"{where}: tests is a list of patterns")
    values = {key: str(value).strip() for key, value in entry.items() if key != "tests"}
    if not values["reason"]:
        raise ConformanceError(f"{where}: the reason is empty")
    python = values.get("python", "")
    if python and not all(_CONDITION.fullmatch(part.strip()) for part in python.split(",")):
        raise ConformanceError(f"{where}: python is a list of conditions such as >=3.12,<3.14")
    if values.get("build", _BUILDS[0]) not in _BUILDS:
        raise ConformanceError(f"{where}: build is one of {_BUILDS}")
    if values.get("outcome", OUTCOMES[0]) not in OUTCOMES:
        raise ConformanceError(f"{where}: outcome is one of {OUTCOMES}")
    return Difference(tests=tuple(map(str, tests)), **values)
