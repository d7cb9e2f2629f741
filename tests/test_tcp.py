"""Stream transports: what a Protocol sees and what a transport answers, over TCP, Unix sockets and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import socket
import struct
import sys
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from harness import (
    WRITELINES_USES,
    Echo,
    Log,
    Report,
    Tls,
    closed_port,
    connected,
    has_ipv6,
    listener,
    old_tls,
    old_tls_hangs,
    pattern,
    reset,
    run_python,
    tcp_sockets,
    turns,
    until,
    within,
)

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback")


# --- the ordinary life ----


@old_tls
def test_order_of_callbacks(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            pair.client_transport.write(b"hello")
            assert await pair.server.got(5) == b"hello"
            pair.server_transport.write(b"answer")
            assert await pair.client.got(6) == b"answer"
            pair.client_transport.close()
            assert await within(pair.client.lost) is None
            assert await within(pair.server.lost) is None
            if kind == "tls" and "eof" in pair.client.events:
                pair.client.events.remove("eof")  # the peer's farewell may come before the end
            assert pair.client.events == ["made", "data", "lost"]
            assert pair.server.events == ["made", "data", "eof", "lost"]

    run(main())


@pytest.mark.parametrize("size", [1, 4095, 65536, 65537, 262_145, 3_000_001])
def test_every_byte_arrives_in_order_both_ways(run, kind, tls, size):
    async def main() -> None:
        data = pattern(size)
        async with connected(kind, server=Echo, tls=tls) as pair:
            pair.client_transport.write(data)
            assert await pair.client.got(size) == data

    run(main())


def test_many_small_writes_in_one_turn_keep_their_order(run, kind, tls):
    async def main() -> None:
        pieces = [str(number).encode() + b";" for number in range(3000)]
        async with connected(kind, tls=tls) as pair:
            for piece in pieces:
                pair.client_transport.write(piece)
            expected = b"".join(pieces)
            assert await pair.server.got(len(expected)) == expected

    run(main())


def test_every_bytes_like_object_can_be_written(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            write = pair.client_transport.write
            write(b"bytes ")
            write(bytearray(b"bytearray "))
            write(memoryview(b"..memoryview ")[2:])
            write(memoryview(bytearray(b"writable ")))
            expected = b"bytes bytearray memoryview writable "
            assert await pair.server.got(len(expected)) == expected

    run(main())


def test_a_subclass_of_bytes_is_written_as_its_bytes(run, kind, tls):
    class Mine(bytes):
        def __len__(self) -> int:
            return super().__len__()

    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            pair.client_transport.write(Mine(b"subclass"))
            assert await pair.server.got(8) == b"subclass"

    run(main())


async def change_buffers_after_write(kind: str, tls: Tls | None) -> None:
    data = pattern(600_000)
    async with connected(kind, tls=tls, small_buffers=True) as pair:
        buffer = bytearray(data)
        view = memoryview(bytearray(data))
        pair.server_transport.pause_reading()
        pair.client_transport.write(buffer)
        pair.client_transport.writelines([buffer, view])
        buffer[:] = bytes(len(buffer))
        view[:] = bytes(len(view))
        buffer.extend(b"and resized")  # an exported buffer would refuse
        pair.server_transport.resume_reading()
        assert await pair.server.got(len(data) * 3) == data * 3


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.asyncio_bug("its queue keeps views of the caller's buffers", when=sys.version_info >= (3, 12))
def test_a_buffer_may_be_changed_after_write_returned(run, kind):
    run(change_buffers_after_write(kind, None))


def test_a_buffer_may_be_changed_after_write_to_tls_returned(run, tls):
    run(change_buffers_after_write("tls", tls))


def test_writing_nothing_is_nothing(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            pair.client_transport.write(b"")
            pair.client_transport.writelines([])
            pair.client_transport.writelines([b"", b""])
            pair.client_transport.write(b"x")
            assert await pair.server.got(1) == b"x"
            assert pair.client_transport.get_write_buffer_size() == 0

    run(main())


@pytest.mark.parametrize("wrong", ["text", 1, None, [b"x"]], ids=str)
def test_writing_something_else_is_a_type_error(run, kind, tls, wrong):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            with pytest.raises(TypeError):
                pair.client_transport.write(wrong)
            pair.client_transport.write(b"fine")
            assert await pair.server.got(4) == b"fine"

    run(main())


def test_writelines_takes_any_iterable_of_buffers(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            pair.client_transport.writelines(
                part for part in (b"generator ", bytearray(b"of "), memoryview(b"parts "))
            )
            pair.client_transport.writelines((b"tuple ",))
            pair.client_transport.writelines([b"list"])
            expected = b"generator of parts tuple list"
            assert await pair.server.got(len(expected)) == expected

    run(main())


def test_data_written_before_close_arrives(run, kind, tls):
    async def main() -> None:
        data = pattern(2_000_000)
        async with connected(kind, tls=tls) as pair:
            pair.client_transport.write(data)
            pair.client_transport.close()
            assert pair.client_transport.is_closing()
            assert await pair.server.got(len(data)) == data
            assert await within(pair.client.lost) is None

    run(main())


def test_close_twice_and_abort_after_close_call_connection_lost_once(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            transport = pair.client_transport
            transport.close()
            transport.close()
            transport.abort()
            transport.abort()
            await within(pair.client.lost)
            transport.close()
            transport.abort()
            await turns(5)
            assert pair.client.lost_count == 1

    run(main())


def test_connection_lost_is_never_called_from_inside_close_or_abort(run, kind, tls):
    async def main() -> None:
        for method in ("close", "abort"):
            async with connected(kind, tls=tls) as pair:
                getattr(pair.client_transport, method)()
                assert not pair.client.lost.done()
                await within(pair.client.lost)

    run(main())


def test_abort_drops_what_is_queued(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            pair.server_transport.pause_reading()
            pair.client_transport.write(bytes(30_000_000))
            if kind != "tls":  # asyncio counts no ciphertext that waits below
                assert pair.client_transport.get_write_buffer_size() > 0
            pair.client_transport.abort()
            assert pair.client_transport.is_closing()
            assert await within(pair.client.lost) is None
            pair.server_transport.resume_reading()
            await within(pair.server.lost)
            assert len(pair.server.received) < 30_000_000

    run(main())


@pytest.mark.asyncio_bug(
    "writelines() forgets to ask whether the connection is lost",
    when=bool(WRITELINES_USES) and "_conn_lost" not in WRITELINES_USES,
    kinds=("tcp", "unix"),
)
def test_writing_after_close_is_dropped(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            pair.client_transport.write(b"before")
            pair.client_transport.close()
            pair.client_transport.write(b"after")
            pair.client_transport.writelines([b"after", b"after"])
            await within(pair.client.lost)
            pair.client_transport.write(b"after")
            pair.client_transport.writelines([b"after"])
            await within(pair.server.lost)
            assert bytes(pair.server.received) == b"before"

    run(main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_writes_to_a_lost_connection_warn_from_the_fifth_on(run, kind, caplog):
    async def main() -> None:
        async with connected(kind) as pair:
            pair.client_transport.abort()
            await within(pair.client.lost)
            with caplog.at_level(logging.WARNING, "asyncio"):
                for _ in range(4):
                    pair.client_transport.write(b"x")
                assert "socket.send() raised exception" not in caplog.text
                for _ in range(4):
                    pair.client_transport.write(b"x")
                assert "socket.send() raised exception" in caplog.text

    run(main())


# --- half-closing ----


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_write_eof_lets_the_answer_through(run, kind):
    class Server(Log):
        def eof_received(self) -> bool:
            super().eof_received()
            self.transport.write(b"answer")
            self.transport.close()
            return True

    async def main() -> None:
        async with connected(kind, server=Server) as pair:
            assert pair.client_transport.can_write_eof() is True
            data = pattern(1_000_000)
            pair.client_transport.write(data)
            pair.client_transport.write_eof()
            pair.client_transport.write_eof()  # again is harmless
            assert await pair.server.got(len(data)) == data
            assert await pair.client.got(6) == b"answer"
            assert await within(pair.client.lost) is None

    run(main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_writing_after_write_eof_is_an_error(run, kind):
    async def main() -> None:
        async with connected(kind) as pair:
            pair.client_transport.write_eof()
            with pytest.raises(RuntimeError):
                pair.client_transport.write(b"x")
            with pytest.raises(RuntimeError):
                pair.client_transport.writelines([b"x"])

    run(main())


def test_eof_returning_true_keeps_the_write_side(run):
    async def main() -> None:
        async with connected("tcp") as pair:
            pair.server.keep_open_after_eof = True
            pair.client_transport.write_eof()
            await within(pair.server.eof)
            await turns(5)
            assert not pair.server.lost.done()
            assert not pair.server_transport.is_closing()
            data = pattern(500_000)
            pair.server_transport.write(data)
            assert await pair.client.got(len(data)) == data
            pair.server_transport.close()
            assert await within(pair.server.lost) is None
            assert await within(pair.client.lost) is None

    run(main())


@pytest.mark.only_zloop("asyncio watches the descriptor anew, and reports the same end again")
def test_pausing_and_resuming_after_the_end_does_not_report_it_again(run):
    async def main() -> None:
        async with connected("tcp") as pair:
            pair.server.keep_open_after_eof = True
            pair.client_transport.write_eof()
            await within(pair.server.eof)
            pair.server_transport.pause_reading()
            await turns(2)
            pair.server_transport.resume_reading()
            pair.server_transport.write(b"still here")
            assert await pair.client.got(10) == b"still here"
            await turns(3)
            assert pair.server.events.count("eof") == 1

    run(main())


def test_a_protocol_set_after_the_end_hears_of_it_when_reading_resumes(run):
    async def main() -> None:
        async with connected("tcp") as pair:
            pair.server.keep_open_after_eof = True
            pair.client_transport.write_eof()
            await within(pair.server.eof)
            second = Log()
            second.connection_made(pair.server_transport)
            pair.server_transport.pause_reading()
            pair.server_transport.set_protocol(second)
            pair.server_transport.resume_reading()
            await within(second.eof)
            await within(second.lost)
            pair.server.lost.set_result(None)

    run(main())


def test_eof_returning_none_closes_after_flushing(run):
    class Server(Log):
        def eof_received(self) -> None:
            super().eof_received()
            self.transport.write(pattern(1_000_000))

    async def main() -> None:
        async with connected("tcp", server=Server) as pair:
            pair.client.keep_open_after_eof = True
            pair.client_transport.write_eof()
            assert await pair.client.got(1_000_000) == pattern(1_000_000)
            assert await within(pair.server.lost) is None
            assert pair.server.events[:2] == ["made", "eof"]

    run(main())


def test_both_sides_half_close(run, kind):
    if kind == "tls":
        pytest.skip("TLS transports of asyncio cannot half-close")

    async def main() -> None:
        async with connected(kind) as pair:
            pair.client.keep_open_after_eof = pair.server.keep_open_after_eof = True
            pair.client_transport.write_eof()
            await within(pair.server.eof)
            pair.server_transport.write(b"last words")
            pair.server_transport.write_eof()
            await within(pair.client.eof)
            assert await pair.client.got(10) == b"last words"
            for transport in (pair.client_transport, pair.server_transport):
                transport.close()
            assert await within(pair.client.lost) is None
            assert await within(pair.server.lost) is None

    run(main())


# --- failures of the peer ----


def test_reset_by_peer(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        transport, log = await loop.create_connection(Log, sock=left)
        reset(right)
        assert isinstance(await within(log.lost), ConnectionResetError)
        assert log.events[-1] == "lost"
        transport.write(b"dropped")
        assert transport.is_closing()

    run(main())


def test_reset_while_much_is_queued(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        transport, log = await loop.create_connection(Log, sock=left)
        transport.write(bytes(20_000_000))
        assert log.paused
        reset(right)
        assert isinstance(await within(log.lost), (ConnectionResetError, BrokenPipeError))
        assert transport.get_write_buffer_size() == 0

    run(main())


def test_peer_closes_while_we_never_read_only_write(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        transport, log = await loop.create_connection(Log, sock=left)
        transport.pause_reading()
        right.close()

        async def writer() -> None:
            while not transport.is_closing():
                transport.write(b"x" * 1000)
                await asyncio.sleep(0)

        await within(writer())
        assert isinstance(await within(log.lost), (ConnectionResetError, BrokenPipeError))

    run(main())


def test_routine_peer_errors_are_not_reported_to_the_exception_handler(run):
    async def main() -> None:  # run() fails on any report
        loop = asyncio.get_running_loop()
        for _ in range(20):
            left, right = tcp_sockets()
            _, log = await loop.create_connection(Log, sock=left)
            reset(right)
            await within(log.lost)

    run(main())


# --- pausing ----


def test_pause_and_resume_reading(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            transport = pair.server_transport
            assert transport.is_reading()
            transport.pause_reading()
            transport.pause_reading()  # idempotent
            assert not transport.is_reading()
            pair.client_transport.write(b"waits")
            await asyncio.sleep(0.01)
            assert not pair.server.received
            transport.resume_reading()
            transport.resume_reading()
            assert transport.is_reading()
            assert await pair.server.got(5) == b"waits"

    run(main())


@old_tls
def test_pausing_inside_data_received_stops_delivery(run, kind, tls):
    class Careful(Log):
        def data_received(self, data: bytes) -> None:
            assert not self.paused_reading
            super().data_received(data)
            self.paused_reading = True
            self.transport.pause_reading()

        paused_reading = False

    async def main() -> None:
        data = pattern(1_500_000)
        async with connected(kind, server=Careful, tls=tls) as pair:
            pair.client_transport.write(data)
            while len(pair.server.received) < len(data):
                await pair.server.when(lambda: pair.server.paused_reading)
                seen = len(pair.server.received)
                await turns(3)
                assert len(pair.server.received) == seen
                pair.server.paused_reading = False
                pair.server_transport.resume_reading()
            assert bytes(pair.server.received) == data

    run(main())


@old_tls
def test_pausing_a_closing_transport_is_a_no_op(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            pair.client_transport.close()
            pair.client_transport.pause_reading()
            pair.client_transport.resume_reading()
            if kind != "tls":  # a closing TLS transport still reads, for its peer's farewell
                assert not pair.client_transport.is_reading()
            await within(pair.client.lost)
            pair.client_transport.pause_reading()
            pair.client_transport.resume_reading()

    run(main())


@pytest.mark.asyncio_bug(
    "resumes behind the protocol's back", when=sys.version_info < (3, 11), kinds=("tcp", "unix")
)
def test_pausing_from_connection_made(run, kind, tls):
    class Shy(Log):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    async def main() -> None:
        async with connected(kind, server=Shy, tls=tls) as pair:
            pair.client_transport.write(b"x")
            await asyncio.sleep(0.01)
            assert not pair.server.received
            pair.server_transport.resume_reading()
            assert await pair.server.got(1) == b"x"

    run(main())


# --- exceptions of the protocol ----


def test_data_received_that_raises_ends_the_connection_with_that_exception(run, kind, tls):
    reports: list[Report] = []

    class Broken(Log):
        calls = 0

        def data_received(self, data: bytes) -> None:
            self.calls += 1
            raise LookupError("mine")

    async def main() -> None:
        async with connected(kind, server=Broken, tls=tls) as pair:
            pair.client_transport.write(b"x")
            exc = await within(pair.server.lost)
            assert isinstance(exc, LookupError)
            assert pair.server.calls == 1
            await within(pair.client.lost)

    run(main(), reports=reports)
    assert [str(report["exception"]) for report in reports] == ["mine"]
    assert reports[0]["protocol"] is not None
    assert reports[0]["transport"] is not None


def test_eof_received_that_raises_is_reported(run):
    reports: list[Report] = []

    class Broken(Log):
        def eof_received(self) -> None:
            raise LookupError("mine")

    async def main() -> None:
        async with connected("tcp", server=Broken) as pair:
            pair.client_transport.write_eof()
            assert isinstance(await within(pair.server.lost), LookupError)

    run(main(), reports=reports)
    assert [str(report["exception"]) for report in reports] == ["mine"]


def test_connection_made_that_raises_is_reported_and_the_transport_lives(run):
    reports: list[Report] = []

    class Broken(Log):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            raise LookupError("mine")

    async def main() -> None:
        async with connected("tcp", server=Broken) as pair:
            pair.client_transport.write(b"x")
            assert await pair.server.got(1) == b"x"

    run(main(), reports=reports)
    assert [str(report["exception"]) for report in reports] == ["mine"]


def test_connection_lost_that_raises_is_reported_and_the_socket_closed(run):
    reports: list[Report] = []

    class Broken(Log):
        def connection_lost(self, exc: BaseException | None) -> None:
            super().connection_lost(exc)
            raise LookupError("mine")

    async def main() -> None:
        async with connected("tcp", server=Broken) as pair:
            pair.server_transport.close()
            await within(pair.client.lost)

    run(main(), reports=reports)
    assert [str(report["exception"]) for report in reports] == ["mine"]


# --- protocols change ----


@old_tls_hangs
def test_set_protocol_moves_later_callbacks(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            transport = pair.server_transport
            assert transport.get_protocol() is pair.server
            pair.client_transport.write(b"first")
            assert await pair.server.got(5) == b"first"
            second = Log()
            transport.set_protocol(second)
            assert transport.get_protocol() is second
            pair.client_transport.write(b"second")
            assert await second.got(6) == b"second"
            pair.client_transport.close()
            await within(second.lost)
            assert second.events == ["data", "eof", "lost"]
            pair.server.lost.set_result(None)

    run(main())


def test_set_protocol_inside_data_received(run, kind, tls):
    second: list[Log] = []

    class Switch(Log):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            second.append(Log())
            self.transport.set_protocol(second[0])

    async def main() -> None:
        async with connected(kind, server=Switch, tls=tls) as pair:
            pair.client_transport.write(b"a")
            await pair.server.got(1)
            pair.client_transport.write(b"b")
            assert await second[0].got(1) == b"b"
            pair.client_transport.close()
            await within(second[0].lost)
            pair.server.lost.set_result(None)

    run(main())


def test_write_from_every_callback(run, kind, tls):
    class Chatty(Log):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.write(b"made;")

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.write(b"data;")

    async def main() -> None:
        async with connected(kind, server=Chatty, tls=tls) as pair:
            assert await pair.client.got(5) == b"made;"
            pair.client_transport.write(b"x")
            assert await pair.client.got(5) == b"data;"

    run(main())


@pytest.mark.asyncio_bug("reports data that came after close() as an SSLError", kinds=("tls",))
def test_close_and_abort_from_data_received(run, kind, tls):
    async def main() -> None:
        for method in ("close", "abort"):

            class Leaves(Log):
                method_name = method

                def data_received(self, data: bytes) -> None:
                    assert "lost" not in self.events
                    super().data_received(data)
                    getattr(self.transport, self.method_name)()

            async with connected(kind, server=Leaves, tls=tls) as pair:
                pair.client_transport.write(pattern(500_000))
                assert await within(pair.server.lost) is None
                assert pair.server.events.count("data") == 1
                await within(pair.client.lost)

    run(main())


# --- what a transport tells ----


def test_extra_info(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener() as listening:
            transport, log = await loop.create_connection(Log, *listening.getsockname())
            accepted, address = listening.accept()
            with accepted:
                assert transport.get_extra_info("peername") == listening.getsockname()
                assert transport.get_extra_info("sockname") == address
                sock = transport.get_extra_info("socket")
                assert isinstance(sock, asyncio.trsock.TransportSocket)
                assert sock.fileno() >= 0
                assert sock.family == socket.AF_INET
                assert sock.type == socket.SOCK_STREAM
                assert sock.getsockname() == address
                assert sock.getpeername() == listening.getsockname()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert transport.get_extra_info("nothing") is None
                assert transport.get_extra_info("nothing", 5) == 5
                transport.close()
                await within(log.lost)
            # names outlive the connection, the descriptor does not
            assert transport.get_extra_info("peername") == listening.getsockname()
            assert transport.get_extra_info("sockname") == address

    run(main())


def test_the_peers_name_outlives_a_reset(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener() as listening:
            transport, log = await loop.create_connection(Log, *listening.getsockname())
            reset(listening.accept()[0])
            # Nobody has asked for the name before, and the kernel does not know it any more.
            assert isinstance(await within(log.lost), ConnectionResetError)
            assert transport.get_extra_info("peername") == listening.getsockname()

    run(main())


def test_nodelay_is_set_on_accepted_connections_too(run):
    async def main() -> None:
        async with connected("tcp") as pair:
            for transport in (pair.client_transport, pair.server_transport):
                sock = transport.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(main())


def test_repr_at_every_stage(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            assert repr(pair.client_transport)
            pair.client_transport.pause_reading()
            assert repr(pair.client_transport)
            pair.server_transport.pause_reading()
            pair.client_transport.write(bytes(10_000_000))
            assert repr(pair.client_transport)
            pair.client_transport.abort()
            assert repr(pair.client_transport)
            await within(pair.client.lost)
            assert repr(pair.client_transport)
            pair.server_transport.abort()

    run(main())


def test_a_transport_is_what_it_says(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            for transport in (pair.client_transport, pair.server_transport):
                assert isinstance(transport, asyncio.Transport)
                assert weakref.ref(transport)() is transport

    run(main())


def test_a_transport_without_references_stays_connected(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        log = (await loop.create_connection(Log, sock=left))[1]
        log.transport = None
        log.made = loop.create_future()
        import gc

        gc.collect()
        right.send(b"x")
        assert await log.got(1) == b"x"
        right.close()
        assert await within(log.lost) is None

    run(main())


# --- create_connection ----


def test_refused(run):
    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.get_running_loop().create_connection(Log, "127.0.0.1", closed_port())

    run(main())


@needs_ipv6
def test_ipv6(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener(socket.AF_INET6) as listening:
            port = listening.getsockname()[1]
            transport, log = await loop.create_connection(Log, "::1", port)
            assert transport.get_extra_info("peername")[:2] == ("::1", port)
            assert len(transport.get_extra_info("peername")) == 4
            transport.close()
            await within(log.lost)

    run(main())


def test_names_services_and_number_strings(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener() as listening:
            port = listening.getsockname()[1]
            for host, service in (("localhost", port), ("127.0.0.1", str(port)), (b"127.0.0.1", port)):
                transport, log = await loop.create_connection(Log, host, service, family=socket.AF_INET)
                transport.close()
                await within(log.lost)

    run(main())


def test_local_address(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener() as listening:
            port = closed_port()
            transport, log = await loop.create_connection(
                Log, *listening.getsockname(), local_addr=("127.0.0.1", port), flags=0, proto=0
            )
            assert transport.get_extra_info("sockname") == ("127.0.0.1", port)
            transport.abort()
            await within(log.lost)
            with pytest.raises(OSError):
                await loop.create_connection(Log, *listening.getsockname(), local_addr=("192.0.2.1", 0))

    run(main())


@pytest.mark.parametrize(
    "options", [{"happy_eyeballs_delay": 0.05}, {"happy_eyeballs_delay": 0.05, "interleave": 2}]
)
def test_happy_eyeballs(run, options):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener() as listening:
            port = listening.getsockname()[1]
            transport, log = await loop.create_connection(Log, "localhost", port, **options)
            assert transport.get_extra_info("peername") == ("127.0.0.1", port)
            transport.close()
            await within(log.lost)

    run(main())


def test_happy_eyeballs_does_not_wait_for_a_silent_address(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener(backlog=1) as silent, listener() as answering:
            # fill the first one's queue: further connects to it wait for ever
            waiting = []
            for _ in range(4):
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(silent.getsockname())
                waiting.append(sock)
            await asyncio.sleep(0.01)

            async def resolve(*_args: Any, **_kwargs: Any) -> list[Any]:
                return [
                    (socket.AF_INET, socket.SOCK_STREAM, 6, "", each.getsockname())
                    for each in (silent, answering)
                ]

            loop.getaddrinfo = resolve  # the documented place for another resolver
            transport, log = await within(
                loop.create_connection(Log, "two.addresses", 1, happy_eyeballs_delay=0.02)
            )
            assert transport.get_extra_info("peername") == answering.getsockname()
            transport.close()
            await within(log.lost)
            for sock in waiting:
                sock.close()

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="all_errors came with 3.12")
def test_all_errors(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def resolve(*_args: Any, **_kwargs: Any) -> list[Any]:
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", closed_port())) for _ in range(3)
            ]

        loop.getaddrinfo = resolve
        with pytest.raises(ExceptionGroup) as caught:  # noqa: F821
            await loop.create_connection(Log, "three.addresses", 1, all_errors=True)
        assert [type(exc) for exc in caught.value.exceptions] == [ConnectionRefusedError] * 3

    run(main())


def test_argument_errors(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock, socket.socket(type=socket.SOCK_DGRAM) as datagram:
            for options in (
                {},
                {"host": "127.0.0.1", "port": 1, "sock": sock},
                {"sock": datagram},
                {"host": "127.0.0.1", "port": 1, "server_hostname": "x"},
                {"host": "127.0.0.1", "port": 1, "ssl_handshake_timeout": 1},
                {"sock": sock, "ssl": True},
            ):
                with pytest.raises(ValueError):
                    await loop.create_connection(Log, **options)

    run(main())


def test_a_protocol_factory_that_raises_leaves_nothing(run):
    class Refused(Exception): ...

    def factory() -> Log:
        raise Refused

    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        with pytest.raises(Refused):
            await loop.create_connection(factory, sock=left)
        left.close()
        right.settimeout(60)
        assert right.recv(1) == b""  # nobody holds the other end
        right.close()

    run(main())


def test_cancelling_a_connect_leaves_nothing(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with listener() as listening:
            for turns_before in range(8):
                task = loop.create_task(loop.create_connection(Log, *listening.getsockname()))
                await turns(turns_before)
                task.cancel()
                try:
                    transport, log = await task
                except asyncio.CancelledError:
                    continue
                transport.abort()
                await within(log.lost)

    run(main())


@pytest.mark.parametrize("method", ["create_connection", "connect_accepted_socket"])
def test_sockets_given_by_the_user(run, method):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = tcp_sockets()
        transport, log = await getattr(loop, method)(Log, sock=left)
        right.send(b"x")
        assert await log.got(1) == b"x"
        transport.close()
        await within(log.lost)
        assert right.recv(1) == b""
        right.close()

    run(main())


def test_a_hundred_connections_at_once(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()

        async def one(number: int) -> None:
            transport, log = await loop.create_connection(Log, *address)
            data = pattern(20_000, seed=number)
            transport.write(data)
            assert await log.got(len(data)) == data
            transport.close()
            await within(log.lost)

        await asyncio.gather(*map(one, range(100)))
        server.close()
        await within(server.wait_closed())

    run(main())


def test_urgent_data_and_options_do_not_disturb(run):
    async def main() -> None:
        async with connected("tcp") as pair:
            sock = pair.client_transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
            pair.client_transport.write(b"x")
            assert await pair.server.got(1) == b"x"
            await until(lambda: pair.client_transport.get_write_buffer_size() == 0)

    run(main())


# --- sockets and methods that a program brings ----


def test_a_read_takes_all_that_has_come(run):
    async def main() -> None:
        sizes: list[int] = []

        class Sizes(Log):
            def data_received(self, data: bytes) -> None:
                sizes.append(len(data))
                super().data_received(data)

        left, right = socket.socketpair()
        left.setblocking(False)
        right.sendall(bytes(100_000))
        transport, log = await asyncio.get_running_loop().create_connection(Sizes, sock=left)
        await log.got(100_000)
        assert sizes == [100_000]
        right.sendall(bytes(90_000))
        await log.got(90_000)
        assert sizes == [100_000, 90_000]
        transport.close()
        await within(log.lost)
        right.close()

    run(main())


@pytest.mark.only_zloop("asyncio reads into a new mapping each time")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's heap")
@pytest.mark.skipif("QEMU_LD_PREFIX" in os.environ, reason="the emulator's own page faults count too")
@pytest.mark.skipif("MALLOC_MMAP_THRESHOLD_" in os.environ, reason="the program decides by itself")
def test_large_reads_come_from_the_heap(loop_name):
    # In a process of its own: any large block freed before teaches the heap.
    done = run_python("-c", LARGE_READS, *loop_name.split(":"), check=True)
    # Two hundred reads; a mapping of this size costs 49 faults.
    assert int(done.stdout) < 1000


LARGE_READS = """
import asyncio, importlib, resource, sys

SIZE, COUNT = 200_000, 100

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

class Client(Echo):
    left = SIZE
    rounds = COUNT

    def __init__(self, done):
        self.done = done

    def data_received(self, data):
        self.left -= len(data)
        if self.left == 0:
            self.left = SIZE
            self.rounds -= 1
            if self.rounds:
                self.transport.write(MESSAGE)
            else:
                self.transport.close()

    def connection_lost(self, exc):
        self.done.set_result(None)

async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    done = loop.create_future()
    transport, _ = await loop.create_connection(lambda: Client(done), *server.sockets[0].getsockname())
    transport.write(MESSAGE)
    await done
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    server.close()

MESSAGE = bytes(SIZE)
loop = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])()
loop.run_until_complete(main())
loop.close()
"""


class Counted(socket.socket):
    """A socket that sees what goes through its methods."""

    received = 0
    sent = 0

    def recv(self, *args: Any) -> bytes:
        data = super().recv(*args)
        self.received += len(data)
        return data

    def recv_into(self, *args: Any) -> int:
        count = super().recv_into(*args)
        self.received += count
        return count

    def send(self, *args: Any) -> int:
        count = super().send(*args)
        self.sent += count
        return count

    def sendmsg(self, *args: Any) -> int:
        count = super().sendmsg(*args)
        self.sent += count
        return count


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_a_socket_with_methods_of_its_own_is_used_by_them(run, tls, encrypted):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        accepted: list[Echo] = []

        def factory() -> Echo:
            accepted.append(Echo())
            return accepted[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=tls.server if encrypted else None)
        sock = Counted(socket.AF_INET)
        sock.setblocking(False)
        await loop.sock_connect(sock, server.sockets[0].getsockname())
        options = {"ssl": tls.client, "server_hostname": "localhost"} if encrypted else {}
        transport, log = await within(loop.create_connection(Log, sock=sock, **options))
        data = pattern(500_000)
        transport.write(data)
        assert await log.got(len(data)) == data
        assert sock.sent >= len(data)
        assert sock.received >= len(data)
        transport.close()
        await within(log.lost)
        await within(accepted[0].lost)
        assert sock.fileno() == -1
        server.close()
        await within(server.wait_closed())

    run(main())


def test_get_extra_info_can_be_replaced_on_the_public_class(run, monkeypatch):
    async def main() -> None:
        async with connected("tcp") as pair:
            transport = pair.client_transport
            own = transport.get_extra_info("sockname")
            with monkeypatch.context() as patch:
                patch.setattr(asyncio.Transport, "get_extra_info", lambda self, name: (self, name))
                assert transport.get_extra_info("sockname") == (transport, "sockname")
            assert transport.get_extra_info("sockname") == own

    run(main())


def test_what_callbacks_of_a_turn_write_leaves_by_its_end(run, kind, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected(kind, tls=tls) as one, connected(kind, tls=tls) as two:
            order = [one, two, one, two, one]
            for number, pair in enumerate(order):
                loop.call_soon(pair.client_transport.write, b"%d" % number)
            # The loop has nothing more to do: what was written must not wait for anything.
            assert await one.server.got(3) == b"024"
            assert await two.server.got(2) == b"13"

    run(main())


@contextlib.contextmanager
def written_to(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[asyncio.Transport, socket.socket]]:
    """A transport, and the plain socket of its peer."""
    left, right = tcp_sockets()
    transport, _ = loop.run_until_complete(loop.create_connection(Log, sock=left))
    with right:
        yield transport, right
    transport.abort()
    loop.run_until_complete(asyncio.sleep(0))


def test_what_was_written_leaves_before_the_run_ends(loop):
    with written_to(loop) as (transport, peer):
        loop.call_soon(transport.write, b"before the stop")
        loop.call_soon(loop.stop)
        loop.call_soon(transport.write, b", in the same turn")
        loop.run_forever()
        assert peer.recv(100) == b"before the stop, in the same turn"


def test_what_was_written_leaves_when_an_exception_ends_the_run(loop):
    with written_to(loop) as (transport, peer):
        loop.call_soon(transport.write, b"written")
        loop.call_soon(sys.exit, 3)
        with pytest.raises(SystemExit):
            loop.run_forever()
        assert peer.recv(100) == b"written"


def test_what_was_written_does_not_wait_for_callbacks_that_compute(loop):
    seen: list[bytes] = []

    def compute() -> None:
        deadline = time.perf_counter() + 0.002
        while time.perf_counter() < deadline:
            pass

    with written_to(loop) as (transport, peer):
        peer.setblocking(False)
        loop.call_soon(transport.write, b"written")
        loop.call_soon(compute)
        loop.call_soon(lambda: seen.append(peer.recv(100)))
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert seen == [b"written"]
