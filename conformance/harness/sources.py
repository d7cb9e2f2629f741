"""Other projects' source distributions: fetched by pip at a pinned version, checked, unpacked in part.

Only the tests and what they need beside them are kept. The package itself is left out, so that what is tested
is the installed one.
"""

from __future__ import annotations

import fnmatch
import hashlib
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from harness import cache
from harness.errors import ConformanceError, checked


@dataclass(frozen=True)
class SourceDistribution:
    name: str
    version: str
    sha256: str
    members: tuple[str, ...]
    """Shell patterns of the paths to unpack, relative to the distribution's top folder."""

    @property
    def title(self) -> str:
        return f"{self.name}-{self.version}"


def tree(source: SourceDistribution) -> Path:
    """The folder with the unpacked part of the source distribution."""

    def make(place: Path) -> None:
        _unpack(_archive(source), source, place)

    name = f"{source.title}-{cache.digest(source.sha256, *source.members)[:6]}"
    return cache.made_once(cache.folder("src") / name, make)


def _archive(source: SourceDistribution) -> Path:
    def make(place: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", source.name]
        checked(
            [*pip, "--dest", str(place), f"{source.name}=={source.version}"],
            what=f"fetching {source.title}",
        )

    folder = cache.made_once(cache.folder("sdist") / source.title, make)
    (archive,) = folder.glob("*.tar.gz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != source.sha256:
        raise ConformanceError(f"{archive.name} has the hash {found}; {source.sha256} is pinned")
    return archive


def _unpack(archive: Path, source: SourceDistribution, place: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            _, _, inner = member.name.partition("/")
            if any(fnmatch.fnmatchcase(inner, pattern) for pattern in source.members):
                member.name = inner
                tar.extract(member, place, filter="data")
