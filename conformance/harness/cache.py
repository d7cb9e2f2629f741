"""The folder where everything downloaded or made is kept: `.cache/conformance`, or as the environment says.

Each thing in it is made in a temporary place and renamed when it is whole, so an interrupted run leaves
nothing that a later one would take for complete. A lock for each thing lets several runs share the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

ENVIRONMENT_NAME = "ZLOOP_CONFORMANCE_CACHE"
CONFORMANCE_ROOT = Path(__file__).resolve().parent.parent
REPOSITORY_ROOT = CONFORMANCE_ROOT.parent


def root() -> Path:
    path = Path(os.environ.get(ENVIRONMENT_NAME) or REPOSITORY_ROOT / ".cache" / "conformance").resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


def folder(*parts: str) -> Path:
    path = root().joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def digest(*parts: bytes | str) -> str:
    """A short name for content: equal parts give equal names."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:12]


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    with open(folder("locks") / name, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """The folder `path`, filled by `make` the first time; `make` gets a place to work that becomes `path`."""
    with locked(f"{path.parent.name}-{path.name}"):
        if not path.exists():
            unfinished = path.with_name(f".{path.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            make(unfinished)
            unfinished.rename(path)
    return path
