"""The order a child process gets from the runner: one JSON file, named in the environment.

It is in the environment rather than on the command line because tests start Python processes of their own,
and the stand-in for uvloop must know in those, too, which loop is under test.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

ENVIRONMENT_NAME = "ZLOOP_CONFORMANCE_JOB"


@dataclass
class Job:
    loop: str
    """The factory of the loop under test, `module:callable`; `default` leaves asyncio as it is."""
    events: str
    """The file to which what happens is appended, one JSON object a line."""
    target: str
    """What to run: a unittest module's name or a pytest file."""
    skip: list[str] = field(default_factory=list)
    """Tests that an earlier process of the same module has already run."""
    only: list[str] | None = None
    """Shell patterns; with them, tests that match none are left out."""
    exclude: list[str] = field(default_factory=list)
    """Shell patterns of tests that are never run, because they are about another loop or the network."""
    options: dict[str, Any] = field(default_factory=dict)
    """What only one kind of child understands."""


def load() -> Job:
    with open(os.environ[ENVIRONMENT_NAME], encoding="utf-8") as file:
        return Job(**json.load(file))
