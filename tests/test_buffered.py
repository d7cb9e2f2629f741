"""BufferedProtocol: the protocol's own buffer is filled, and never trusted."""

from __future__ import annotations

from typing import Any

import pytest
from harness import BufferedLog, Log, Report, connected, old_tls, pattern, turns, within


@old_tls
@pytest.mark.parametrize("size", [1, 1000, 65536, 1_000_000])
def test_every_byte_arrives(run, kind, tls, size):
    async def main() -> None:
        data = pattern(2000 if size == 1 else 1_500_000)
        async with connected(kind, server=lambda: BufferedLog(size), tls=tls) as pair:
            pair.client_transport.write(data)
            assert await pair.server.got(len(data)) == data
            assert pair.server.hints
            pair.client_transport.close()
            assert await within(pair.server.lost) is None
            assert pair.server.events == ["made", "data", "eof", "lost"]

    run(main())


def test_eof_kept_open(run):
    async def main() -> None:
        async with connected("tcp", server=BufferedLog) as pair:
            pair.server.keep_open_after_eof = True
            pair.client_transport.write_eof()
            await within(pair.server.eof)
            pair.server_transport.write(b"still open")
            assert await pair.client.got(10) == b"still open"
            pair.server_transport.close()
            await within(pair.server.lost)

    run(main())


@pytest.mark.parametrize("buffer", [b"", b"read only", None, "text", 5], ids=repr)
def test_a_useless_buffer_is_a_clean_error(run, buffer):
    reports: list[Report] = []

    class Useless(BufferedLog):
        def get_buffer(self, sizehint: int) -> Any:
            return buffer

    async def main() -> None:
        async with connected("tcp", server=Useless) as pair:
            pair.client_transport.write(b"x")
            assert isinstance(await within(pair.server.lost), Exception)
            await within(pair.client.lost)

    run(main(), reports=reports)
    assert len(reports) == 1
    assert isinstance(reports[0]["exception"], (RuntimeError, TypeError, BufferError))


@pytest.mark.parametrize("method", ["get_buffer", "buffer_updated"])
def test_a_callback_that_raises_ends_the_connection(run, kind, tls, method):
    reports: list[Report] = []

    class Broken(BufferedLog): ...

    def broken(self: Any, _argument: int) -> None:
        raise LookupError("mine")

    setattr(Broken, method, broken)

    async def main() -> None:
        async with connected(kind, server=Broken, tls=tls) as pair:
            pair.client_transport.write(b"x")
            assert isinstance(await within(pair.server.lost), LookupError)

    run(main(), reports=reports)
    assert [str(report["exception"]) for report in reports] == ["mine"]


@old_tls
def test_pausing_inside_buffer_updated(run, kind, tls):
    class Careful(BufferedLog):
        stopped = False

        def buffer_updated(self, nbytes: int) -> None:
            assert not self.stopped
            super().buffer_updated(nbytes)
            self.stopped = True
            self.transport.pause_reading()

    async def main() -> None:
        data = pattern(600_000)
        async with connected(kind, server=lambda: Careful(10_000), tls=tls) as pair:
            pair.client_transport.write(data)
            while len(pair.server.received) < len(data):
                await pair.server.when(lambda: pair.server.stopped)
                seen = len(pair.server.received)
                await turns(2)
                assert len(pair.server.received) == seen
                pair.server.stopped = False
                pair.server_transport.resume_reading()
            assert bytes(pair.server.received) == data

    run(main())


def test_switching_between_plain_and_buffered(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            first = pair.server
            pair.client_transport.write(b"plain")
            assert await first.got(5) == b"plain"
            second, third = BufferedLog(), Log()
            pair.server_transport.set_protocol(second)
            pair.client_transport.write(b"buffered")
            assert await second.got(8) == b"buffered"
            pair.server_transport.set_protocol(third)
            pair.client_transport.write(b"plain again")
            assert await third.got(11) == b"plain again"
            pair.client_transport.close()
            await within(third.lost)
            first.lost.set_result(None)

    run(main())


def test_a_buffer_resized_between_reads(run):
    class Growing(BufferedLog):
        def get_buffer(self, sizehint: int) -> bytearray:  # type: ignore[override]
            self.buffer = bytearray(len(self.buffer) + 7)
            return self.buffer

    async def main() -> None:
        data = pattern(300_000)
        async with connected("tcp", server=lambda: Growing(1), small_buffers=True) as pair:
            pair.client_transport.write(data)
            assert await pair.server.got(len(data)) == data

    run(main())


def test_close_inside_get_buffer(run):
    class Leaving(BufferedLog):
        def get_buffer(self, sizehint: int) -> memoryview:
            self.transport.abort()
            return super().get_buffer(sizehint)

    async def main() -> None:
        async with connected("tcp", server=Leaving) as pair:
            pair.client_transport.write(b"x")
            assert await within(pair.server.lost) is None
            assert pair.server.lost_count == 1

    run(main())
