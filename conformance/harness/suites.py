"""The suites: which there are, at which version, and how one module of each is started."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import cache, environments, hosts, sources
from harness.errors import ConformanceError
from harness.interpreters import Interpreter
from harness.loops import Loop
from harness.sources import SourceDistribution

CHILD_ROOT = cache.CONFORMANCE_ROOT / "child"
SHIMS_ROOT = cache.CONFORMANCE_ROOT / "shims"


@dataclass(frozen=True)
class Start:
    """How to start the processes that run a suite's modules."""

    command: list[str]
    """For unittest, the whole command; for pytest, the module's file is added."""
    path: list[str]
    """What goes on PYTHONPATH besides the child's own package and the loop."""
    directory: Path | None
    """Where to run; None for an empty temporary folder."""
    options: dict[str, Any]
    target_is_argument: bool


@dataclass(frozen=True, kw_only=True)
class Suite(ABC):
    name: str
    left_out: dict[str, str] = field(default_factory=dict)
    """Modules that are not run, each with the reason."""
    excluded: dict[str, str] = field(default_factory=dict)
    """Shell patterns of tests that are not run, each with the reason."""
    test_limit_s: float = 60
    """A process that says nothing for so long is killed and the test that was running is reported."""

    @abstractmethod
    def version(self, interpreter: Interpreter) -> str:
        """The version of the tests, as results and expectations name it."""

    @abstractmethod
    def modules(self, interpreter: Interpreter) -> list[str]:
        """The modules to run, in the order in which they are listed."""

    @abstractmethod
    def start(self, interpreter: Interpreter, loop: Loop) -> Start:
        """Prepare what is needed and say how to start a module."""

    @abstractmethod
    def target(self, module: str) -> str:
        """What the child is to load for the module."""

    def fingerprint(self, interpreter: Interpreter) -> str:
        """Equal for two runs that can be compared: same tests, same requirements, same `localhost`."""
        requirements = environments.REQUIREMENTS_ROOT / f"{self.name}.txt"
        content = requirements.read_bytes() if requirements.exists() else b""
        rules = [*self.left_out, *self.excluded, "hosts" if hosts.command_prefix() else ""]
        return cache.digest(self.version(interpreter), interpreter.name, content, *rules)


@dataclass(frozen=True, kw_only=True)
class CPythonSuite(Suite):
    """`test.test_asyncio` of the interpreter itself."""

    tests: Path | None = None
    """The folder that contains `test_asyncio`, where it is not the interpreter's own."""

    def version(self, interpreter: Interpreter) -> str:
        return interpreter.version

    def modules(self, interpreter: Interpreter) -> list[str]:
        return _listed(self._package(interpreter) / "test_asyncio", self.left_out)

    def start(self, interpreter: Interpreter, loop: Loop) -> Start:
        # The warning switches are those of CPython's own test runner.
        flags = ["-X", "faulthandler", "-W", "default", "-bb"]
        package = self._package(interpreter)
        return Start(
            command=[interpreter.executable, *flags, "-m", "conformance_child.unittest_runner"],
            path=[] if str(package) == interpreter.test_package else [str(package.parent)],
            directory=None,
            options={"cpython": True, "prefix": "test.test_asyncio."},
            target_is_argument=False,
        )

    def target(self, module: str) -> str:
        return f"test.test_asyncio.{module}"

    def _package(self, interpreter: Interpreter) -> Path:
        """The folder of the package `test`, complete with `test_asyncio`."""
        own = Path(interpreter.test_package or os.devnull)
        fetched = cache.root() / "cpython-tests" / ".".join(map(str, interpreter.version_info))
        for place in (self.tests, own, fetched):
            if place and (place / "test_asyncio" / "__init__.py").exists():
                return own if place == own else _merged(own, place)
        raise ConformanceError(
            f"CPython {interpreter.version} is installed without its tests: give the folder that contains "
            "test_asyncio with --cpython-tests, or see conformance/README.md"
        )


def _merged(own: Path, tests: Path) -> Path:
    """A package `test` with the interpreter's own support modules and, from elsewhere, the tests.

    A folder rather than a change to `test.__path__`: processes that tests start import from it, too.
    """

    def make(place: Path) -> None:
        package = place / "test"
        package.mkdir()
        for source in (own, tests):
            for entry in source.iterdir() if source.is_dir() else ():
                if entry.name != "__pycache__" and not (package / entry.name).exists():
                    (package / entry.name).symlink_to(entry)

    return cache.made_once(cache.folder("merged-tests") / cache.digest(str(own), str(tests)), make) / "test"


@dataclass(frozen=True, kw_only=True)
class SourceSuite(Suite):
    """A suite from a source distribution."""

    source: SourceDistribution

    def version(self, interpreter: Interpreter) -> str:
        return self.source.version

    def modules(self, interpreter: Interpreter) -> list[str]:
        return _listed(sources.tree(self.source) / "tests", self.left_out)


@dataclass(frozen=True, kw_only=True)
class UvloopSuite(SourceSuite):
    """uvloop's tests. Its UV classes make the loop under test through a stand-in for uvloop, its AIO classes
    through asyncio's names."""

    def start(self, interpreter: Interpreter, loop: Loop) -> Start:
        tree = sources.tree(self.source)
        python = environments.environment(interpreter, self.name)
        return Start(
            command=[str(python), "-X", "faulthandler", "-m", "conformance_child.unittest_runner"],
            path=[] if loop.package == "uvloop" else [str(SHIMS_ROOT)],
            directory=None,
            options={"tree": str(tree), "path": [str(tree / "tests")]},
            target_is_argument=False,
        )

    def target(self, module: str) -> str:
        return module


@dataclass(frozen=True, kw_only=True)
class PytestSuite(SourceSuite):
    arguments: tuple[str, ...] = ()

    def start(self, interpreter: Interpreter, loop: Loop) -> Start:
        python = environments.environment(interpreter, self.name)
        command = [str(python), "-X", "faulthandler", "-m", "pytest", "-p", "conformance_child.pytest_plugin"]
        return Start(
            command=[*command, "-p", "no:cacheprovider", "--tb=short", *self.arguments],
            path=[],
            directory=sources.tree(self.source),
            options={},
            target_is_argument=True,
        )

    def target(self, module: str) -> str:
        return f"tests/{module}.py"


def _listed(place: Path, left_out: dict[str, str]) -> list[str]:
    found = []
    for path in sorted(place.rglob("test_*.py")):
        name = str(path.relative_to(place).with_suffix(""))
        if not any(re.fullmatch(pattern, name) for pattern in left_out):
            found.append(name)
    return found


_OTHER_BACKENDS = {
    "*asyncio+uvloop*": "runs on uvloop by name",
    "*[trio*": "runs on trio",
    "*-trio*": "runs on trio",
}


def suites(cpython_tests: Path | None = None) -> dict[str, Suite]:
    every: list[Suite] = [
        CPythonSuite(
            name="cpython",
            tests=cpython_tests,
            left_out={"test_windows_.*": "Windows only"},
        ),
        UvloopSuite(
            name="uvloop",
            # Several of its tests hang on asyncio, and none that ends takes half as long.
            test_limit_s=25,
            source=SourceDistribution(
                name="uvloop",
                version="0.23.0",
                sha256="28d160f51ab4da3b187063652e643dea6831072add4adc1e6d62afbe73b6be27",
                members=("tests/*", "uvloop/_testbase.py"),
            ),
            left_out={
                "test_cython": "a coroutine compiled into uvloop",
                "test_fs_event": "an interface to libuv that asyncio has not",
                "test_libuv_api": "an interface to libuv that asyncio has not",
                "test_runner": "the function uvloop.run",
                "test_sourcecode": "the style of uvloop's source",
            },
        ),
        PytestSuite(
            name="uvicorn",
            source=SourceDistribution(
                name="uvicorn",
                version="0.54.0",
                sha256="a2e33cbfaa0306f8e6b0c13e0cb89d7d7a2da3e62b90c66e18c33d9807b28620",
                members=("tests/*", "pyproject.toml"),
            ),
            left_out={"benchmarks/.*": "benchmarks"},
            # uvicorn's own options, without the number of worker processes.
            arguments=("-o", "addopts=--strict-config --strict-markers"),
        ),
        PytestSuite(
            name="anyio",
            source=SourceDistribution(
                name="anyio",
                version="4.16.0",
                sha256="59bb03251907983d1603d27c3087ddb1e93299ea2163adcdba37899a4fb12ffb",
                members=("tests/*", "pyproject.toml"),
            ),
            excluded={
                **_OTHER_BACKENDS,
                "*test_keyboardinterrupt_during_test*": "gives a process on plain asyncio three seconds",
                "*test_dynamic_async_fixture_access*": "gives a process on plain asyncio three seconds",
                # On asyncio these pass or fail by chance.
                "*test_run_sync_from_thread_pooling*": "counts threads while earlier ones still end",
                "*::test_single_thread*": "counts threads while earlier ones still end",
                "*test_asyncio_run_does_not_leak_event_loop*": "looks before the worker thread is gone",
            },
            arguments=("-m", "not network"),
        ),
        PytestSuite(
            name="aiohttp",
            source=SourceDistribution(
                name="aiohttp",
                version="3.14.5",
                sha256="5558a7f5a05af9ecf744af91e5baefc436f93c9333e656c27ec253f9a6bbe178",
                members=("tests/*", "pytest.ini", "LICENSE.txt", "examples/*"),
            ),
            left_out={
                "test_benchmarks_.*": "benchmarks",
                "autobahn/.*": "needs containers",
                "test_http_parser": "parses bytes; five minutes of loops that do nothing",
                "test_circular_imports": "imports each module in an interpreter of its own; no loop",
                "isolated/.*": "scripts that other tests start",
            },
            # aiohttp's own options, without coverage, worker processes and doctests.
            arguments=("-o", "addopts=", "-m", "not dev_mode and not autobahn and not internal"),
        ),
        PytestSuite(
            name="starlette",
            source=SourceDistribution(
                name="starlette",
                version="1.10.0",
                sha256="b8399098d4c1e3522734f7235dc79b1fc967f96cf139c81e0fa30479e0685f9b",
                members=("tests/*", "docs/*", "pyproject.toml"),
            ),
            left_out={"benchmarks/.*": "benchmarks"},
            excluded=_OTHER_BACKENDS,
        ),
        PytestSuite(
            name="hypercorn",
            source=SourceDistribution(
                name="hypercorn",
                version="0.18.0",
                sha256="d63267548939c46b0247dc8e5b45a9947590e35e64ee73a23c074aa3cf88e9da",
                members=("tests/*", "pyproject.toml"),
            ),
            left_out={"trio/.*": "runs on trio"},
            excluded=_OTHER_BACKENDS,
            # Hypercorn's own options, without coverage.
            arguments=("-o", "addopts=--strict-markers"),
        ),
        PytestSuite(
            name="aioftp",
            source=SourceDistribution(
                name="aioftp",
                version="0.28.3",
                sha256="f054f3af285b4958621220f04ce755e58907140181e95efa859369091c92d040",
                members=("tests/*", "pyproject.toml"),
            ),
            # aioftp's own options, without coverage, and on after a failure.
            arguments=("-o", "addopts=--import-mode=importlib"),
        ),
        PytestSuite(
            name="aiosmtplib",
            source=SourceDistribution(
                name="aiosmtplib",
                version="5.1.3",
                sha256="ac2b418d3260ba62d9cfd0fe7359726e9dc009a4e8e8d9909fdfae332f522a7c",
                members=("tests/*", "docs/*", "pyproject.toml", "README.rst"),
            ),
        ),
    ]
    return {suite.name: suite for suite in every}


def environment_of_child(start: Start, loop: Loop) -> dict[str, str]:
    """The environment variables of a module's process: the user's, less what changes how tests behave."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "PYTEST_ADDOPTS", "PYTHONASYNCIODEBUG", "PYTHONDEVMODE")
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    path = [*start.path, str(CHILD_ROOT), *([str(loop.path)] if loop.path else [])]
    return {**env, "PYTHONPATH": os.pathsep.join(path)}
