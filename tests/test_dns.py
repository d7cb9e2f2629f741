"""getaddrinfo and getnameinfo: equal to the socket module's."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
from typing import Any

import pytest
from harness import within


def blocking(*args: Any, **kwargs: Any) -> Any:
    try:
        return socket.getaddrinfo(*args, **kwargs)
    except Exception as exc:
        return type(exc), getattr(exc, "errno", None)


async def awaited(*args: Any, **kwargs: Any) -> Any:
    try:
        return await within(asyncio.get_running_loop().getaddrinfo(*args, **kwargs))
    except Exception as exc:
        return type(exc), getattr(exc, "errno", None)


HOSTS = [
    None,
    "",
    "localhost",
    b"localhost",
    "127.0.0.1",
    b"127.0.0.1",
    "::1",
    "0.0.0.0",
    "::",
    "127.1",
    "fe80::1%lo",
]
PORTS: list[Any] = [None, 0, 80, "80", b"80", "http", b"http", ""]
FAMILIES = [socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6]
TYPES = [0, socket.SOCK_STREAM, socket.SOCK_DGRAM]


@pytest.mark.parametrize("host", HOSTS, ids=repr)
def test_every_combination_equals_the_socket_module(run, host):
    async def main() -> None:
        different = []
        # a name without IPv6 address would be asked of name servers, and those may be silent
        families = FAMILIES[:2] if host in ("localhost", b"localhost") else FAMILIES
        for port, family, kind, flags in itertools.product(
            PORTS, families, TYPES, (0, socket.AI_PASSIVE, socket.AI_NUMERICHOST)
        ):
            options = {"family": family, "type": kind, "flags": flags}
            ours, theirs = await awaited(host, port, **options), blocking(host, port, **options)
            if ours != theirs:
                different.append((port, options, ours, theirs))
        assert different == []

    run(main())


def test_proto_and_canonical_names(run):
    async def main() -> None:
        for options in (
            {"proto": socket.IPPROTO_TCP},
            {"proto": socket.IPPROTO_UDP, "type": socket.SOCK_DGRAM},
            {"flags": socket.AI_CANONNAME},
            {"proto": socket.IPPROTO_TCP, "type": socket.SOCK_DGRAM},
        ):
            assert await awaited("127.0.0.1", 80, **options) == blocking("127.0.0.1", 80, **options)

    run(main())


def test_unknown_names_are_gaierrors(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for host, port, flags in (
            ("no.such.name", 80, socket.AI_NUMERICHOST),
            ("127.0.0.1", "no-such-service", 0),
        ):
            with pytest.raises(socket.gaierror):
                await within(loop.getaddrinfo(host, port, flags=flags))

    run(main())


def test_getnameinfo(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        flags = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        assert await within(loop.getnameinfo(("127.0.0.1", 80), flags)) == ("127.0.0.1", "80")
        assert await within(loop.getnameinfo(("::1", 80, 0, 0), flags)) == socket.getnameinfo(
            ("::1", 80, 0, 0), flags
        )
        assert await within(loop.getnameinfo(("127.0.0.1", 80))) == socket.getnameinfo(("127.0.0.1", 80), 0)
        with pytest.raises((socket.gaierror, TypeError, OSError)):
            await within(loop.getnameinfo(("no address", 80), flags))

    run(main())


def test_many_at_once(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        results = await within(
            asyncio.gather(*(loop.getaddrinfo("localhost", port) for port in range(1, 101)))
        )
        for port, result in enumerate(results, 1):
            assert {entry[4][1] for entry in result} == {port}

    run(main())


def test_a_cancelled_lookup_disturbs_nobody(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(20):
            task = asyncio.ensure_future(loop.getaddrinfo("localhost", 80))
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # it may be quicker than we are
                await task
        assert await within(loop.getaddrinfo("127.0.0.1", 80))

    run(main())


@pytest.mark.only_zloop("asyncio resolves in the default executor")
def test_a_full_executor_does_not_delay_a_lookup(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        release = threading.Event()
        blockers = [loop.run_in_executor(None, release.wait, 20) for _ in range(64)]
        try:
            assert await asyncio.wait_for(loop.getaddrinfo("localhost", 80), 3)
        finally:
            release.set()
            await within(asyncio.gather(*blockers))

    run(main())
