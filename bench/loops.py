"""The contenders: which event loops are compared, and how each is made."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@dataclass(frozen=True)
class Contender:
    name: str
    factory: str
    """`module:callable` that returns a new loop."""
    packages: tuple[str, ...] = ()
    """What must be importable, and whose versions go into the results."""
    schedules: bool = True
    """False for a package that replaces transports only: its scheduling is that of the loop below it."""

    def missing_package(self) -> str | None:
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError:
                return package
        return None


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("zloop", "zloop:new_event_loop", ("zloop",)),
        Contender("asyncio", "asyncio:SelectorEventLoop"),
        Contender("uvloop", "uvloop:new_event_loop", ("uvloop",)),
        Contender("rloop", "rloop:new_event_loop", ("rloop",)),
        Contender("blazio", "blazio:new_event_loop", ("blazio",)),
        Contender("zuvloop", "zuvloop:new_event_loop", ("zuvloop",)),
        Contender("rsloop", "rsloop:new_event_loop", ("rsloop",)),
        Contender("talyn", "talyn:Loop", ("talyn",)),
        Contender(
            "aiofastnet", "bench.loops:aiofastnet_over_uvloop", ("aiofastnet", "uvloop"), schedules=False
        ),
    )
}
CONTROL = "asyncio"
SUBJECT = "zloop"
REFERENCE = "uvloop"
LIMIT = "C limit"
"""Row of the native echo server: not a loop, but what the kernel leaves to be won."""


def aiofastnet_over_uvloop() -> asyncio.AbstractEventLoop:
    import aiofastnet
    import uvloop

    return aiofastnet.loop_factory(uvloop.new_event_loop)()


def contender(name: str) -> Contender:
    """A contender of the table, or any other loop given as `module:callable`."""
    if ":" in name:
        return Contender(name, name, (name.partition(":")[0],))
    return CONTENDERS[name]


def factory(name: str) -> LoopFactory:
    module, _, attribute = contender(name).factory.partition(":")
    new_loop: LoopFactory = getattr(importlib.import_module(module), attribute)
    return new_loop


def current_loop_factory(name: str) -> LoopFactory:
    """Makes loops that are also the thread's current one, as code of older Python versions needs."""
    new_loop = factory(name)

    def make_loop() -> asyncio.AbstractEventLoop:
        loop = new_loop()
        asyncio.set_event_loop(loop)
        return loop

    return make_loop


def versions(names: list[str]) -> dict[str, str]:
    found = {}
    for name in names:
        for package in contender(name).packages:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = "unpackaged"
    return found
