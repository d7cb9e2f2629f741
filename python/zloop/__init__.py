"""zloop: a drop-in asyncio event loop whose engine is written in Zig.

    asyncio.run(main(), loop_factory=zloop.new_event_loop)

After that it is plain asyncio.
"""

from __future__ import annotations

import asyncio
import typing

from ._loop import Loop, new_event_loop, run
from ._version import __version__

# `type(loop).__module__` names the public place.
Loop.__module__ = __name__

__all__ = ["Loop", "__version__", "new_event_loop", "run"]

if typing.TYPE_CHECKING or hasattr(asyncio.events, "set_event_loop_policy"):
    from ._policy import EventLoopPolicy, install

    __all__ += ["EventLoopPolicy", "install"]
else:  # Python 3.16 has no policies.

    def __getattr__(name: str) -> typing.NoReturn:
        reason = ""
        if name in ("EventLoopPolicy", "install"):
            reason = (
                ": this Python has no event loop policies; use "
                "asyncio.run(main(), loop_factory=zloop.new_event_loop) or python -m zloop"
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{reason}")
