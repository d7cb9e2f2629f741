"""What stops a run before there is anything to judge."""

from __future__ import annotations

import subprocess
from pathlib import Path

OUTPUT_CHARS_MAX = 4000


class ConformanceError(Exception):
    """The run cannot go on; the message is what the user needs to read."""


def checked(
    command: list[str], *, what: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> str:
    """Run a command of the preparation and return its output; its failure ends the run with that output."""
    result = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        output = (result.stdout + result.stderr)[-OUTPUT_CHARS_MAX:]
        raise ConformanceError(
            f"{what} failed with status {result.returncode}: {' '.join(command)}\n{output}"
        )
    return result.stdout
