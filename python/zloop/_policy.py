"""zloop as the process's default loop; imported where asyncio has policies, which is up to Python 3.15."""

from __future__ import annotations

import asyncio
import warnings
from asyncio import unix_events

from ._loop import Loop

# The public names warn since 3.14; what they stand for has moved behind an underscore there.
_default_policy = (
    getattr(unix_events, "_DefaultEventLoopPolicy", None) or unix_events._UnixDefaultEventLoopPolicy
)


class EventLoopPolicy(_default_policy):  # type: ignore[misc, valid-type]
    """asyncio's default policy, making zloop loops: `get_event_loop()` behaves as in the stdlib."""

    _loop_factory = Loop


def install() -> None:
    """Makes zloop the default: `asyncio.run()` and `asyncio.new_event_loop()` use it from now on.

    Prefer `loop_factory=zloop.new_event_loop` where there is the choice.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(EventLoopPolicy())
