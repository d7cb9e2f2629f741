"""Mutated TLS streams against both engines, outcomes compared with asyncio.

    python fuzz/tls.py [--seconds 60] [--seed N] [--case N]

Each case is a conversation with a scripted peer whose bytes change on the way: flipped, dropped, doubled,
cut off, split into crumbs, with junk in between; over a Protocol, a BufferedProtocol and start_tls, with
new keys in between. What the program sees (did the handshake succeed, which exception, the order of
callbacks, the data) must be what asyncio shows, save that the direct engine delivers what was authentic
before a failure. The keys of a conversation are random, so a difference counts only if it comes back. The
status is 1 if one did.
"""

from __future__ import annotations

import _ssl
import argparse
import asyncio
import contextlib
import ctypes
import os
import random
import socket
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import zloop

PATIENCE_S = 1.5
REPEATS = 6
"""How often a case runs on each engine before a difference is believed."""


class Mutation:
    """What happens to the peer's bytes: an operation at an offset of its stream."""

    KINDS = ("none", "flip", "drop", "double", "cut", "junk", "header")

    def __init__(self, rng: random.Random) -> None:
        self.kind = rng.choice(self.KINDS)
        self.offset = int(2 ** rng.uniform(0, 13))
        self.length = rng.choice((1, 2, 5, 40))
        self.bit = 1 << rng.randrange(8)
        self.piece = rng.choice((0, 0, 1, 3, 100))
        self.junk = rng.randbytes(self.length)
        self.passed = 0

    def __repr__(self) -> str:
        return f"{self.kind} at {self.offset}, {self.length} bytes, pieces of {self.piece}"

    def apply(self, data: bytes) -> tuple[bytes, bool]:
        """The changed bytes, and whether the stream ends behind them."""
        start, self.passed = self.offset - self.passed, self.passed + len(data)
        if not 0 <= start < len(data) or self.kind == "none":
            return data, False
        head, tail = data[:start], data[start:]
        if self.kind == "cut":
            return head, True
        if self.kind == "flip":
            return head + bytes([tail[0] ^ self.bit]) + tail[1:], False
        if self.kind == "drop":
            return head + tail[self.length :], False
        if self.kind == "double":
            return head + tail[: self.length] + tail, False
        if self.kind == "junk":
            return head + self.junk + tail, False
        # A record that claims another type or length.
        return bytes([data[0] ^ self.bit]) + data[1:], False


class Case:
    def __init__(self, number: int) -> None:
        rng = random.Random(number)
        self.number = number
        self.loop_is_client = rng.random() < 0.5
        self.kind = rng.choice(("protocol", "buffered", "upgrade"))
        self.version = rng.choice((ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3))
        self.sizes = [rng.choice((1, 100, 5000, 20000)) for _ in range(rng.randrange(4))]
        self.closes = rng.random() < 0.5
        self.new_keys = self.version is ssl.TLSVersion.TLSv1_3 and rng.random() < 0.3
        self.seed = rng.random()

    def mutation(self) -> Mutation:
        return Mutation(random.Random(self.seed))

    def __repr__(self) -> str:
        side = "client" if self.loop_is_client else "server"
        keys = ", new keys" if self.new_keys else ""
        what = f"{side}, {self.kind}, {self.version.name}{keys}"
        return f"case {self.number}: {what}, {self.sizes}, {self.mutation()}"


class Contexts:
    def __init__(self, version: ssl.TLSVersion, files: tuple[str, str]) -> None:
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(files[0])
        self.client = ssl.create_default_context(cafile=files[1])
        for context in (self.server, self.client):
            context.minimum_version = context.maximum_version = version


class RecordBase:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.data = bytearray()
        self.lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append("made")
        self.transport: Any = transport

    def got(self, data: bytes) -> None:
        self.data += data
        self.transport.write(data[:100])

    def eof_received(self) -> None:
        self.events.append("eof")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.events.append(f"lost {describe(exc)}")
        self.lost.set_result(None)


class Record(RecordBase, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self.got(data)


class BufferedRecord(RecordBase, asyncio.BufferedProtocol):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray(3000)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)  # sslproto cuts it, and would copy a bytearray

    def buffer_updated(self, nbytes: int) -> None:
        self.got(bytes(self.buffer[:nbytes]))


def describe(error: BaseException | None) -> str:
    if error is None:
        return "None"
    return f"{type(error).__name__} {getattr(error, 'reason', None)}"


async def converse(case: Case, contexts: Contexts) -> tuple[Any, ...]:
    """The outcome: what became of the handshake, the callbacks, reports, and the data."""
    loop = asyncio.get_running_loop()
    reports: list[str] = []
    loop.set_exception_handler(lambda _, context: reports.append(describe(context.get("exception"))))
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    records: list[Any] = []

    def factory() -> Any:
        records.append(BufferedRecord() if case.kind == "buffered" else Record())
        return records[-1]

    making: Any
    ready = asyncio.Event()
    if case.kind == "upgrade":
        making = upgrade(case, contexts, left, factory, ready)
    elif case.loop_is_client:
        making = loop.create_connection(factory, sock=left, ssl=contexts.client, server_hostname="localhost")
    else:
        making = loop.connect_accepted_socket(factory, sock=left, ssl=contexts.server)
    if case.kind != "upgrade":
        ready.set()
    connecting = loop.create_task(making)
    talking = loop.create_task(talk(case, contexts, right, ready))
    handshake = "hangs"
    with contextlib.suppress(asyncio.TimeoutError):
        try:
            await asyncio.wait_for(connecting, PATIENCE_S)
            handshake = "succeeds"
        except (OSError, ssl.SSLError) as error:
            handshake = describe(error)
    with contextlib.suppress(asyncio.TimeoutError, OSError, ssl.SSLError):
        await asyncio.wait_for(talking, PATIENCE_S)
    right.close()
    if handshake == "succeeds":
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(records[0].lost), PATIENCE_S)
        records[0].transport.abort()
        await asyncio.sleep(0)
    events = tuple(records[0].events) if records else ()
    data = bytes(records[0].data) if records else b""
    expected = b"".join(bytes([index]) * size for index, size in enumerate(case.sizes))
    assert expected.startswith(data), f"{case!r}: {data[:80]!r} was delivered, and not sent"
    return handshake, events, tuple(reports), data == expected


async def upgrade(
    case: Case, contexts: Contexts, sock: socket.socket, factory: Any, ready: asyncio.Event
) -> None:
    """A plain connection that becomes a TLS one, as after STARTTLS."""
    loop = asyncio.get_running_loop()
    transport, record = await loop.create_connection(factory, sock=sock)
    ready.set()  # nothing can come before start_tls has its say
    if case.loop_is_client:
        upper = await loop.start_tls(transport, record, contexts.client, server_hostname="localhost")
    else:
        upper = await loop.start_tls(transport, record, contexts.server, server_side=True)
    record.transport = upper


def update_keys(tls: ssl.SSLObject) -> None:
    """TLS 1.3: new keys for both directions. The ssl module has no method for it, so libssl is asked."""
    inner: Any = tls._sslobj  # type: ignore[attr-defined]
    pointer = ctypes.c_void_p.from_address(
        id(inner) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)  # behind the reference to a socket
    )
    ctypes.CDLL(_ssl.__file__).SSL_key_update(pointer, 1)


async def talk(case: Case, contexts: Contexts, sock: socket.socket, ready: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    await ready.wait()
    mutation = case.mutation()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    if case.loop_is_client:
        tls = contexts.server.wrap_bio(incoming, outgoing, server_side=True)
    else:
        tls = contexts.client.wrap_bio(incoming, outgoing, server_hostname="localhost")

    async def flush() -> None:
        data, ends = mutation.apply(outgoing.read())
        step = mutation.piece or len(data) or 1
        for start in range(0, len(data), step):
            await loop.sock_sendall(sock, data[start : start + step])
            if mutation.piece:
                await asyncio.sleep(0)
        if ends:
            sock.shutdown(socket.SHUT_WR)
            raise EOFError

    async def drive(operation: Any) -> None:
        while True:
            try:
                operation()
            except ssl.SSLWantReadError:
                await flush()
                data = await asyncio.wait_for(loop.sock_recv(sock, 65536), PATIENCE_S)
                if not data:
                    return
                incoming.write(data)
            else:
                await flush()
                return

    with contextlib.suppress(EOFError):
        await drive(tls.do_handshake)
        for index, size in enumerate(case.sizes):
            if case.new_keys:
                update_keys(tls)
            tls.write(bytes([index]) * size)
            await flush()
        if case.closes:
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()
            await flush()
        sock.shutdown(socket.SHUT_WR)
    while await loop.sock_recv(sock, 65536):
        pass


def outcome(engine: str, case: Case, contexts: Contexts) -> tuple[Any, ...]:
    os.environ["ZLOOP_TLS"] = "native" if engine == "native" else "asyncio"
    loop = asyncio.SelectorEventLoop() if engine == "control" else zloop.new_event_loop()
    try:
        return loop.run_until_complete(converse(case, contexts))
    finally:
        loop.close()


def same(engine: str, ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    if ours == theirs:
        return True
    # sslproto throws away what was decrypted in the round that fails; the direct engine delivers it.
    return engine == "native" and ours[:3] == theirs[:3] and ours[3]


def differs(case: Case, contexts: Contexts) -> str | None:
    """A difference from asyncio that comes back, in words."""
    for engine in ("native", "sslproto"):
        ours = {outcome(engine, case, contexts)}
        theirs = {outcome("control", case, contexts)}
        for _ in range(REPEATS):
            if any(same(engine, one, other) for one in ours for other in theirs):
                break
            ours.add(outcome(engine, case, contexts))
            theirs.add(outcome("control", case, contexts))
        else:
            return f"{case!r}\n  {engine}: {sorted(ours, key=repr)}\n  asyncio: {sorted(theirs, key=repr)}"
    return None


def make_files(folder: str) -> tuple[str, str]:
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    chain, root = Path(folder, "chain.pem"), Path(folder, "root.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(chain))
    authority.cert_pem.write_to_path(str(root))
    return str(chain), str(root)


def main() -> int:
    command_line = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    command_line.add_argument("--seconds", type=float, default=60)
    command_line.add_argument("--seed", type=int, default=None)
    command_line.add_argument("--case", type=int, default=None, help="run this case alone")
    options = command_line.parse_args()
    if sys.version_info < (3, 11):
        sys.exit("fuzz/tls.py needs Python 3.11: the SSLProtocol of 3.10 is another one")
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    deadline = time.monotonic() + options.seconds
    found = count = 0
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(folder)
        versions = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
        contexts = {version: Contexts(version, files) for version in versions}
        while time.monotonic() < deadline:
            case = Case(options.case if options.case is not None else seed + count)
            count += 1
            if difference := differs(case, contexts[case.version]):
                print(difference, flush=True)
                found += 1
            if options.case is not None:
                break
    print(f"{count} cases from {seed}, {found} differ from asyncio")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
