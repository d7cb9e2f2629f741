"""Timers, timeouts and tasks that run side by side."""

import asyncio

import zloop


async def worker(name: str, pause_s: float) -> str:
    await asyncio.sleep(pause_s)
    print(name, "is done")
    return name


async def main() -> None:
    loop = asyncio.get_running_loop()
    loop.call_later(0.15, print, "a timer fired")
    loop.call_later(3600, print, "never seen").cancel()

    names = await asyncio.gather(worker("slow", 0.3), worker("quick", 0.02))
    print("in the order they were asked for:", ", ".join(names))

    try:
        await asyncio.wait_for(worker("too slow", 60), timeout=0.01)
    except asyncio.TimeoutError:
        print("the last one took too long")


zloop.run(main())
