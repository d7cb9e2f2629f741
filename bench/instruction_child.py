"""One path of a loop, run a given number of times, for an instruction counter to watch."""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
from collections.abc import Callable

from bench import loops, workloads
from bench.shapes import Proto

PATHS: dict[str, workloads.Body] = {
    "call_soon": workloads.call_soon_chain,
    "timer": workloads.call_later_chain,
    "timer cancel": workloads.timer_cancel,
}
"""What is counted, and how it is driven."""


def path(name: str) -> Callable[[workloads.AsyncBody], workloads.AsyncBody]:
    def register(body: workloads.AsyncBody) -> workloads.AsyncBody:
        def run(loop: asyncio.AbstractEventLoop, count: int) -> None:
            loop.run_until_complete(body(loop, count))

        PATHS[name] = run
        return body

    return register


def threadsafe_chain(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """From the loop's own thread: the price of the inbox without the noise of a second thread."""
    left = count

    def step() -> None:
        nonlocal left
        left -= 1
        loop.call_soon_threadsafe(step if left else loop.stop)

    loop.call_soon(step)
    loop.run_forever()


PATHS["threadsafe"] = threadsafe_chain
path("sleep(0)")(workloads.sleep_zero)
path("create_task")(workloads.create_task_awaited)


class Pinger(asyncio.Protocol):
    """Sends a message, waits for as many bytes, and again."""

    transport: asyncio.Transport

    def __init__(self, count: int, done: asyncio.Future[None]) -> None:
        self.left = count
        self.done = done
        self.message = bytes(1024)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        assert len(data) == len(self.message), "a socket pair keeps a message of 1 KiB whole"
        self.left -= 1
        if self.left:
            self.transport.write(self.message)
        else:
            self.done.set_result(None)


@path("1 KiB echo by protocols")
async def protocol_echo(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Both ends in one process: one operation is two writes and two reads."""
    left, right = socket.socketpair()
    done = loop.create_future()
    server, _ = await loop.create_connection(lambda: Proto(1024), sock=right)
    client, _ = await loop.create_connection(lambda: Pinger(count, done), sock=left)
    # As with connections of a server: a socket object that the program holds makes zloop send at once.
    del left, right
    await done
    client.close()
    server.close()


@path("1 KiB echo by streams")
async def stream_echo(loop: asyncio.AbstractEventLoop, count: int) -> None:
    left, right = socket.socketpair()
    done = loop.create_future()
    reader, writer = await asyncio.open_connection(sock=right)

    async def answer() -> None:
        for _ in range(count):
            writer.write(await reader.readexactly(1024))
            await writer.drain()

    answering = loop.create_task(answer())
    client, _ = await loop.create_connection(lambda: Pinger(count, done), sock=left)
    del left, right
    await done
    await answering
    client.close()
    writer.close()


path("1 KiB echo by sock_*")(workloads.sock_echo)


def main() -> None:
    command_line = argparse.ArgumentParser(description=__doc__)
    command_line.add_argument("--loop", required=True)
    command_line.add_argument("--path", choices=PATHS, required=True)
    command_line.add_argument("--count", type=int, required=True)
    options = command_line.parse_args()
    # A collection falls into one of the two compared runs, or not, by the allocation history of start-up.
    gc.disable()
    loop = loops.current_loop_factory(options.loop)()
    PATHS[options.path](loop, options.count)
    loop.close()


if __name__ == "__main__":
    main()
