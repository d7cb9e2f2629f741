"""The parts of asyncio that zloop relies on without a promise are there, on this version of Python."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import pytest

zloop = pytest.importorskip("zloop", reason="not installed")

from zloop import _hooks  # noqa: E402
from zloop._hooks import HOOKS, Hook, Need  # noqa: E402


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
