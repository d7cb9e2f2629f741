"""The parts of asyncio that zloop relies on without a promise are there, on this version of Python."""

from __future__ import annotations

import functools
import inspect
import platform
import re
import sys
from pathlib import Path

import harness
import pytest

zloop = pytest.importorskip("zloop", reason="not installed")

from zloop import _hooks  # noqa: E402
from zloop._hooks import HOOKS, Hook, Need  # noqa: E402

REPLACED = list(_hooks.replaced_methods())


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: f"{hook.place}-{hook.names[0]}")
def test_this_python_has_the_hook(hook):
    lacking = _hooks.missing((hook,))
    assert not lacking, f"CPython {platform.python_version()}: " + "; ".join(lacking)


def test_nothing_is_missing():
    assert _hooks.missing() == []


@pytest.mark.parametrize(
    ("place", "need", "name", "said"),
    [
        ("asyncio.base_events", Need.HAS, "_no_such_function", "has no attribute"),
        ("asyncio.base_events:BaseEventLoop", Need.CALLS, "_no_such_method", "has no attribute"),
        # There, but asyncio's loops never ask for it: to replace it would do nothing.
        ("asyncio.base_events:BaseEventLoop", Need.CALLS, "__init_subclass__", "is not asked for"),
        ("asyncio.streams:StreamReader", Need.SETS, "_no_such_field", "does not set"),
        ("asyncio.streams:NoSuchClass", Need.SETS, "_buffer", "is not there"),
        ("asyncio.no_such_module", Need.HAS, "anything", "is not there"),
    ],
)
def test_what_is_missing_is_named(place, need, name, said):
    (line,) = _hooks.missing((Hook(place, need, (name,), "because"),))
    assert place in line
    assert said in line
    assert name in line
    assert "because" in line


def test_hooks_of_other_versions_are_not_asked_for():
    here = sys.version_info[:2]
    older = Hook("asyncio", Need.HAS, ("_no_such_name",), "", before=here)
    newer = Hook("asyncio", Need.HAS, ("_no_such_name",), "", since=(here[0], here[1] + 1))
    assert _hooks.missing((older, newer)) == []


def test_every_private_name_that_an_override_uses_is_listed():
    """A method of the Python edge that replaces one of asyncio's private methods is in the list."""
    import asyncio

    listed = {name for hook in HOOKS for name in hook.names}
    edge = [cls for cls in zloop.Loop.__mro__ if cls.__module__.split(".")[0] == "zloop"]
    replaced = {
        name
        for cls in edge
        for name in vars(cls)
        if re.match(r"_[a-z]", name) and hasattr(asyncio.SelectorEventLoop, name)
    }
    assert replaced - listed == set()


def test_every_asyncio_module_the_edge_imports_is_listed():
    """What the edge imports of asyncio's modules by name appears in the list or is public."""
    import asyncio

    places = {hook.place.partition(":")[0].removeprefix("asyncio.") for hook in HOOKS}
    public = {"exceptions", "events", "coroutines", "protocols"}
    used: set[str] = set()
    for path in Path(_hooks.__file__).parent.glob("*.py"):
        for names in re.findall(r"^from asyncio import (.+)$", path.read_text(), re.MULTILINE):
            used |= {name.strip() for name in names.split(",")}
    assert {name for name in used if hasattr(asyncio, name)} - places - public == set()


# --- signatures ----


def test_no_method_lacks_a_parameter_of_asyncios():
    assert [str(each) for each in _hooks.differences()] == []


def test_the_methods_that_asyncio_calls_are_compared():
    """Python's and the engine's, the loop's and the transports'."""
    compared = {(ours.__name__, method) for ours, _, method in REPLACED}
    hooks = "_make_socket_transport _make_ssl_transport _make_datagram_transport _start_serving _add_reader"
    assert {("Loop", name) for name in hooks.split()} <= compared
    assert {
        ("Loop", "__init__"),
        ("Loop", "_make_subprocess_transport"),
        ("StreamTransport", "write"),
        ("SSLTransport", "get_extra_info"),
        ("SubprocessTransport", "_start"),
        ("Handle", "cancel"),
    } <= compared


def with_parameter(method, parameter):
    """The method, seen to take one more parameter."""
    known = inspect.signature(method)
    parameters = list(known.parameters.values())
    if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
        behind = {
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.KEYWORD_ONLY,
            inspect.Parameter.VAR_KEYWORD,
        }
        parameters.insert(sum(each.kind not in behind for each in parameters), parameter)
    elif parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        parameters.insert(-1, parameter)
    else:
        parameters.append(parameter)

    @functools.wraps(method)
    def replaced(*args, **kwargs):
        kwargs.pop(parameter.name, None)
        return method(*args, **kwargs)

    replaced.__signature__ = known.replace(parameters=parameters)
    return replaced


@pytest.mark.parametrize("kind", ["KEYWORD_ONLY", "POSITIONAL_OR_KEYWORD"])
@pytest.mark.parametrize(
    ("ours", "theirs", "method"), REPLACED, ids=[f"{ours.__name__}-{name}" for ours, _, name in REPLACED]
)
def test_a_new_parameter_of_asyncios_is_named(monkeypatch, ours, theirs, method, kind):
    known = getattr(theirs, method)
    parameter = inspect.Parameter("flavour", getattr(inspect.Parameter, kind), default=None)
    monkeypatch.setattr(theirs, method, with_parameter(known, parameter))
    named = [str(each) for each in _hooks.differences() if each.ours is ours]
    (line,) = named
    assert f"{theirs.__qualname__}.{method}() takes 'flavour'" in line
    assert line.endswith(f"{ours.__qualname__}.{method}() does not take")


@pytest.mark.parametrize("method", ["call_soon", "_start_serving", "_make_ssl_transport"])
def test_keywords_that_asyncio_collects_are_named(monkeypatch, method):
    theirs = _hooks.replacements()[zloop.Loop]
    parameter = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)
    monkeypatch.setattr(theirs, method, with_parameter(getattr(theirs, method), parameter))
    (line,) = _hooks.differences()
    assert (line.method, line.parameter) == (method, "options")


def test_a_positional_only_parameter_is_compared_by_its_place(monkeypatch):
    theirs = _hooks.replacements()[zloop.Loop]

    def remove_reader(self, file, /):
        raise NotImplementedError

    monkeypatch.setattr(theirs, "remove_reader", remove_reader)
    assert _hooks.differences() == []

    def remove_reader_now(self, file, now, /):
        raise NotImplementedError

    monkeypatch.setattr(theirs, "remove_reader", remove_reader_now)
    (line,) = _hooks.differences()
    assert (line.method, line.parameter) == ("remove_reader", "now")


#: asyncio as a later Python could have it: a server passes one argument more to its loop.
NEWER_ASYNCIO = """
import asyncio, sys, warnings
from asyncio import base_events, selector_events
known_start = base_events.Server._start_serving
def _start_serving(self, protocol_factory, sock, sslcontext=None, server=None, backlog=100,
                   ssl_handshake_timeout=None, ssl_shutdown_timeout=None, context=None, *, flavour="plain"):
    raise NotImplementedError
selector_events.BaseSelectorEventLoop._start_serving = _start_serving
class Flavoured:
    def __init__(self, loop):
        self.loop = loop
    def _start_serving(self, *args, **kwargs):
        self.loop._start_serving(*args, **kwargs, flavour="sweet")
def start(self):
    loop = self._loop
    self._loop = Flavoured(loop)
    try:
        known_start(self)
    finally:
        self._loop = loop
base_events.Server._start_serving = start

import zloop
from zloop import _loop
{newest}
warnings.simplefilter("always")

async def main():
    async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

with warnings.catch_warnings(record=True) as said:
    for _ in range(2):
        zloop.run(main())
for each in said:
    print(each.category.__name__, each.message, sep=": ")
"""


def test_a_newer_python_is_made_the_best_of():
    """The argument is dropped, and one warning names it."""
    result = harness.run_python("-c", NEWER_ASYNCIO.format(newest="_loop.NEWEST_TESTED = (3, 9)"))
    assert (result.returncode, result.stderr) == (0, "")
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"RuntimeWarning: this zloop was not tested on Python {platform.python_version()}")
    assert line.endswith(
        "_start_serving() takes 'flavour', which zloop.Loop._start_serving() does not take: it is ignored"
    )


def test_a_tested_python_is_taken_at_its_word():
    """Nothing is asked of it at run time; the tests have asked."""
    result = harness.run_python("-c", NEWER_ASYNCIO.format(newest=""))
    assert result.returncode == 1
    assert "TypeError: _start_serving() got an unexpected keyword argument 'flavour'" in result.stderr


def test_a_newer_python_that_differs_in_nothing():
    program = (
        "import zloop; from zloop import _loop; _loop.NEWEST_TESTED = (3, 9); zloop.new_event_loop().close()"
    )
    result = harness.run_python("-W", "error", "-c", program)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_tested_versions_are_those_of_the_package():
    """Where versions are named: the check at run time, and what pip shows."""
    from zloop import _loop

    metadata = Path(__file__).parent.parent / "pyproject.toml"
    versions = re.findall(r"Programming Language :: Python :: 3\.(\d+)", metadata.read_text())
    assert (3, max(map(int, versions))) == _loop.NEWEST_TESTED
