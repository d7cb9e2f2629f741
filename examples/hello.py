"""The smallest program: one argument makes asyncio run on zloop."""

import asyncio
import sys

import zloop


async def main() -> None:
    await asyncio.sleep(0.01)
    print("hello from", type(asyncio.get_running_loop()).__module__)


if sys.version_info >= (3, 12):
    asyncio.run(main(), loop_factory=zloop.new_event_loop)
else:
    zloop.run(main())
