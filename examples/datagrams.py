"""Two UDP endpoints that play ping-pong."""

import asyncio

import zloop

Address = tuple[str, int]


class Player(asyncio.DatagramProtocol):
    def __init__(self, name: str, over: asyncio.Event) -> None:
        self.name, self.over = name, over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Address) -> None:
        count = int(data)
        print(self.name, "got ball", count)
        if count == 4:
            self.over.set()
        else:
            self.transport.sendto(str(count + 1).encode(), addr)


async def main() -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    first, _ = await loop.create_datagram_endpoint(lambda: Player("first", over), local_addr=("127.0.0.1", 0))
    second, _ = await loop.create_datagram_endpoint(
        lambda: Player("second", over), local_addr=("127.0.0.1", 0)
    )
    first.sendto(b"1", second.get_extra_info("sockname"))
    await over.wait()
    first.close()
    second.close()


zloop.run(main())
