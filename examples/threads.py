"""Work that comes from threads, and work that is sent to them."""

import asyncio
import threading

import zloop


def blocking_sum(numbers: range) -> int:
    return sum(numbers)


async def main() -> None:
    loop = asyncio.get_running_loop()
    print("computed in a thread:", await asyncio.to_thread(blocking_sum, range(1000)))

    messages: asyncio.Queue[str] = asyncio.Queue()

    def produce() -> None:
        for number in (1, 2, 3):
            loop.call_soon_threadsafe(messages.put_nowait, f"message {number}")

    thread = threading.Thread(target=produce)
    thread.start()
    for _ in range(3):
        print(await messages.get())
    thread.join()


zloop.run(main())
