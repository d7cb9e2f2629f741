"""Which loops the bodies run on, and what no test may leave behind."""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ClassVar

import certificates
import harness
import pytest

HERE = Path(__file__).parent

#: "module:callable", or the name of a module with new_event_loop. The first one is the control.
LOOPS = os.environ.get("ZLOOP_TEST_LOOPS", "asyncio,zloop").split(",")

TIMEOUT_S = 120


# A debug build of CPython has every new container traversed, which crashes the compiled part of multidict, on
# any loop; it looks for this when it is imported.
if hasattr(sys, "gettotalrefcount"):
    os.environ.setdefault("MULTIDICT_NO_EXTENSIONS", "1")


# looptime's plugin for pytest patches the loops of every run of pytest, those that tests start among them.
os.environ["PYTEST_ADDOPTS"] = f"{os.environ.get('PYTEST_ADDOPTS', '')} -pno:looptime_plugin".strip()


class NoParams:
    params: ClassVar[dict[str, Any]] = {}


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, which Python and its children then keep.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in (
        "soak: a long variant, run with -m soak (the default run leaves it out)",
        "only_zloop(reason): the body asks for more than asyncio promises; the control does not run it",
        "asyncio_bug(reason, when=True, kinds=None, run=True): this asyncio fails the body (strict)",
        "old_sslproto(reason): the SSLProtocol of 3.10, another one than today's, fails the body on any loop",
        "timeout(seconds): see pytest-timeout",
    ):
        config.addinivalue_line("markers", line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loop_factory" not in metafunc.fixturenames:
        return
    only = metafunc.definition.get_closest_marker("only_zloop")
    params = []
    for name in LOOPS:
        marks: list[Any] = []
        if name == "asyncio" and only is not None:
            if LOOPS != ["asyncio"]:
                continue
            marks.append(pytest.mark.skip(reason=f"the control is excused: {only.args[0]}"))
        params.append(pytest.param(name, marks=marks, id=name.replace(":", ".")))
    metafunc.parametrize("loop_factory", params, indirect=True)


def excuse_the_control(item: pytest.Item) -> None:
    """Expect failures where the interpreter's own asyncio is known to be wrong."""
    params = getattr(item, "callspec", NoParams).params
    if sys.version_info < (3, 11) and params.get("engine") == "asyncio":
        for bug in item.iter_markers("old_sslproto"):
            item.add_marker(pytest.mark.xfail(reason=bug.args[0], run=False))
    if params.get("loop_factory") != "asyncio":
        return
    for bug in item.iter_markers("asyncio_bug"):
        kinds = bug.kwargs.get("kinds")
        if bug.kwargs.get("when", True) and (kinds is None or params.get("kind") in kinds):
            run = bug.kwargs.get("run", True)  # False: it would hang, or fails only now and then
            item.add_marker(pytest.mark.xfail(reason=bug.args[0], strict=True, run=run))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    soak = "soak" in (config.getoption("-m") or "")
    kept, dropped = [], []
    for item in items:
        if HERE not in item.path.parents:
            kept.append(item)
            continue
        if item.get_closest_marker("soak") and not soak:
            dropped.append(item)
            continue
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))
        excuse_the_control(item)
        # A descriptor or task that only the garbage collector ends is a failure of the test that made it.
        # (The TLS transports of 3.10 warn about themselves after every ordinary life.)
        if sys.version_info >= (3, 11):
            item.add_marker(pytest.mark.filterwarnings("error::ResourceWarning"))
        item.add_marker(pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"))
        item.add_marker(pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning"))
        kept.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def pytest_collection_finish() -> None:
    # Each run of a body ends with a full collection: what was imported by now need not be walked again.
    gc.collect()
    gc.freeze()


def load_factory(name: str) -> harness.LoopFactory:
    if name == "asyncio":
        return asyncio.SelectorEventLoop
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute or "new_event_loop")


@pytest.fixture
def loop_factory(request: pytest.FixtureRequest) -> harness.LoopFactory:
    return load_factory(request.param)


@pytest.fixture
def loop_name(request: pytest.FixtureRequest, loop_factory: harness.LoopFactory) -> str:
    """The spelling a command line takes for the loop under test."""
    name = request.node.callspec.params["loop_factory"]
    if name == "asyncio":
        return "asyncio:SelectorEventLoop"
    return name if ":" in name else f"{name}:new_event_loop"


@pytest.fixture
def run(loop_factory: harness.LoopFactory) -> Callable[..., Any]:
    """run(coroutine, debug=None, reports=None) on a new loop of the kind under test."""

    def runner(main: Coroutine[Any, Any, Any], **options: Any) -> Any:
        return harness.run(main, loop_factory, **options)

    return runner


@pytest.fixture
def loop(loop_factory: harness.LoopFactory) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that is not running; reports to its exception handler are kept in `loop_reports`."""
    loop = loop_factory()
    yield loop
    if not loop.is_closed():
        harness.finish(loop)


@pytest.fixture(autouse=True)
def no_fd_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    before = harness.open_fds()
    yield
    leaked = harness.settled_fds(before)
    if leaked:
        pytest.fail(f"descriptors left open: {leaked}")


@pytest.fixture
def unix_path() -> Iterator[str]:
    """A path short enough for sun_path wherever the temporary folder is."""
    folder = tempfile.mkdtemp(prefix="z", dir="/tmp")
    yield os.path.join(folder, "s")
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return certificates.make(tmp_path_factory.mktemp("tls"))


@functools.lru_cache(maxsize=1)
def _tls(certificate: str, authority: str) -> harness.Tls:
    return harness.Tls(certificate, authority)


@pytest.fixture
def tls(tls_files: tuple[str, str]) -> harness.Tls:
    return _tls(*tls_files)


@pytest.fixture(params=["native", "asyncio"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a body on both TLS engines of zloop, and on the one that asyncio has."""
    params = request.node.callspec.params
    if params.get("loop_factory") == "asyncio" and request.param == "native":
        pytest.skip("the control has one engine")
    monkeypatch.setenv("ZLOOP_TLS", request.param)
    return request.param


@pytest.fixture(params=["client", "server"])
def side(request: pytest.FixtureRequest) -> str:
    """Which end of a TLS connection is the loop's; the other one is scripted."""
    return request.param


@pytest.fixture(params=harness.STREAM_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Runs a body over TCP, a Unix socket pair, and TLS."""
    return request.param
