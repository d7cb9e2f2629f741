"""A stand-in for uvloop: its public names, making the loop under test.

uvloop's test suite imports `uvloop` and runs most of its bodies twice: in classes that make loops by
`uvloop.new_event_loop()`, with uvloop's expectations, and in classes that make them by
`asyncio.new_event_loop()`, with asyncio's. With this package in front on the path the former run on the loop
under test without a compiled uvloop; the latter do because the runner rebinds asyncio's names.

The suite's helper module, `uvloop._testbase`, comes from uvloop's own source distribution.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from conformance_child import job as _jobs
from conformance_child import subject as _subjects

_T = TypeVar("_T")
_job = _jobs.load()
_subject = _subjects.current("asyncio:SelectorEventLoop" if _job.loop == _subjects.UNCHANGED else _job.loop)

__path__.append(os.path.join(_job.options["tree"], "uvloop"))

Loop = _subject.loop_type


def new_event_loop() -> asyncio.AbstractEventLoop:
    return _subject()


with warnings.catch_warnings():
    # Policies are deprecated in 3.14; the suite still checks that they work.
    warnings.simplefilter("ignore", DeprecationWarning)
    _DefaultPolicy: Any = asyncio.DefaultEventLoopPolicy


class EventLoopPolicy(_DefaultPolicy):  # type: ignore[misc]
    _loop_factory = staticmethod(new_event_loop)


def install() -> None:
    asyncio.set_event_loop_policy(EventLoopPolicy())


def run(
    main: Coroutine[Any, Any, _T],
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = new_event_loop,
    debug: bool | None = None,
) -> _T:
    if sys.version_info >= (3, 11):
        with asyncio.Runner(loop_factory=loop_factory, debug=debug) as runner:
            return runner.run(main)
    previous = asyncio.get_event_loop_policy()
    policy = EventLoopPolicy()
    policy._loop_factory = loop_factory
    asyncio.set_event_loop_policy(policy)
    try:
        return asyncio.run(main, debug=debug)
    finally:
        asyncio.set_event_loop_policy(previous)
