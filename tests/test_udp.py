"""Datagram endpoints."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
import weakref
from typing import Any

import pytest
from harness import DatagramLog, Report, closed_port, has_ipv6, turns, until, within

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="says how Linux does it")


async def endpoint(**options: Any) -> tuple[Any, DatagramLog]:
    if not options:
        options = {"local_addr": ("127.0.0.1", 0)}
    return await asyncio.get_running_loop().create_datagram_endpoint(DatagramLog, **options)


async def shut(*ends: tuple[Any, DatagramLog]) -> None:
    for transport, log in ends:
        transport.close()
        assert await within(log.lost) is None


def test_there_and_back(run):
    async def main() -> None:
        one, two = await endpoint(), await endpoint()
        here, there = one[0].get_extra_info("sockname"), two[0].get_extra_info("sockname")
        one[0].sendto(b"question", there)
        assert await two[1].packet() == (b"question", here)
        two[0].sendto(b"answer", here)
        assert await one[1].packet() == (b"answer", there)
        await shut(one, two)
        assert one[1].events == ["made", "lost"]

    run(main())


@pytest.mark.asyncio_bug("is only a _FlowControlMixin", when=sys.version_info < (3, 12), run=False)
def test_a_transport_is_what_it_says(run):
    async def main() -> None:
        end = await endpoint()
        assert isinstance(end[0], asyncio.DatagramTransport)
        assert weakref.ref(end[0])() is end[0]
        assert isinstance(end[0].get_extra_info("socket"), asyncio.trsock.TransportSocket)
        assert end[0].get_extra_info("peername") is None
        assert not end[0].is_closing()
        assert repr(end[0])
        await shut(end)
        assert end[0].is_closing()
        assert repr(end[0])

    run(main())


@pytest.mark.parametrize("size", [1, 1500, 9000, 65507])
def test_sizes(run, size):
    async def main() -> None:
        one, two = await endpoint(), await endpoint()
        data = os.urandom(size)
        one[0].sendto(data, two[0].get_extra_info("sockname"))
        assert (await two[1].packet())[0] == data
        await shut(one, two)

    run(main())


@pytest.mark.asyncio_bug("drops empty datagrams", when=sys.version_info < (3, 13), run=False)
def test_an_empty_datagram(run):
    async def main() -> None:
        one, two = await endpoint(), await endpoint()
        here = one[0].get_extra_info("sockname")
        one[0].sendto(b"", two[0].get_extra_info("sockname"))
        assert await two[1].packet() == (b"", here)
        await shut(one, two)

    run(main())


def test_a_burst_keeps_its_order(run):
    async def main() -> None:
        one, two = await endpoint(), await endpoint()
        two[0].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        there = two[0].get_extra_info("sockname")
        for number in range(200):
            one[0].sendto(b"%d" % number, there)
        await two[1].when(lambda: len(two[1].packets) == 200)
        assert [data for data, _ in two[1].packets] == [b"%d" % number for number in range(200)]
        await shut(one, two)

    run(main())


def test_connected(run):
    async def main() -> None:
        two = await endpoint()
        there = two[0].get_extra_info("sockname")
        one = await endpoint(remote_addr=there)
        here = one[0].get_extra_info("sockname")
        assert one[0].get_extra_info("peername") == there
        one[0].sendto(b"no address")
        assert await two[1].packet() == (b"no address", here)
        one[0].sendto(b"its own address", there)
        assert await two[1].packet() == (b"its own address", here)
        one[0].sendto(b"none", None)
        assert await two[1].packet() == (b"none", here)
        with pytest.raises(ValueError):
            one[0].sendto(b"elsewhere", ("127.0.0.1", closed_port()))
        two[0].sendto(b"answer", here)
        assert await one[1].packet() == (b"answer", there)
        await shut(one, two)

    run(main())


def test_local_and_remote_address(run):
    async def main() -> None:
        two = await endpoint()
        there = two[0].get_extra_info("sockname")
        one = await endpoint(local_addr=("127.0.0.1", 0), remote_addr=there)
        one[0].sendto(b"x")
        assert await two[1].packet() == (b"x", one[0].get_extra_info("sockname"))
        await shut(one, two)

    run(main())


@needs_ipv6
def test_ipv6_without_naming_the_family(run):
    async def main() -> None:
        one = await endpoint(local_addr=("::1", 0))
        two = await endpoint(remote_addr=("::1", one[0].get_extra_info("sockname")[1]))
        two[0].sendto(b"six")
        data, address = await one[1].packet()
        assert (data, address[:2]) == (b"six", ("::1", two[0].get_extra_info("sockname")[1]))
        assert len(address) == 4
        one[0].sendto(b"back", address)
        assert (await two[1].packet())[0] == b"back"
        await shut(one, two)

    run(main())


def test_family_alone_and_port_as_text(run):
    async def main() -> None:
        one = await endpoint(family=socket.AF_INET)
        two = await endpoint(local_addr=("localhost", 0), family=socket.AF_INET)
        one[0].sendto(b"x", two[0].get_extra_info("sockname"))
        assert (await two[1].packet())[0] == b"x"
        three = await endpoint(remote_addr=("127.0.0.1", str(two[0].get_extra_info("sockname")[1])))
        three[0].sendto(b"y")
        assert (await two[1].packet())[0] == b"y"
        await shut(one, two, three)

    run(main())


def test_a_socket_given_by_the_user(run):
    async def main() -> None:
        left, right = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
        for sock in (left, right):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        left.connect(right.getsockname())
        one, two = await endpoint(sock=left), await endpoint(sock=right)
        assert one[0].get_extra_info("peername") == two[0].get_extra_info("sockname")
        one[0].sendto(b"x")
        assert (await two[1].packet())[0] == b"x"
        await shut(one, two)
        assert left.fileno() == -1

    run(main())


def test_unix_datagrams(run, unix_path):
    async def main() -> None:
        one = await endpoint(local_addr=unix_path, family=socket.AF_UNIX)
        two = await endpoint(local_addr=unix_path + "2", remote_addr=unix_path, family=socket.AF_UNIX)
        two[0].sendto(b"x")
        assert await one[1].packet() == (b"x", unix_path + "2")
        one[0].sendto(b"y", unix_path + "2")
        assert await two[1].packet() == (b"y", unix_path)
        await shut(one, two)
        for path in (unix_path, unix_path + "2"):
            if os.path.exists(path):
                os.unlink(path)

    run(main())


@pytest.mark.asyncio_bug("takes a peer without a name for no peer", run=False)
def test_unix_datagram_socketpair(run):
    async def main() -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        one, two = await endpoint(sock=left), await endpoint(sock=right)
        for number in range(50):
            one[0].sendto(b"%d" % number)
            assert (await two[1].packet())[0] == b"%d" % number
        await shut(one, two)

    run(main())


@linux
def test_abstract_unix_datagrams(run):
    async def main() -> None:
        name = f"\0zloop-udp-{os.getpid()}"
        one = await endpoint(local_addr=name, family=socket.AF_UNIX)
        two = await endpoint(remote_addr=name, family=socket.AF_UNIX)
        two[0].sendto(b"x")
        assert (await one[1].packet())[0] == b"x"
        await shut(one, two)

    run(main())


def test_refused_comes_to_error_received_and_the_endpoint_lives(run):
    async def main() -> None:
        two = await endpoint()
        port = two[0].get_extra_info("sockname")[1]
        await shut(two)
        one = await endpoint(remote_addr=("127.0.0.1", port))
        await until(lambda: (one[0].sendto(b"x"), one[1].errors)[1])
        assert isinstance(one[1].errors[0], ConnectionRefusedError)
        assert not one[0].is_closing()
        two = await endpoint(local_addr=("127.0.0.1", port))
        await until(lambda: (one[0].sendto(b"y"), two[1].packets)[1])
        await shut(one, two)

    run(main())


def test_a_send_error_comes_to_error_received(run):
    async def main() -> None:
        one = await endpoint()
        one[0].sendto(bytes(70_000), ("127.0.0.1", closed_port()))
        await until(lambda: one[1].errors)
        assert isinstance(one[1].errors[0], OSError)
        assert one[1].errors[0].errno == errno.EMSGSIZE
        assert not one[0].is_closing()
        one[0].sendto(b"x", one[0].get_extra_info("sockname"))
        assert (await one[1].packet())[0] == b"x"
        await shut(one)

    run(main())


@pytest.mark.parametrize(
    "address", [("127.0.0.1", 70000), ("127.0.0.1", -1), ("127.0.0.1",), "127.0.0.1", 5], ids=str
)
def test_a_wrong_address_never_reaches_another(run, address):
    reports: list[Report] = []

    async def main() -> None:
        one = await endpoint()
        trap = None
        if address == ("127.0.0.1", 70000):
            trap = socket.socket(type=socket.SOCK_DGRAM)
            trap.setblocking(False)
            try:
                trap.bind(("127.0.0.1", 70000 % 65536))
            except OSError:
                trap.close()
                trap = None
        try:
            one[0].sendto(b"x", address)
        except (OverflowError, TypeError, ValueError, OSError):
            pass
        else:
            # asyncio before 3.13 ends the transport with a report instead
            await turns(3)
            assert one[1].errors or one[1].lost.done()
        if trap is not None:
            with pytest.raises(BlockingIOError):
                trap.recv(10)
            trap.close()
        one[0].abort()
        await within(asyncio.wait([one[1].lost]))

    run(main(), reports=reports)


@pytest.mark.parametrize("wrong", ["text", 5, None, ["x"]], ids=str)
def test_a_wrong_type_is_refused(run, wrong):
    async def main() -> None:
        one = await endpoint()
        with pytest.raises(TypeError):
            one[0].sendto(wrong, one[0].get_extra_info("sockname"))
        await shut(one)

    run(main())


def test_bytes_like_objects(run):
    async def main() -> None:
        one = await endpoint()
        here = one[0].get_extra_info("sockname")
        for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview")):
            one[0].sendto(data, here)
            assert (await one[1].packet())[0] == bytes(data)
        await shut(one)

    run(main())


@pytest.mark.asyncio_bug("fails on the socket it let go", run=False)
def test_after_close_sends_are_dropped_and_connection_lost_comes_once(run, caplog):
    async def main() -> None:
        one, two = await endpoint(), await endpoint()
        there = two[0].get_extra_info("sockname")
        one[0].close()
        one[0].close()
        one[0].abort()
        assert one[1].events == ["made"]
        await within(one[1].lost)
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(8):
                one[0].sendto(b"x", there)
        await turns(5)
        assert one[1].events == ["made", "lost"]
        assert two[1].packets == []
        await shut(two)

    run(main())


def slow_pair(path: str) -> tuple[socket.socket, socket.socket]:
    """Connected Unix datagram sockets: the sender is held up as soon as the receiver's queue is full."""
    left, right = (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    )
    right.bind(path)
    left.connect(path)
    for sock in (left, right):
        sock.setblocking(False)
    return left, right


def test_close_sends_what_is_queued(run, unix_path):
    async def main() -> None:
        left, right = slow_pair(unix_path)
        one = await endpoint(sock=left)
        sent = 0
        while one[0].get_write_buffer_size() == 0:
            one[0].sendto(b"%05d" % sent + bytes(1000))
            sent += 1
            assert sent < 100_000
        one[0].close()
        two = await endpoint(sock=right)
        await two[1].when(lambda: len(two[1].packets) == sent)
        assert [data[:5] for data, _ in two[1].packets] == [b"%05d" % number for number in range(sent)]
        assert await within(one[1].lost) is None
        await shut(two)

    run(main())


def test_flow_control(run, unix_path):
    async def main() -> None:
        left, right = slow_pair(unix_path)
        one = await endpoint(sock=left)
        one[0].set_write_buffer_limits(high=50_000, low=10_000)
        sent = 0
        while "pause" not in one[1].events:
            one[0].sendto(bytes(1000))
            sent += 1
            assert sent < 100_000
        assert one[0].get_write_buffer_size() > 50_000
        two = await endpoint(sock=right)
        await one[1].when(lambda: "resume" in one[1].events)
        await two[1].when(lambda: len(two[1].packets) == sent)
        assert one[1].events == ["made", "pause", "resume"]
        await shut(one, two)

    run(main())


def test_abort_drops_what_is_queued(run, unix_path):
    async def main() -> None:
        left, right = slow_pair(unix_path)
        one = await endpoint(sock=left)
        while one[0].get_write_buffer_size() == 0:
            one[0].sendto(bytes(1000))
        one[0].abort()
        assert await within(one[1].lost) is None
        right.close()

    run(main())


def test_allow_broadcast(run):
    async def main() -> None:
        for wanted in (True, None):
            end = await endpoint(local_addr=("127.0.0.1", 0), allow_broadcast=wanted)
            sock = end[0].get_extra_info("socket")
            assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)) == bool(wanted)
            await shut(end)

    run(main())


@linux
def test_broadcast_without_permission_is_an_error_received(run):
    async def main() -> None:
        end = await endpoint(local_addr=("127.0.0.1", 0))
        end[0].sendto(b"x", ("127.255.255.255", closed_port()))
        await until(lambda: end[1].errors)
        assert isinstance(end[1].errors[0], PermissionError)
        await shut(end)

    run(main())


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT")
def test_reuse_port(run):
    async def main() -> None:
        one = await endpoint(local_addr=("127.0.0.1", 0), reuse_port=True)
        two = await endpoint(local_addr=one[0].get_extra_info("sockname"), reuse_port=True)
        await shut(one, two)

    run(main())


def test_argument_errors(run):
    async def main() -> None:
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
            for options in (
                {"family": socket.AF_UNSPEC},
                {"sock": stream},
                {"sock": datagram, "local_addr": ("127.0.0.1", 0)},
                {"sock": datagram, "reuse_port": True},
            ):
                with pytest.raises(ValueError):
                    await endpoint(**options)
            with pytest.raises((TypeError, AssertionError)):
                await endpoint(local_addr="127.0.0.1")
            with pytest.raises(OSError):
                await endpoint(local_addr=("192.0.2.1", 0))

    run(main())


@pytest.mark.parametrize(
    "method", ["datagram_received", "error_received", "connection_made", "connection_lost"]
)
def test_exceptions_of_the_protocol(run, method):
    reports: list[Report] = []

    class Broken(DatagramLog): ...

    original = getattr(DatagramLog, method)

    def broken(self: Any, *args: Any) -> None:
        original(self, *args)
        raise LookupError("mine")

    setattr(Broken, method, broken)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, log = await loop.create_datagram_endpoint(Broken, local_addr=("127.0.0.1", 0))
        here = transport.get_extra_info("sockname")
        if method == "datagram_received":
            transport.sendto(b"x", here)
            await until(lambda: log.packets)
        if method == "error_received":
            try:
                transport.sendto(bytes(70_000), here)
            except LookupError as exc:  # asyncio calls it from inside sendto
                reports.append({"exception": exc})
            await until(lambda: log.errors)
        await turns(3)
        transport.abort()
        await within(asyncio.wait([log.lost]))

    run(main(), reports=reports)
    assert [str(report["exception"]) for report in reports] == ["mine"]


def test_many_endpoints(run):
    async def main() -> None:
        ends = [await endpoint() for _ in range(100)]
        for number, (transport, _) in enumerate(ends):
            transport.sendto(b"x", ends[number - 1][0].get_extra_info("sockname"))
        for _, log in ends:
            assert (await log.packet())[0] == b"x"
        await shut(*ends)

    run(main())


def test_a_packet_sent_from_datagram_received(run):
    class Echo(DatagramLog):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data, addr)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
        client = await endpoint(remote_addr=server[0].get_extra_info("sockname"))
        for number in range(300):
            client[0].sendto(b"%d" % number)
            assert (await client[1].packet())[0] == b"%d" % number
        await shut(server, client)

    run(main())


def test_close_inside_datagram_received_stops_delivery(run):
    class Once(DatagramLog):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.close()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_datagram_endpoint(Once, local_addr=("127.0.0.1", 0))
        client = await endpoint(remote_addr=server[0].get_extra_info("sockname"))
        for _ in range(10):
            client[0].sendto(b"x")
        await within(server[1].lost)
        assert len(server[1].packets) == 1
        await shut(client)

    run(main())


class Pausing(DatagramLog):
    """Pauses the transport in the middle of a burst."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        super().datagram_received(data, addr)
        if data == b"stop":
            self.transport.pause_reading()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="datagram transports pause since 3.11")
def test_pausing_in_the_middle_of_a_burst_loses_nothing(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        end, log = await loop.create_datagram_endpoint(Pausing, local_addr=("127.0.0.1", 0))
        sent = [b"a", b"b", b"stop", b"c", b"d", b"stop", b"e"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for data in sent:
                sender.sendto(data, end.get_extra_info("sockname"))
        assert [(await log.packet())[0] for _ in range(3)] == sent[:3]
        await turns(5)
        assert not log.packets
        assert not end.is_reading()
        end.resume_reading()
        assert [(await log.packet())[0] for _ in range(3)] == sent[3:6]
        await turns(5)
        assert not log.packets
        end.resume_reading()
        assert (await log.packet())[0] == b"e"
        await shut((end, log))

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="datagram transports pause since 3.11")
def test_closing_while_paused_in_a_burst_drops_the_rest(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        end, log = await loop.create_datagram_endpoint(Pausing, local_addr=("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for data in (b"stop", b"a", b"b"):
                sender.sendto(data, end.get_extra_info("sockname"))
        assert (await log.packet())[0] == b"stop"
        await shut((end, log))
        assert not log.packets

    run(main())


def test_an_exception_that_ends_the_run_keeps_the_rest_of_the_burst(loop_factory):
    class Leaving(DatagramLog):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if data == b"leave":
                raise SystemExit(7)

    loop = loop_factory()
    end, log = loop.run_until_complete(loop.create_datagram_endpoint(Leaving, local_addr=("127.0.0.1", 0)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for data in (b"leave", b"stay", b"too"):
            sender.sendto(data, end.get_extra_info("sockname"))
    with pytest.raises(SystemExit):
        loop.run_forever()

    async def rest() -> None:
        assert [(await log.packet())[0] for _ in range(3)] == [b"leave", b"stay", b"too"]
        await shut((end, log))

    loop.run_until_complete(rest())
    loop.close()


def test_a_reply_goes_to_whoever_asked(run):
    """More peers than a cache of addresses could hold."""

    class Answering(DatagramLog):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data, addr)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        end, log = await loop.create_datagram_endpoint(Answering, local_addr=("127.0.0.1", 0))
        here = end.get_extra_info("sockname")
        senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(300)]
        try:
            for sender in senders:
                sender.bind(("127.0.0.1", 0))
                sender.settimeout(60)
            for _ in range(2):
                for i, sender in enumerate(senders):
                    sender.sendto(b"%d" % i, here)
                    answer = loop.run_in_executor(None, sender.recv, 100)
                    assert await within(answer) == b"%d" % i
        finally:
            for sender in senders:
                sender.close()
        await shut((end, log))

    run(main())
