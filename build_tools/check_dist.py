"""Build the source distribution, build a wheel from it alone, and check that both hold what they should.

A file that git does not track, a library of another interpreter or a forgotten source file would otherwise be
noticed by a user.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "python/zloop", "build_tools", "tests")
FILES = (
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "build.zig",
    "hatch_build.py",
    "pyproject.toml",
)


def build(kind: str, source: Path, destination: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(destination)]
    subprocess.run(command, check=True, cwd=source, stdout=subprocess.DEVNULL)
    (made,) = destination.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made


def present(*paths: str) -> set[str]:
    """The files of the clone that the next commit would hold, below the given paths."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *paths]
    listing = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    return {name for name in listing.splitlines() if (ROOT / name).is_file()}


def differences(what: str, found: set[str], expected: set[str]) -> list[str]:
    lines = [f"{what}: {name} should not be there" for name in sorted(found - expected)]
    return lines + [f"{what}: {name} is missing" for name in sorted(expected - found)]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        sdist = build("sdist", ROOT, scratch)
        with tarfile.open(sdist) as tar:
            found = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
            tar.extractall(scratch / "unpacked", filter="data")
        problems = differences("source distribution", found, present(*FOLDERS, *FILES) | {"PKG-INFO"})

        (unpacked,) = (scratch / "unpacked").iterdir()
        wheel = build("wheel", unpacked, scratch / "wheel")
        with zipfile.ZipFile(wheel) as archive:
            names = {name for name in archive.namelist() if ".dist-info/" not in name}
        engines = {name for name in names if name.endswith(".so")}
        package = {name.removeprefix("python/") for name in present("python/zloop")}
        problems += differences("wheel", names - engines, package)
        if len(engines) != 1:
            problems.append(f"wheel: one engine expected, found {sorted(engines)}")
    print("\n".join(problems) or f"{sdist.name} and {wheel.name} hold what they should")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
