"""Small behaviours on which event loops differ, each tried out on asyncio, uvloop and zloop.

    python conformance/differences.py                                  prints the table
    python conformance/differences.py --write docs/differences.md      replaces the page's marked table
    python conformance/differences.py --loop zloop:new_event_loop      one loop's answers as JSON

Each trial says what it looks at in its docstring, which is the first column of the table, and returns what it
saw. It tells what is, not what should be. Every loop answers in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import inspect
import json
import os
import platform
import pty
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import tty
import warnings
from asyncio import trsock
from collections.abc import Callable, Coroutine
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

LOOPS = {
    "asyncio": "asyncio:SelectorEventLoop",
    "uvloop": "uvloop:new_event_loop",
    "zloop": "zloop:new_event_loop",
}
MARKED = re.compile(r"(<!-- differences -->\n).*?(<!-- /differences -->)", re.DOTALL)
PATIENCE_S = 5

Factory = Callable[[], asyncio.AbstractEventLoop]
#: A coroutine function, run on a new loop; or a plain function, which gets the factory.
TRIALS: list[Callable[..., Any]] = []


def trial(function: Callable[..., Any]) -> Callable[..., Any]:
    TRIALS.append(function)
    return function


def yes(value: object) -> str:
    return "yes" if value else "no"


class Connection:
    """Both ends of a connection: the transport under trial and a plain blocking socket."""

    def __init__(self, transport: Any, peer: socket.socket) -> None:
        self.transport = transport
        self.peer = peer

    @classmethod
    async def make(cls, protocol: Callable[[], asyncio.BaseProtocol] = asyncio.Protocol) -> Connection:
        left, right = socket.socketpair()
        left.setblocking(False)
        right.settimeout(PATIENCE_S)
        transport, _ = await asyncio.get_running_loop().create_connection(protocol, sock=left)
        return cls(transport, right)

    async def close(self) -> None:
        self.transport.abort()
        self.peer.close()
        await turns()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@trial
async def loop_class() -> str:
    """`isinstance(loop, asyncio.SelectorEventLoop)`"""
    return yes(isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop))


@trial
async def handle_class() -> str:
    """`isinstance(loop.call_soon(f), asyncio.Handle)`"""
    return yes(isinstance(asyncio.get_running_loop().call_soon(int), asyncio.Handle))


@trial
async def timer_class() -> str:
    """`isinstance(loop.call_later(0, f), asyncio.TimerHandle)`"""
    return yes(isinstance(asyncio.get_running_loop().call_later(0, int), asyncio.TimerHandle))


@trial
async def server_class() -> str:
    """`isinstance(server, asyncio.Server)` of what `create_server()` returns"""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    answer = yes(isinstance(server, asyncio.Server))
    server.close()
    return answer


@trial
async def transport_class() -> str:
    """`isinstance(transport, asyncio.Transport)`"""
    connection = await Connection.make()
    answer = yes(isinstance(connection.transport, asyncio.Transport))
    await connection.close()
    return answer


@trial
async def transport_attributes() -> str:
    """A transport takes attributes of the program's"""
    connection = await Connection.make()
    try:
        connection.transport.note = "kept"
        return "yes"
    except AttributeError:
        return "no"
    finally:
        await connection.close()


@trial
async def write_after_close() -> str:
    """`transport.write()` after `transport.close()`"""
    connection = await Connection.make()
    connection.transport.close()
    await turns()
    try:
        connection.transport.write(b"late")
        return "ignored"
    except Exception as error:
        return f"`{type(error).__name__}`"
    finally:
        await connection.close()


@trial
async def write_leaves() -> str:
    """When the answer that a callback writes is given to the kernel"""
    return await when_received(lambda transport: None)


@trial
async def write_leaves_when_asked() -> str:
    """The same if the callback then calls `transport.get_write_buffer_size()`"""
    return await when_received(lambda transport: transport.get_write_buffer_size())


async def when_received(act: Callable[[Any], object]) -> str:
    loop = asyncio.get_running_loop()
    asked = loop.create_future()

    class Answering(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            asked.set_result(self.transport)

    server = await loop.create_server(Answering, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as peer:
        peer.send(b"?")
        transport: Any = await asked
        peer.setblocking(False)
        transport.write(b"now")
        act(transport)
        try:
            peer.recv(10)
            answer = "at once"
        except BlockingIOError:
            await turns()
            answer = "by the end of the turn" if peer.recv(10) == b"now" else "never"
        transport.abort()
        await turns()
    server.close()
    return answer


@trial
async def finished_handle() -> str:
    """A handle keeps its callback after it has run (`handle._callback`)"""
    handle: Any = asyncio.get_running_loop().call_soon(int)
    await turns()
    return yes(getattr(handle, "_callback", None))


@trial
async def inner_selector() -> str:
    """`loop._selector` is a selector that descriptors can be registered with"""
    selector: Any = getattr(asyncio.get_running_loop(), "_selector", None)
    with socket.socket() as sock:
        try:
            selector.register(sock, 1)
            selector.unregister(sock)
        except (AttributeError, RuntimeError):
            return "no"
    return "yes"


@trial
async def write_then_change() -> str:
    """What the peer gets of a `bytearray` that waits for room and changes after `write()` has returned"""
    connection = await Connection.make()
    connection.transport.write(bytes(1 << 20))
    data = bytearray(b"before")
    connection.transport.write(data)
    data[:] = b"AFTER!"
    connection.transport.close()
    got = bytearray()
    while piece := await asyncio.to_thread(connection.peer.recv, 1 << 20):
        got += piece
    connection.peer.close()
    return "what was written" if got.endswith(b"before") else "the change"


@trial
async def socket_class() -> str:
    """`transport.get_extra_info("socket")` is asyncio's `TransportSocket`"""
    connection = await Connection.make()
    found = connection.transport.get_extra_info("socket")
    await connection.close()
    return yes(isinstance(found, trsock.TransportSocket))


@trial
async def no_delay() -> str:
    """`TCP_NODELAY` on a connection of a server whose socket was made without a protocol number"""
    made: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            sock = transport.get_extra_info("socket")
            made.set_result("set" if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) else "not set")
            transport.abort()

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = await asyncio.get_running_loop().create_server(Server, sock=listening)
    with socket.create_connection(listening.getsockname()):
        answer = await asyncio.wait_for(made, PATIENCE_S)
    server.close()
    return answer


@trial
async def sock_sendto() -> str:
    """`loop.sock_sendto()` and `loop.sock_recvfrom()`"""
    loop = asyncio.get_running_loop()
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as two:
        for sock in (one, two):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        try:
            await loop.sock_sendto(one, b"datagram", two.getsockname())
            data, _ = await asyncio.wait_for(loop.sock_recvfrom(two, 100), PATIENCE_S)
        except (NotImplementedError, AttributeError, TypeError) as error:
            return f"`{type(error).__name__}`"
    return "work" if data == b"datagram" else "fail"


@trial
async def send_file() -> str:
    """`loop.sendfile()`"""
    connection = await Connection.make()
    with tempfile.TemporaryFile() as file:
        file.write(b"file")
        file.flush()
        try:
            await asyncio.get_running_loop().sendfile(connection.transport, file)
            return "works" if connection.peer.recv(100) == b"file" else "fails"
        except (NotImplementedError, AttributeError) as error:
            return f"`{type(error).__name__}`"
        finally:
            await connection.close()


@trial
async def happy_eyeballs() -> str:
    """`create_connection(happy_eyeballs_delay=...)`"""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        transport, _ = await loop.create_connection(
            asyncio.Protocol, "127.0.0.1", port, happy_eyeballs_delay=0.25
        )
        transport.abort()
        return "works"
    except TypeError as error:
        return f"`{type(error).__name__}`"
    finally:
        server.close()
        await turns()


@trial
async def keywords() -> str:
    """Public methods of asyncio's loop, and keyword-only arguments of theirs, that are missing"""
    own = type(asyncio.get_running_loop())
    missing = 0
    for name, method in inspect.getmembers(asyncio.SelectorEventLoop, inspect.isfunction):
        if name.startswith("_"):
            continue
        try:
            found = inspect.signature(getattr(own, name)).parameters
        except (AttributeError, ValueError):
            missing += 1
            continue
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in found.values()):
            wanted = inspect.signature(method).parameters.values()
            missing += sum(one.kind is one.KEYWORD_ONLY and one.name not in found for one in wanted)
    return str(missing)


@trial
async def literal_addresses() -> str:
    """Threads started by `loop.getaddrinfo("127.0.0.1", 80)`"""
    before = threading.active_count()
    await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    return str(threading.active_count() - before)


@trial
async def full_executor() -> str:
    """`loop.getaddrinfo("localhost", 80)` while the default executor is full"""
    loop = asyncio.get_running_loop()
    freed = threading.Event()
    loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, freed.wait, PATIENCE_S)
    try:
        await asyncio.wait_for(loop.getaddrinfo("localhost", 80), 1)
        return "answers"
    except asyncio.TimeoutError:
        return "waits for it"
    finally:
        freed.set()
        await busy


@trial
async def early_timers() -> str:
    """Timers of 200 that ran before their time by `time.monotonic()`"""
    loop = asyncio.get_running_loop()
    early: list[bool] = []
    done = loop.create_future()

    def run(due: float) -> None:
        early.append(time.monotonic() < due)
        if len(early) == 200:
            done.set_result(None)

    for number in range(200):
        delay = 0.002 + number * 0.000_317
        loop.call_later(delay, run, time.monotonic() + delay)
    await done
    return "none" if not any(early) else "some"


@trial
async def file_like_stdin() -> str:
    """A child can open `/dev/stdin` when its stdin is `PIPE`"""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "print(open('/dev/stdin').read())", stdin=subprocess.PIPE, stdout=-1, stderr=-1
    )
    out, _ = await child.communicate(b"text")
    return yes(out == b"text\n")


@trial
def own_sigchld(factory: Factory) -> str:
    """The program's handler of `SIGCHLD` is called when a child of the loop ends"""
    called: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, _: called.append(number))

    async def main() -> None:
        child = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "")
        await asyncio.wait_for(child.wait(), PATIENCE_S)
        await turns()

    try:
        run(factory, main())
    finally:
        signal.signal(signal.SIGCHLD, before)
    return yes(called)


@trial
async def terminal_mode() -> str:
    """A terminal is blocking again after `connect_read_pipe()` and the transport's end"""
    controller, terminal = pty.openpty()
    tty.setraw(terminal)
    other = os.dup(terminal)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        asyncio.Protocol, os.fdopen(terminal, "rb")
    )
    transport.close()
    await turns()
    answer = yes(os.get_blocking(other))
    os.close(controller)
    os.close(other)
    return answer


@trial
async def refused_handshake() -> str:
    """What a TLS client gets from a server that has no certificate"""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: None)
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=bare)
    try:
        await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname(), ssl=context)
        return "a connection"
    except OSError as error:
        return f"`{type(error).__name__}`"
    finally:
        server.close()
        await turns(20)


@trial
def forked_loop(factory: Factory) -> str:
    """A forked child that runs its parent's loop"""
    loop = factory()
    loop.run_until_complete(asyncio.sleep(0))
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            coroutine = asyncio.sleep(0)
            try:
                loop.run_until_complete(coroutine)
                answer = "runs"
            except RuntimeError as error:
                answer = f"`{type(error).__name__}`"
                coroutine.close()
            os.write(writing, answer.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        answer = answers.read()
    os.waitpid(pid, 0)
    loop.close()
    return answer


def run(factory: Factory, main: Coroutine[Any, Any, Any]) -> Any:
    loop = factory()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        asyncio.set_event_loop(None)
        loop.close()


def question(function: Callable[..., Any]) -> str:
    assert function.__doc__ is not None
    return function.__doc__


def answers(name: str) -> dict[str, str]:
    module, _, attribute = name.partition(":")
    factory = getattr(import_module(module), attribute)
    found = {}
    for function in TRIALS:
        if inspect.iscoroutinefunction(function):
            found[question(function)] = run(factory, function())
        else:
            found[question(function)] = function(factory)
    return found


def ask(name: str) -> dict[str, str]:
    command = [sys.executable, "-W", "ignore", __file__, "--loop", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def table() -> str:
    found = {name: ask(loop) for name, loop in LOOPS.items()}
    lines = ["| | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for text in map(question, TRIALS):
        lines.append(f"| {text} | " + " | ".join(replies[text] for replies in found.values()) + " |")
    versions = f"uvloop {version('uvloop')}, {platform.python_implementation()} {platform.python_version()}"
    return "\n".join([*lines, "", f"{versions} on {platform.system()}."])


def main() -> int:
    parser = argparse.ArgumentParser(description="Small behaviours on which event loops differ.")
    parser.add_argument("--loop", help="module:callable; print this loop's answers as JSON")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="replace what stands between the page's markers"
    )
    options = parser.parse_args()
    if options.loop:
        print(json.dumps(answers(options.loop)))
    elif options.write:
        page = options.write.read_text(encoding="utf-8")
        options.write.write_text(
            MARKED.sub(lambda match: f"{match[1]}\n{table()}\n\n{match[2]}", page), encoding="utf-8"
        )
    else:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
