"""Write limits, pause_writing and resume_writing, and the sizes a transport tells."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from harness import WRITELINES_USES, Log, Report, connected, old_tls_hangs, pattern, turns, until, within


def test_default_and_explicit_limits(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            transport = pair.client_transport
            low, high = transport.get_write_buffer_limits()
            assert 0 < low < high
            for arguments, expected in (
                ({"high": 1000}, (250, 1000)),
                ({"high": 1000, "low": 10}, (10, 1000)),
                ({"low": 100}, (100, 400)),
                ({"high": 0}, (0, 0)),
                ({"high": 5, "low": 5}, (5, 5)),
            ):
                transport.set_write_buffer_limits(**arguments)
                assert transport.get_write_buffer_limits() == expected
            transport.set_write_buffer_limits()
            assert transport.get_write_buffer_limits() == (low, high)
            for arguments in ({"high": 1, "low": 2}, {"high": -1}, {"low": -1, "high": 5}):
                with pytest.raises(ValueError):
                    transport.set_write_buffer_limits(**arguments)

    run(main())


def test_pause_at_high_water_resume_at_low_water(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls, small_buffers=True) as pair:
            transport, log = pair.client_transport, pair.client
            pair.server_transport.pause_reading()
            transport.set_write_buffer_limits(high=100_000, low=20_000)
            total = 0
            while not log.paused:
                transport.write(bytes(10_000))
                total += 10_000
                assert total < 50_000_000
                await turns(1)
            if kind != "tls":
                assert transport.get_write_buffer_size() > 100_000
            await turns(5)
            assert log.events.count("pause") == 1
            transport.write(bytes(1000))
            total += 1000
            assert log.events.count("pause") == 1
            pair.server_transport.resume_reading()
            await log.when(lambda: not log.paused)
            assert transport.get_write_buffer_size() <= 20_000
            await pair.server.got(total)
            assert log.events == ["made", "pause", "resume"]
            assert transport.get_write_buffer_size() == 0

    run(main())


@pytest.mark.asyncio_bug(
    "TLS waits for a buffer below zero", kinds=("tls",), when=sys.version_info >= (3, 11), run=False
)
def test_limits_of_zero(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls, small_buffers=True) as pair:
            transport, log = pair.client_transport, pair.client
            pair.server_transport.pause_reading()
            transport.set_write_buffer_limits(0)
            total = 0
            while not log.paused:
                transport.write(bytes(10_000))
                total += 10_000
                assert total < 50_000_000
                await turns(1)
            pair.server_transport.resume_reading()
            await log.when(lambda: not log.paused)
            assert transport.get_write_buffer_size() == 0
            await pair.server.got(total)

    run(main())


@pytest.mark.only_zloop("asyncio does not count the ciphertext that waits below TLS")
def test_the_size_of_a_tls_transport_counts_the_whole_stack(run, tls):
    async def main() -> None:
        async with connected("tls", tls=tls, small_buffers=True) as pair:
            pair.server_transport.pause_reading()
            total = 0
            while total < 5_000_000:
                pair.client_transport.write(bytes(100_000))
                total += 100_000
            assert pair.client.paused
            assert pair.client_transport.get_write_buffer_size() > 3_000_000
            pair.server_transport.resume_reading()
            await pair.server.got(total)
            assert pair.client_transport.get_write_buffer_size() == 0
            assert not pair.client.paused

    run(main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_size_tells_what_the_kernel_did_not_take(run, kind):
    async def main() -> None:
        async with connected(kind, small_buffers=True) as pair:
            pair.server_transport.pause_reading()
            assert pair.client_transport.get_write_buffer_size() == 0
            data = pattern(1_000_000)
            pair.client_transport.write(data)
            size = pair.client_transport.get_write_buffer_size()
            assert 0 < size <= len(data)
            pair.client_transport.write(b"12345")
            assert pair.client_transport.get_write_buffer_size() == size + 5
            pair.client_transport.writelines([b"123", b"45"])
            assert 0 < pair.client_transport.get_write_buffer_size() <= size + 10
            pair.server_transport.resume_reading()
            assert await pair.server.got(len(data) + 10) == data + b"1234512345"
            assert pair.client_transport.get_write_buffer_size() == 0

    run(main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.asyncio_bug(
    "writelines() forgets the limits",
    when=bool(WRITELINES_USES) and "_maybe_pause_protocol" not in WRITELINES_USES,
)
def test_writelines_pauses_too(run, kind):
    async def main() -> None:
        async with connected(kind, small_buffers=True) as pair:
            pair.server_transport.pause_reading()
            pieces = [bytes([number]) * 6500 for number in range(100)]
            for _ in range(10):
                pair.client_transport.writelines(pieces)
                await turns(1)
                if pair.client.paused:
                    break
            assert pair.client.paused
            pair.server_transport.resume_reading()
            await pair.client.when(lambda: not pair.client.paused)

    run(main())


@old_tls_hangs
def test_writes_from_pause_and_resume_callbacks(run, kind, tls):
    class Chatty(Log):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.write(b"P")

        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.write(b"R")

    async def main() -> None:
        async with connected(kind, client=Chatty, tls=tls, small_buffers=True) as pair:
            pair.server_transport.pause_reading()
            total = 0
            while not pair.client.paused:
                pair.client_transport.write(bytes(100_000))
                total += 100_000
                assert total < 50_000_000
                await turns(1)
            pair.server_transport.resume_reading()
            received = await pair.server.got(total + 2)
            assert received.count(b"P") == 1
            assert received.count(b"R") == 1
            assert received[-1:] == b"R"

    run(main())


@pytest.mark.parametrize("method", ["pause_writing", "resume_writing"])
def test_a_callback_that_raises_is_reported_and_the_connection_lives(run, method):
    reports: list[Report] = []

    class Broken(Log): ...

    original = getattr(Log, method)

    def broken(self: Any) -> None:
        original(self)
        raise LookupError("mine")

    setattr(Broken, method, broken)

    async def main() -> None:
        async with connected("tcp", client=Broken, small_buffers=True) as pair:
            pair.client_transport.write(bytes(2_000_000))
            await pair.server.got(2_000_000)
            pair.client_transport.write(b"alive")
            assert await pair.server.got(5) == b"alive"

    run(main(), reports=reports)
    assert [str(report["exception"]) for report in reports] == ["mine"]
    assert method in reports[0]["message"]


def test_close_inside_pause_writing_flushes(run):
    class Leaving(Log):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.close()

    async def main() -> None:
        async with connected("tcp", client=Leaving, small_buffers=True) as pair:
            data = pattern(1_000_000)
            pair.client_transport.write(data)
            assert pair.client.paused
            assert await pair.server.got(len(data)) == data
            assert await within(pair.client.lost) is None

    run(main())


@pytest.mark.asyncio_bug("calls connection_lost twice", when=sys.version_info < (3, 14), run=False)
def test_abort_inside_resume_writing(run):
    class Leaving(Log):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.abort()

    async def main() -> None:
        async with connected("tcp", client=Leaving, small_buffers=True) as pair:
            pair.client_transport.write(bytes(1_000_000))
            assert await within(pair.client.lost) is None
            assert pair.client.lost_count == 1

    run(main())


def test_changing_limits_while_paused(run):
    async def main() -> None:
        async with connected("tcp", small_buffers=True) as pair:
            transport = pair.client_transport
            pair.server_transport.pause_reading()
            transport.write(pattern(1_000_000))
            assert pair.client.paused
            transport.set_write_buffer_limits(high=10_000_000)
            await turns(3)
            pair.server_transport.resume_reading()
            await pair.server.got(1_000_000)
            await until(lambda: not pair.client.paused)

    run(main())


def test_lowering_limits_below_what_is_queued_pauses(run):
    async def main() -> None:
        async with connected("tcp", small_buffers=True) as pair:
            transport = pair.client_transport
            transport.set_write_buffer_limits(high=50_000_000)
            pair.server_transport.pause_reading()
            transport.write(pattern(1_000_000))
            assert not pair.client.paused
            transport.set_write_buffer_limits(high=1000)
            await turns(2)
            assert pair.client.paused
            pair.server_transport.resume_reading()
            await pair.server.got(1_000_000)
            await until(lambda: not pair.client.paused)

    run(main())


def test_two_relays_do_not_deadlock(run, kind, tls):
    """Both ends write whatever they get, with tiny limits: only resume_writing may keep it going."""

    class Relay(Log):
        total = 0

        def data_received(self, data: bytes) -> None:
            self.total += len(data)
            self.transport.write(data)
            self._wake()

    async def main() -> None:
        async with connected(kind, client=Relay, server=Relay, tls=tls) as pair:
            for transport in (pair.client_transport, pair.server_transport):
                transport.set_write_buffer_limits(0)
            pair.client_transport.write(pattern(30_000))
            await pair.server.when(lambda: pair.server.total > 3_000_000)

    run(main())
