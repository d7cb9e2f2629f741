"""zloop: a drop-in asyncio event loop whose engine is written in Zig.

    asyncio.run(main(), loop_factory=zloop.new_event_loop)

After that it is plain asyncio.
"""

from __future__ import annotations

from ._loop import Loop, new_event_loop, run
from ._policy import EventLoopPolicy, install
from ._version import __version__

# `type(loop).__module__` names the public place.
Loop.__module__ = __name__

__all__ = ["EventLoopPolicy", "Loop", "__version__", "install", "new_event_loop", "run"]
