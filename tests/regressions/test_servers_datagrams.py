"""R34-R42: servers that end, listeners in need, datagrams that go wrong."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from harness import DatagramLog, Echo, Log, child_env, closed_port, has_ipv6, turns, until, within

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="says how Linux does it")


def test_r34_close_by_another_task_ends_serve_forever(run):
    """uvloop #602; zuvloop #31."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(5):
            server = await loop.create_server(Echo, "127.0.0.1", 0)
            serving = loop.create_task(server.serve_forever())
            await turns(2)
            loop.call_soon(server.close)
            with pytest.raises(asyncio.CancelledError):
                await within(serving)
            assert not server.is_serving()

    run(main())


def cancelled_server(factory: Any) -> dict[str, Any]:
    """What a cancelled serve_forever() does to a connected client, on one loop."""
    seen: dict[str, Any] = {}

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        serving = loop.create_task(server.serve_forever())
        transport, log = await loop.create_connection(Log, *address)
        transport.write(b"x")
        await log.got(1)
        serving.cancel()
        await turns(20)
        seen["serve_forever ends with a client there"] = serving.done()
        await asyncio.wait([log.lost], timeout=0.1)
        seen["client kept"] = not log.lost.done()
        try:
            with socket.create_connection(address, 5):
                seen["new connects"] = "accepted"
        except ConnectionRefusedError:
            seen["new connects"] = "refused"
        transport.abort()
        await asyncio.wait([serving], timeout=60)
        seen["ends at last"] = serving.done()
        await turns(3)

    loop = factory()
    loop.set_exception_handler(lambda *_: None)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    return seen


def test_r35_a_cancelled_serve_forever_does_what_this_version_does(loop_factory):
    """zuvloop #87, zuvloop #156, zuvloop #179; cpython #123720; websockets #1608."""
    ours = cancelled_server(loop_factory)
    assert ours == cancelled_server(asyncio.SelectorEventLoop)
    assert ours["new connects"] == "refused"
    assert ours["ends at last"]


def test_r36_the_name_of_a_client_that_left_before_accept(run):
    """uvloop #560."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        logs: list[Log] = []

        def factory() -> Log:
            logs.append(Log())
            return logs[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0, backlog=100)
        address = server.sockets[0].getsockname()
        names = []
        for _ in range(50):
            sock = socket.create_connection(address)
            names.append(sock.getsockname())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()  # reset, before the loop has looked
        await until(lambda: len(logs) == 50)
        for log in logs:
            await within(asyncio.wait([log.lost]))
        assert sorted(log.transport.get_extra_info("peername") for log in logs) == sorted(names)
        assert all(log.transport.get_extra_info("sockname") == address for log in logs)
        server.close()
        await within(server.wait_closed())

    run(main())


def test_r36_the_name_of_a_peer_that_left_before_it_was_asked(run):
    """uvloop #560."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            transport, log = await loop.create_connection(Log, *listening.getsockname())
            accepted, name = listening.accept()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            accepted.close()
            await within(asyncio.wait([log.lost]))
            assert transport.get_extra_info("peername") == listening.getsockname()
            assert transport.get_extra_info("sockname") == name
        left, right = socket.socketpair()
        transport, log = await loop.create_connection(Log, sock=left)
        right.close()
        await within(log.lost)
        assert transport.get_extra_info("peername") == ""
        assert transport.get_extra_info("sockname") == ""

    run(main())


@linux
@pytest.mark.timeout(120)
def test_r37_no_descriptors_left_to_accept(loop_name):
    """python/asyncio #78; granian #580; joyent/libuv #1189."""
    clients = textwrap.dedent(
        """
        import socket, sys
        socks = []
        for _ in range(200):
            socks.append(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
        sys.stdin.readline()  # the server has seen enough of it
        for sock in socks[:150]:
            sock.close()
        socks[-1].settimeout(30)
        socks[-1].sendall(b"served at last")
        sys.exit(socks[-1].recv(100) != b"served at last")
        """
    )
    program = textwrap.dedent(
        f"""
        import asyncio, importlib, logging, os, resource, subprocess, sys, time
        logging.basicConfig(stream=sys.stdout, format="LOG %(message).60s")
        try:
            raise OSError("imports what a traceback is formatted with: later no file can be opened")
        except OSError:
            logging.Formatter().formatException(sys.exc_info())
        module, _, attribute = {loop_name!r}.partition(":")
        loop = getattr(importlib.import_module(module), attribute)()
        accepted = 0
        class Echo(asyncio.Protocol):
            def connection_made(self, transport):
                global accepted
                accepted += 1
                self.transport = transport
            def data_received(self, data):
                self.transport.write(data)
        async def main():
            server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=300)
            port = server.sockets[0].getsockname()[1]
            command = [sys.executable, "-Sc", {clients!r}, str(port)]
            clients = subprocess.Popen(command, stdin=subprocess.PIPE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, 4096))
            while accepted < 80:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            started, used = time.monotonic(), time.process_time()
            await asyncio.sleep(0.6)
            busy = (time.process_time() - used) / (time.monotonic() - started)
            print("busy", busy < 0.1, flush=True)
            clients.stdin.write(b"\\n")
            clients.stdin.close()
            while clients.poll() is None:
                await asyncio.sleep(0.02)
            print("client", clients.returncode, flush=True)
            os._exit(0)
        loop.run_until_complete(main())
        """
    )
    done = subprocess.run(
        [sys.executable, "-Wignore", "-c", program],
        env=child_env(),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert "busy True" in lines, done.stdout + done.stderr
    assert "client 0" in lines, done.stdout + done.stderr
    # one line while it lasts, not one per attempt; asyncio repeats it every second for the whole backlog
    if not loop_name.startswith("asyncio"):
        assert 1 <= sum(line.startswith("LOG") for line in lines) <= 4, done.stdout


def test_r38_a_closed_local_port(run):
    """uvloop #109, uvloop #601, uvloop #338."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        port = closed_port()
        transport, log = await loop.create_datagram_endpoint(DatagramLog, remote_addr=("127.0.0.1", port))
        for _ in range(3):
            log.errors.clear()
            transport.sendto(b"x")
            await log.when(lambda: log.errors)
            assert isinstance(log.errors[0], ConnectionRefusedError)
        assert not transport.is_closing()
        assert not log.lost.done()
        transport.close()
        await within(log.lost)

    run(main())


@linux
def test_r38_an_unreachable_network(run):
    """uvloop #109, uvloop #601."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, log = await loop.create_datagram_endpoint(DatagramLog, local_addr=("127.0.0.1", 0))
        transport.sendto(b"x", ("192.0.2.1", 9))  # from a loopback address the kernel refuses to send there
        await until(lambda: log.errors)
        assert isinstance(log.errors[0], OSError)
        assert not transport.is_closing()
        transport.sendto(b"x", transport.get_extra_info("sockname"))
        assert (await log.packet())[0] == b"x"
        transport.close()
        await within(log.lost)

    run(main())


def test_r39_addresses_of_a_connected_endpoint(run):
    """zuvloop #19."""
    reports: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        peer, peer_log = await loop.create_datagram_endpoint(DatagramLog, local_addr=("127.0.0.1", 0))
        address = peer.get_extra_info("sockname")
        transport, log = await loop.create_datagram_endpoint(DatagramLog, remote_addr=address)
        transport.sendto(b"to the peer", address)
        assert (await peer_log.packet())[0] == b"to the peer"
        with pytest.raises(ValueError):
            transport.sendto(b"elsewhere", ("127.0.0.1", closed_port()))
        with pytest.raises(ValueError):
            transport.sendto(b"elsewhere", ("127.0.0.1", 70000))
        transport.sendto(b"still fine")
        assert (await peer_log.packet())[0] == b"still fine"
        for each, each_log in ((transport, log), (peer, peer_log)):
            each.close()
            await within(each_log.lost)

    run(main(), reports=reports)
    assert reports == []


@linux
def test_r40_unix_datagrams_of_every_kind(run, unix_path):
    """uvloop #196, uvloop #304, uvloop #528."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        abstract = f"\0zloop-r40-{os.getpid()}"
        for name in (unix_path, abstract):
            one = await loop.create_datagram_endpoint(DatagramLog, local_addr=name, family=socket.AF_UNIX)
            two = await loop.create_datagram_endpoint(DatagramLog, remote_addr=name, family=socket.AF_UNIX)
            two[0].sendto(b"x")
            assert (await one[1].packet())[0] == b"x"
            for each, each_log in (one, two):
                each.close()
                await within(each_log.lost)
        server = await loop.create_unix_server(Echo, abstract)
        transport, log = await loop.create_unix_connection(Log, abstract)
        transport.write(b"stream")
        assert await log.got(6) == b"stream"
        transport.close()
        await within(log.lost)
        server.close()
        await within(server.wait_closed())

    run(main())


def test_r41_every_way_of_making_an_endpoint(run):
    """uvloop #276, uvloop #108, uvloop #319, uvloop #85."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        peer = socket.socket(type=socket.SOCK_DGRAM)
        peer.bind(("127.0.0.1", 0))
        peer.setblocking(False)
        connected = socket.socket(type=socket.SOCK_DGRAM)
        connected.connect(peer.getsockname())
        connected.setblocking(False)
        ways: list[dict[str, Any]] = [
            {"local_addr": ("127.0.0.1", 0), "remote_addr": peer.getsockname()},
            {"sock": connected},
            {"remote_addr": peer.getsockname()},
        ]
        for options in ways:
            transport, log = await loop.create_datagram_endpoint(DatagramLog, **options)
            transport.sendto(b"x")
            await until(lambda: peer_has(peer))
            data, address = peer.recvfrom(10)
            assert (data, address) == (b"x", transport.get_extra_info("sockname"))
            assert transport.get_extra_info("peername") == peer.getsockname()
            peer.sendto(b"y", address)
            assert await log.packet() == (b"y", peer.getsockname())
            transport.close()
            await within(log.lost)
        peer.close()
        if has_ipv6():
            transport, log = await loop.create_datagram_endpoint(DatagramLog, local_addr=("::1", 0))
            assert transport.get_extra_info("sockname")[0] == "::1"
            transport.close()
            await within(log.lost)

    def peer_has(sock: socket.socket) -> bool:
        try:
            sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        return True

    run(main())


def test_r42_a_closed_endpoint_with_a_send_pending(run, unix_path):
    """talyn BUG-20."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(10):
            right = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            right.bind(unix_path)
            left = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            left.connect(unix_path)
            left.setblocking(False)
            transport, log = await loop.create_datagram_endpoint(DatagramLog, sock=left)
            while transport.get_write_buffer_size() == 0:
                transport.sendto(b"old")
            transport.abort()
            await within(log.lost)
            fresh_left, fresh_right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            right.close()
            os.unlink(unix_path)
            await turns(5)
            for sock in (fresh_left, fresh_right):
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.recv(10)
                sock.close()

    run(main())
