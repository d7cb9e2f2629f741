"""The loop under test, as a folder for PYTHONPATH.

The loop is not installed into a suite's environment: environments are kept and shared between runs, and two
runs may test two states of the source at the same time. A folder is named after its content, and stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tomllib

from harness import cache
from harness.environments import REQUIREMENTS_ROOT, environment, pip_install
from harness.errors import ConformanceError, checked
from harness.interpreters import Interpreter

CONTROL = "asyncio:SelectorEventLoop"
UNCHANGED = "default"

# What a wheel of zloop is made from, relative to the repository.
_SOURCES = ("src", "python", "build_tools", "hatch_build.py", "pyproject.toml", "README.md", "LICENSE")
_SOURCE_SUFFIXES_IGNORED = (".so", ".pyc")


@dataclass(frozen=True)
class Loop:
    spec: str
    path: Path | None
    """The folder that must be on the path for `spec` to be importable; None when it is importable anyway."""

    @property
    def package(self) -> str:
        return self.spec.partition(":")[0]

    @property
    def title(self) -> str:
        return self.spec.replace(":", ".")


def prepare(spec: str, interpreter: Interpreter, *, from_environment: bool) -> Loop:
    """Make the loop importable for `interpreter`: built from the repository, installed, or as it is there."""
    package = spec.partition(":")[0]
    if spec == UNCHANGED or package == "asyncio":
        return Loop(spec, None)
    if from_environment:
        return Loop(spec, _borrowed(package, interpreter))
    if package == "zloop":
        return Loop(spec, _zloop(interpreter))
    requirements = REQUIREMENTS_ROOT / f"loop-{package}.txt"
    if not requirements.exists():
        raise ConformanceError(
            f"{requirements.name} does not exist: name the loop's package there, or use --zloop-from-env"
        )
    return Loop(spec, _installed(package, requirements, interpreter))


def _borrowed(package: str, interpreter: Interpreter) -> Path:
    """A folder with nothing but a link to the package as the interpreter has it.

    The suites run in environments of their own; the link brings the package there without the rest of the
    folder that it is installed in.
    """
    script = f"import os, {package}; print(os.path.dirname(os.path.abspath({package}.__file__)))"
    found = checked([interpreter.executable, "-c", script], what=f"finding {package}").strip()
    path = cache.folder("loops", f"link-{interpreter.name}-{cache.digest(found)}")
    link = path / package
    if not link.is_symlink():
        link.symlink_to(found)
    return path


def _installed(package: str, requirements: Path, interpreter: Interpreter) -> Path:
    def make(place: Path) -> None:
        python = environment(interpreter, "build")
        pip_install(python, "--target", str(place), "--requirement", str(requirements))

    name = f"{package}-{interpreter.name}-{cache.digest(requirements.read_bytes())[:6]}"
    return cache.made_once(cache.folder("loops") / name, make)


def _zloop(interpreter: Interpreter) -> Path:
    def make(place: Path) -> None:
        python = environment(interpreter, "build")
        env = {"ZLOOP_ZIG": os.environ.get("ZLOOP_ZIG") or str(_zig(interpreter))}
        arguments = ("--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir")
        pip_install(python, *arguments, "--target", str(place), str(cache.REPOSITORY_ROOT), env=env)

    settings = [os.environ.get(name, "") for name in ("ZLOOP_BUILD_MODE", "ZLOOP_SYMBOLS")]
    content = cache.digest(*settings, *_source_parts())
    return cache.made_once(cache.folder("loops") / f"zloop-{interpreter.name}-{content}", make)


def _source_parts() -> Iterator[bytes | str]:
    for name in _SOURCES:
        top = cache.REPOSITORY_ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.suffix not in _SOURCE_SUFFIXES_IGNORED:
                yield str(path.relative_to(cache.REPOSITORY_ROOT))
                yield path.read_bytes()


def _zig(interpreter: Interpreter) -> Path:
    """The Zig compiler, unpacked once: at 400 MB it is too large to be in each environment that builds."""
    project = tomllib.loads((cache.REPOSITORY_ROOT / "pyproject.toml").read_text())
    (requirement,) = (line for line in project["build-system"]["requires"] if line.startswith("ziglang"))

    def make(place: Path) -> None:
        pip_install(environment(interpreter, "build"), "--no-deps", "--target", str(place), requirement)

    path = cache.made_once(cache.folder("loops") / requirement.replace("==", "-"), make)
    return path / "ziglang" / "zig"
