"""Virtual environments: one for each interpreter and set of requirements, made once and then left as it is.

What changes from run to run, the loop under test, never goes into them: see `loops`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness import cache
from harness.errors import checked
from harness.interpreters import Interpreter

REQUIREMENTS_ROOT = cache.CONFORMANCE_ROOT / "requirements"


def environment(interpreter: Interpreter, name: str) -> Path:
    """The Python of the environment that holds `requirements/<name>.txt`, made if need be."""
    requirements = REQUIREMENTS_ROOT / f"{name}.txt"
    content = cache.digest(requirements.read_bytes())[:6]
    path = cache.folder("venvs") / f"{name}-{interpreter.name}-{content}"
    python = path / "bin" / "python"
    # Scripts in an environment hold its absolute path: it is made in its final place, then marked whole.
    whole = path / ".whole"
    with cache.locked(path.name):
        if not whole.exists():
            shutil.rmtree(path, ignore_errors=True)
            checked([interpreter.executable, "-m", "venv", str(path)], what="making a virtual environment")
            pip_install(python, "--requirement", str(requirements))
            whole.touch()
    return python


def pip_install(python: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
    """Install by the pip of an environment."""
    checked(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments],
        what=f"installing {' '.join(arguments)}",
        env={**os.environ, **(env or {})},
    )
