"""Differential fuzzer: the same random operations on two loops must show their protocols the same things.

A scenario is a list of operations drawn from a seed: connect, writes of sizes around thresholds,
writelines, pause, resume, half-close, close, abort, set_protocol, cancelled tasks, timers, threads,
collections. It is drawn once and played on each loop. Compared is what the protocols of both ends saw: bytes,
order of callbacks per connection, kinds of exceptions. Not compared: time, chunking, and how far an aborted
connection got.

    python fuzz/differential.py --seconds 60
    python fuzz/differential.py --seed 12345            one scenario, with its operations
    python fuzz/differential.py --loops asyncio,uvloop
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import hashlib
import importlib
import math
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

#: Sizes at which some buffer, limit or record ends: socket buffers, asyncio's limits, TLS records, iovecs.
THRESHOLDS = (1, 2, 255, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072, 212992, 262144)
#: Longest wait for a scenario to come to rest. Reaching it is a finding: something hangs.
PATIENCE_S = 5.0

Operation = tuple[Any, ...]


def size(rng: random.Random) -> int:
    """A size near a threshold, or nothing at all."""
    if rng.random() < 0.05:
        return 0
    return max(0, rng.choice(THRESHOLDS) + rng.choice((-1, 0, 0, 1)))


@dataclass
class Scenario:
    """What is played: everything random is decided here, before any loop exists."""

    seed: int
    kinds: list[str] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    tls: bool = False

    @classmethod
    def draw(cls, seed: int) -> Scenario:
        rng = random.Random(seed)
        scenario = cls(seed)
        scenario.kinds = [rng.choice(("tcp", "unix")) for _ in range(rng.randint(1, 3))]
        open_writers = {(index, side) for index in range(len(scenario.kinds)) for side in (0, 1)}
        for _ in range(rng.randint(3, 40)):
            index = rng.randrange(len(scenario.kinds))
            side = rng.randrange(2)
            end = (index, side)
            kind = rng.choices(
                (
                    "write", "writelines", "pause", "resume", "eof", "close", "abort", "set_protocol",
                    "limits", "turns", "sleep", "timer", "cancel", "thread", "collect", "info",
                ),
                (30, 10, 6, 8, 2, 2, 1, 3, 3, 8, 3, 4, 4, 3, 2, 2),
            )[0]  # fmt: skip
            if kind == "write":
                scenario.operations.append(
                    ("write", *end, size(rng), rng.choice(("bytes", "bytearray", "view")))
                )
            elif kind == "writelines":
                # no empty pieces: the writelines of some asyncio never gets rid of them
                sizes = [max(1, size(rng) // rng.choice((1, 10))) for _ in range(rng.choice((1, 2, 5, 40)))]
                scenario.operations.append(("writelines", *end, sizes))
            elif kind == "set_protocol":
                scenario.operations.append(("set_protocol", *end, rng.choice(("plain", "buffered"))))
            elif kind == "limits":
                scenario.operations.append(("limits", *end, rng.choice((0, 1, 1024, 65536, 1 << 20))))
            elif kind in ("eof", "close", "abort"):
                if end in open_writers:
                    open_writers.discard(end)
                    scenario.operations.append((kind, *end))
            elif kind == "turns":
                scenario.operations.append(("turns", rng.randint(1, 5)))
            elif kind == "sleep":
                scenario.operations.append(("sleep", rng.choice((0.0, 0.0005, 0.002))))
            elif kind == "timer":
                scenario.operations.append(("timer", rng.choice((0.0, 0.0001, 0.002)), rng.random() < 0.3))
            elif kind == "cancel":
                scenario.operations.append(
                    ("cancel", rng.choice(("sleep", "future", "timeout", "connect", "recv")))
                )
            elif kind == "thread":
                scenario.operations.append(("thread", rng.randint(1, 50)))
            elif kind == "collect":
                scenario.operations.append(("collect",))
            else:
                scenario.operations.append((kind, *end))
        return scenario


class Seen:
    """What one end's protocols saw, in an order that does not depend on chunking."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.digest = hashlib.sha256()
        self.count = 0
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self.error: str | None = None
        self.problems: list[str] = []
        self.reset = False

    def milestones(self) -> list[str]:
        """The callbacks but for data; asyncio's second eof_received after a resume_reading counts as one."""
        return [event for event in dict.fromkeys(self.events) if event != "data"]

    def got(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.count += len(data)
        if not self.events or self.events[-1] != "data":
            self.events.append("data")


class Base:
    """Callbacks shared by the plain and the buffered protocol; checks the order asyncio promises."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.transport: Any = None
        self.told_of_the_end = False

    def check(self, allowed: bool, what: str) -> None:
        if not allowed:
            self.seen.problems.append(f"{what} after {self.seen.events}")

    def connection_made(self, transport: Any) -> None:
        self.check(not self.seen.events, "connection_made")
        self.seen.events.append("made")
        self.transport = transport

    def eof_received(self) -> bool:
        # once for each protocol that the transport has had
        in_order = "made" in self.seen.events and "lost" not in self.seen.events
        self.check(in_order and not self.told_of_the_end, "eof_received")
        self.told_of_the_end = True
        self.seen.events.append("eof")
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        self.check("lost" not in self.seen.events, "connection_lost")
        self.seen.events.append("lost")
        self.seen.error = type(exc).__name__ if exc is not None else None
        if not self.seen.lost.done():
            self.seen.lost.set_result(exc)

    def pause_writing(self) -> None:
        self.check("lost" not in self.seen.events, "pause_writing")

    def resume_writing(self) -> None:
        self.check("lost" not in self.seen.events, "resume_writing")


class Plain(Base, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self.check(not {"eof", "lost"} & set(self.seen.events), "data_received")
        self.check(type(data) is bytes and bool(data), f"data_received({type(data)}, {len(data)})")
        self.seen.got(data)


class Buffered(Base, asyncio.BufferedProtocol):
    def __init__(self, seen: Seen) -> None:
        super().__init__(seen)
        self.buffer = memoryview(bytearray(20_000))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.check(not {"eof", "lost"} & set(self.seen.events), "buffer_updated")
        self.seen.got(self.buffer[:nbytes])


class End:
    """One end of a connection: its transport, what it saw, and what was asked of it."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.transport: Any = None
        self.sent = hashlib.sha256()
        self.sent_count = 0
        self.stream = 0
        self.writable = True
        self.ended: str | None = None  # eof, close or abort
        self.refused: list[str] = []
        self.wrote_late = False

    def data(self, count: int) -> bytes:
        """The next `count` bytes of an endless stream in which every byte's place shows."""
        start, self.stream = self.stream, self.stream + count
        first = start // 8
        words = b"".join(word.to_bytes(8, "little") for word in range(first, (start + count) // 8 + 1))
        return words[start % 8 :][:count]

    def write(self, chunks: list[Any], lines: bool) -> None:
        raw = [bytes(chunk) for chunk in chunks]
        # while something is queued, asyncio still takes what is written after close()
        self.wrote_late = self.wrote_late or self.ended == "close"
        try:
            if lines:
                self.transport.writelines(chunks)
            else:
                self.transport.write(chunks[0])
        except Exception as exc:
            self.refused.append(type(exc).__name__)
            return
        if self.ended is None:
            for chunk in raw:
                self.sent.update(chunk)
                self.sent_count += len(chunk)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        left = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        left.connect(listener.getsockname())
        right, _ = listener.accept()
    return left, right


class Player:
    """Plays one scenario on the running loop."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.ends: list[tuple[End, End]] = []
        self.fired: list[int] = []
        self.outcomes: list[str] = []
        self.raised: list[str] = []

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        for kind in self.scenario.kinds:
            pair = socket.socketpair() if kind == "unix" else tcp_pair()
            ends = (End(), End())
            for sock, end in zip(pair, ends, strict=True):
                sock.setblocking(False)

                def factory(end: End = end) -> Plain:
                    return Plain(end.seen)

                end.transport, _ = await loop.create_connection(factory, sock=sock)
            self.ends.append(ends)

    async def play(self) -> None:
        for operation in self.scenario.operations:
            try:
                await getattr(self, f"do_{operation[0]}")(*operation[1:])
            except OSError as exc:
                if operation[0] != "eof":  # shutting down what the peer reset is an error of the kernel
                    self.raised.append(f"{operation[:3]}: {type(exc).__name__}: {exc}")
            except Exception as exc:
                # asyncio's transports stumble when they are used after their end; no other loop may
                self.raised.append(f"{operation[:3]}: {type(exc).__name__}: {exc}")

    async def do_write(self, index: int, side: int, count: int, kind: str) -> None:
        end = self.ends[index][side]
        data = end.data(count)
        made = {"bytes": bytes, "bytearray": bytearray, "view": lambda data: memoryview(bytearray(data))}[
            kind
        ](data)
        end.write([made], lines=False)

    async def do_writelines(self, index: int, side: int, sizes: list[int]) -> None:
        end = self.ends[index][side]
        end.write([end.data(count) for count in sizes], lines=True)

    async def do_pause(self, index: int, side: int) -> None:
        self.ends[index][side].transport.pause_reading()

    async def do_resume(self, index: int, side: int) -> None:
        self.ends[index][side].transport.resume_reading()

    async def do_eof(self, index: int, side: int) -> None:
        end = self.ends[index][side]
        if end.ended is None:
            end.transport.write_eof()
            end.ended = "eof"

    async def do_close(self, index: int, side: int) -> None:
        end = self.ends[index][side]
        end.transport.close()
        end.ended = "close"

    async def do_abort(self, index: int, side: int) -> None:
        end = self.ends[index][side]
        end.transport.abort()
        end.ended = "abort"

    async def do_set_protocol(self, index: int, side: int, kind: str) -> None:
        end = self.ends[index][side]
        if "lost" not in end.seen.events:
            end.transport.set_protocol((Buffered if kind == "buffered" else Plain)(end.seen))

    async def do_limits(self, index: int, side: int, high: int) -> None:
        self.ends[index][side].transport.set_write_buffer_limits(high=high)

    async def do_info(self, index: int, side: int) -> None:
        transport = self.ends[index][side].transport
        self.outcomes.append(f"{transport.get_extra_info('peername') is not None}")
        assert transport.get_write_buffer_size() >= 0
        assert isinstance(repr(transport), str)

    async def do_turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def do_sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def do_timer(self, delay: float, cancel: bool) -> None:
        loop = asyncio.get_running_loop()
        number = len(self.fired)
        handle = loop.call_later(delay, self.fired.append, number)
        if cancel:
            handle.cancel()
            return
        fired = loop.create_future()
        loop.call_later(delay, fired.set_result, None)
        await fired

    async def do_cancel(self, what: str) -> None:
        loop = asyncio.get_running_loop()
        closing: list[socket.socket] = []
        if what == "sleep":
            task = asyncio.ensure_future(asyncio.sleep(60))
        elif what == "future":
            task = asyncio.ensure_future(asyncio.shield(loop.create_future()))
        elif what == "timeout":
            task = asyncio.ensure_future(asyncio.wait_for(loop.create_future(), 60))
        elif what == "recv":
            left, right = socket.socketpair()
            left.setblocking(False)
            closing = [left, right]
            task = asyncio.ensure_future(loop.sock_recv(left, 10))
        else:
            listener = socket.create_server(("127.0.0.1", 0))
            silent = socket.socket()
            silent.setblocking(False)
            closing = [listener, silent]
            task = asyncio.ensure_future(loop.sock_connect(silent, listener.getsockname()))
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
            outcome = "done"
        except asyncio.CancelledError:
            outcome = "cancelled"
        if what != "connect":  # which of the two happens first is a matter of time
            self.outcomes.append(f"{what}: {outcome}")
        for sock in closing:
            sock.close()

    async def do_thread(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        got: list[int] = []
        done = loop.create_future()

        def feed() -> None:
            for number in range(count):
                loop.call_soon_threadsafe(got.append, number)
            loop.call_soon_threadsafe(done.set_result, None)

        thread = threading.Thread(target=feed)
        thread.start()
        await done
        thread.join()
        self.outcomes.append(f"thread: {got == list(range(count))}")

    async def do_collect(self) -> None:
        gc.collect()

    async def settle(self) -> None:
        """Resume everybody, close what is open, and wait until every connection is lost."""
        for ends in self.ends:
            for end in ends:
                if not end.seen.lost.done():
                    end.transport.resume_reading()
        for ends in self.ends:
            # what was written while both ends live must arrive before we close
            for sender, receiver in (ends, ends[::-1]):
                await self.drained(sender, receiver)
        for ends in self.ends:
            for end in ends:
                if not end.transport.is_closing():
                    end.transport.close()
        for ends in self.ends:
            for end in ends:
                await self.lost(end)
        await self.do_turns(3)

    async def lost(self, end: End) -> None:
        """Wait for the end of a connection that was asked to end."""
        done, _ = await asyncio.wait([end.seen.lost], timeout=0.2)
        if not done and end.transport.get_write_buffer_size():
            end.transport.abort()  # two closing ends that both have something to send wait for each other
        done, _ = await asyncio.wait([end.seen.lost], timeout=PATIENCE_S)
        if not done:
            raise TimeoutError(
                f"{end.transport!r} is never lost; ended by {end.ended}, saw {end.seen.events}"
            )

    async def drained(self, sender: End, receiver: End) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while (
            (sender.ended in (None, "eof") or (sender.ended == "close" and receiver.sent_count == 0))
            and receiver.ended in (None, "eof")
            and "lost" not in receiver.seen.events
            and (
                receiver.seen.count < sender.sent_count
                or (sender.ended == "eof" and "eof" not in receiver.seen.events)
            )
        ):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{receiver.seen.count} of {sender.sent_count} bytes arrived, {receiver.seen.events}"
                )
            await asyncio.sleep(0.0005)

    def result(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"outcomes": self.outcomes, "fired": self.fired, "raised": self.raised}
        for index, ends in enumerate(self.ends):
            for side, (end, other) in enumerate((ends, ends[::-1])):
                shown[f"{index}.{side}"] = self.end_result(end, other)
        return shown

    @staticmethod
    def end_result(end: End, other: End) -> dict[str, Any]:
        seen = end.seen
        # Closing a socket with unread input resets the connection, and a reset may overtake data.
        whole = end.ended in (None, "eof") and (
            other.ended in (None, "eof")
            or (other.ended == "close" and end.sent_count == 0 and not other.wrote_late)
        )
        told: dict[str, Any] = {"problems": seen.problems, "lost once": seen.events.count("lost") == 1}
        if "abort" not in (end.ended, other.ended) and "close" not in (end.ended, other.ended):
            # nobody left early: the order of callbacks and every refusal must be the same
            told["events"] = seen.milestones()
            told["error"] = seen.error
            told["refused"] = end.refused
        if whole:
            told["bytes"] = f"{seen.count} of {other.sent_count}"
            told["same bytes"] = seen.digest.digest() == other.sent.digest()
        return told


async def perform(scenario: Scenario) -> dict[str, Any]:
    player = Player(scenario)
    await player.connect()
    try:
        await player.play()
        await player.settle()
    finally:
        for ends in player.ends:
            for end in ends:
                if not end.seen.lost.done():
                    end.transport.abort()
        await player.do_turns(3)
    return player.result()


def play(scenario: Scenario, factory: LoopFactory) -> dict[str, Any]:
    """One scenario on one new loop: what was seen, or the exception that ended it."""
    loop = factory()
    reports: list[str] = []
    loop.set_exception_handler(lambda _loop, context: reports.append(str(context.get("message"))))
    try:
        result = loop.run_until_complete(asyncio.wait_for(perform(scenario), PATIENCE_S * 2))
    except Exception as exc:
        result = {"failed": f"{type(exc).__name__}: {exc}"}
    finally:
        with contextlib.suppress(Exception):
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
    result["reports"] = reports
    return result


def load(name: str) -> LoopFactory:
    """A factory by "module" or "module:callable"."""
    if name == "asyncio":
        return asyncio.SelectorEventLoop
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute or "new_event_loop")


def differences(results: dict[str, dict[str, Any]]) -> list[str]:
    """Lines that name where the loops disagree, and promises that any of them broke."""
    (first, one), *others = results.items()
    found = []
    stumbled = False
    for name, result in results.items():
        raised = result.pop("raised", [])
        if name != "asyncio" and raised:
            found.append(f"an operation raised on {name}: {raised}")
        stumbled = stumbled or bool(raised)
        for key, value in result.items():
            if isinstance(value, dict):
                # asyncio breaks the order of callbacks now and then: only the others are asked for it
                problems = value.pop("problems")
                if name != "asyncio" and problems:
                    found.append(f"{key} on {name}: {problems}")
                if not value["lost once"] or value.get("same bytes") is False:
                    found.append(f"{key} on {name}: {value}")
    for name, two in others:
        for key in sorted(one.keys() | two.keys()):
            # an operation that raised has no outcome
            if one.get(key) != two.get(key) and not (key == "outcomes" and stumbled):
                found.append(f"{key}:\n    {first}: {one.get(key)}\n    {name}: {two.get(key)}")
    return found


def seeds(first: int) -> Iterator[int]:
    rng = random.Random(first)
    yield first
    while True:
        yield rng.getrandbits(48)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Play random operations on two loops and compare what was seen."
    )
    parser.add_argument(
        "--seconds", type=float, help="how long to go on (default: one scenario if --seed is given)"
    )
    parser.add_argument("--scenarios", type=int, help="how many to play at most, however long they take")
    parser.add_argument("--seed", type=int, help="the first scenario (default: from the clock)")
    parser.add_argument("--loops", default="asyncio,zloop", help="control and subject, comma-separated")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first difference")
    options = parser.parse_args(arguments)

    factories = {name: load(name) for name in options.loops.split(",")}
    first = options.seed if options.seed is not None else time.time_ns() & 0xFFFFFFFF
    limited = options.seconds is not None or options.scenarios is not None
    alone = options.seed is not None and not limited
    usual_seconds = 10 if not limited else math.inf
    deadline = time.monotonic() + (options.seconds if options.seconds is not None else usual_seconds)
    print(f"seed {first}", flush=True)
    played = failed = 0
    for seed in seeds(first):
        scenario = Scenario.draw(seed)
        if alone:
            print(*scenario.kinds)
            for operation in scenario.operations:
                print("  ", *operation)
        found = differences({name: play(scenario, factory) for name, factory in factories.items()})
        played += 1
        if found:
            failed += 1
            print(f"DIFFERENCE, again by --seed {seed} --loops {options.loops}")
            for line in found:
                print(" ", line, flush=True)
            if not options.keep_going:
                break
        if alone or time.monotonic() > deadline or played == options.scenarios:
            break
    print(f"{played} scenarios, {failed} with differences")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
