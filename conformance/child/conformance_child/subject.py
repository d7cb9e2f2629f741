"""Make the loop under test be the loop that asyncio's own names create.

Test suites make their loops in a handful of ways: `asyncio.new_event_loop()`, a policy's
`new_event_loop()`, `asyncio.Runner()` and `asyncio.run()` without a factory (all of which end in the default
policy's `_loop_factory`), and the classes `asyncio.SelectorEventLoop` and `asyncio.EventLoop`, called with or
without a selector. `install` puts one `Subject` in all these places.

The classes themselves are left alone; only names are rebound, and the package that owns the loop is imported
before that. A loop that derives from `asyncio.SelectorEventLoop` therefore keeps the real base, and what it
inherits cannot come back to the subject by way of `super()`.
"""

from __future__ import annotations

import asyncio
import asyncio.unix_events
import importlib
import threading
from collections.abc import Callable
from typing import Any

UNCHANGED = "default"
CLASS_NAMES = ("SelectorEventLoop", "EventLoop", "_UnixSelectorEventLoop")


class Subject:
    """Stands where a loop class stood: callable, good for `isinstance` and as a base class. Counts loops."""

    def __init__(self, factory: Callable[[], asyncio.AbstractEventLoop], stock: type) -> None:
        probe = factory()
        self.loop_type = type(probe)
        probe.close()
        self.factory = factory
        self.stock = stock
        self.made_count = 0
        self._lock = threading.Lock()

    def __call__(self, selector: Any = None) -> asyncio.AbstractEventLoop:
        with self._lock:
            self.made_count += 1
        if selector is not None and self.factory is self.stock:
            return self.stock(selector)  # type: ignore[no-any-return]
        # A loop with a poller of its own has no use for a selector; the caller gets its usual loop.
        return self.factory()

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self.loop_type)

    def __subclasscheck__(self, cls: type) -> bool:
        return issubclass(cls, self.loop_type)

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (self.loop_type,)

    def __getattr__(self, name: str) -> Any:
        # The stock class, not the type under test: a loop that calls `asyncio.SelectorEventLoop.method(self)`
        # means its base, and would otherwise call itself for ever.
        return getattr(self.__dict__["stock"], name)


# One entry once a subject is installed: the process's only one.
_installed: list[Subject] = []


def resolve(spec: str) -> Callable[[], asyncio.AbstractEventLoop]:
    module_name, _, attribute = spec.partition(":")
    factory = getattr(importlib.import_module(module_name), attribute)
    if not callable(factory):
        raise TypeError(f"{spec} is not callable")
    return factory  # type: ignore[no-any-return]


def install(spec: str) -> Subject | None:
    """Rebind asyncio's names to the loop that `spec` makes; None when the names are to stay as they are."""
    if spec == UNCHANGED:
        return None
    subject = create(spec)
    stock = subject.stock
    for module in (asyncio, asyncio.unix_events):
        for name in CLASS_NAMES:
            if getattr(module, name, None) is stock:
                setattr(module, name, subject)
    policies = {
        value
        for value in vars(asyncio.unix_events).values()
        if isinstance(value, type) and value.__dict__.get("_loop_factory") is stock
    }
    if len(policies) != 1:
        raise RuntimeError(f"expected one default policy that makes the stock loop, found {policies!r}")
    policies.pop()._loop_factory = subject  # type: ignore[attr-defined]
    _installed.append(subject)
    return subject


def create(spec: str) -> Subject:
    """A subject that no name leads to yet."""
    return Subject(resolve(spec), asyncio.unix_events._UnixSelectorEventLoop)


def current(spec: str) -> Subject:
    """The installed subject, or one of its own in a process that a test started and no runner prepared."""
    return _installed[0] if _installed else create(spec)
