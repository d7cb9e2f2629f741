"""Programs and libraries that people run on event loops, each in its ordinary way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE_S, Tls, child_env, until, within

APPLICATION = """
import asyncio, os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                print("lifespan over", flush=True)
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"].upper()})
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["path"] == "/slow":
        print("slow request", flush=True)
        await asyncio.sleep(0.3)
    loop = asyncio.get_running_loop()
    text = f"{type(loop).__module__}.{type(loop).__name__} {os.getpid()} {scope['path']} {len(body)}".encode()
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", str(len(text)).encode())]})
    await send({"type": "http.response.body", "body": text})
"""


class Served:
    """A server program under test: its process, its output, and a way to ask it."""

    def __init__(
        self, process: subprocess.Popen[str], port: int | None, path: str | None, tls: Tls | None
    ) -> None:
        self.process, self.port, self.path, self.tls = process, port, path, tls
        self.output: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not any(text in line for line in self.output):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"no {text!r} in {self.output}")
            time.sleep(0.01)

    def connect(self) -> socket.socket:
        if self.path is not None:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(PATIENCE_S)
            sock.connect(self.path)
        else:
            sock = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        if self.tls is not None:
            return self.tls.client.wrap_socket(sock, server_hostname="localhost")
        return sock

    def get(self, path: str = "/", body: bytes = b"") -> str:
        with self.connect() as sock:
            request = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            sock.sendall(f"{request}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = b""
            while data := sock.recv(65536):
                answer += data
        head, _, text = answer.decode().partition("\r\n\r\n")
        assert " 200 " in head.splitlines()[0], answer
        return text

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self._reader.join(PATIENCE_S)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []
    (tmp_path / "application.py").write_text(APPLICATION)

    def start(
        *command: str, ready: str, path: str | None = None, port: int | None = None, tls: Any = None
    ) -> Served:
        environment = child_env()
        environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *command],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        served = Served(process, port, path, tls)
        started.append(served)
        served.wait_for(ready)
        if path is None and port is None:
            match = re.search(r"https?://127\.0\.0\.1:(\d+)", "".join(served.output))
            assert match, served.output
            served.port = int(match[1])
        return served

    yield start
    for served in started:
        served.end()


def loop_class(loop_name: str) -> str:
    return "zloop.Loop" if loop_name.startswith("zloop") else ""


def uvicorn(loop_name: str, *options: str, version: Any = None) -> list[str]:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    if loop_name.startswith("asyncio:"):
        loop_name = "asyncio"
    return ["-m", "uvicorn", "application:app", "--port", "0", "--loop", loop_name, *options]


UVICORN_READY = "Uvicorn running on"


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_uvicorn(serve, loop_name, http):
    pytest.importorskip(http, reason=f"{http} is not installed")
    served = serve(*uvicorn(loop_name, "--http", http), ready=UVICORN_READY)
    answer = served.get("/path", b"x" * 200_000)
    assert answer.startswith(loop_class(loop_name))
    assert answer.endswith(" /path 200000")
    # keep-alive and pipelining
    with served.connect() as sock:
        sock.sendall(
            b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n" * 10
            + b"GET /2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        answer = b""
        while data := sock.recv(65536):
            answer += data
    assert answer.count(b" 200 OK") == 11
    assert served.stop() in (0, -signal.SIGTERM)
    assert any("lifespan over" in line for line in served.output)
    assert not any("Traceback" in line for line in served.output), served.output


@pytest.mark.parametrize("implementation", ["websockets", "wsproto"])
def test_uvicorn_websockets(serve, loop_name, implementation):
    client = pytest.importorskip("websockets.sync.client", reason="websockets is not installed")
    pytest.importorskip(implementation, reason=f"{implementation} is not installed")
    served = serve(*uvicorn(loop_name, "--ws", implementation), ready=UVICORN_READY)
    with client.connect(f"ws://127.0.0.1:{served.port}/socket") as connection:
        for text in ("hello", "x" * 100_000):
            connection.send(text)
            assert connection.recv(timeout=PATIENCE_S) == text.upper()
    served.stop()
    assert not any("Traceback" in line for line in served.output), served.output


def test_uvicorn_tls(serve, loop_name, tls):
    served = serve(
        *uvicorn(loop_name, "--ssl-certfile", tls.certificate, "--ssl-keyfile", tls.certificate),
        ready=UVICORN_READY,
        tls=tls,
    )
    assert served.get("/secret").endswith(" /secret 0")
    served.stop()
    assert not any("Traceback" in line for line in served.output), served.output


def test_uvicorn_unix_socket(serve, loop_name, unix_path):
    served = serve(*uvicorn(loop_name, "--uds", unix_path), ready=UVICORN_READY, path=unix_path)
    assert served.get("/unix").endswith(" /unix 0")
    served.stop()
    assert not any("Traceback" in line for line in served.output), served.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_uvicorn_finishes_a_request_when_told_to_stop(serve, loop_name, number):
    served = serve(*uvicorn(loop_name), ready=UVICORN_READY)
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(served.get("/slow")))
    asking.start()
    served.wait_for("slow request")
    served.stop(number)
    asking.join(PATIENCE_S)
    assert len(answers) == 1
    assert answers[0].endswith(" /slow 0")
    assert any("lifespan over" in line for line in served.output)
    assert not any("Traceback" in line for line in served.output if "KeyboardInterrupt" not in line), (
        served.output
    )


def test_uvicorn_with_two_workers(serve, loop_name):
    served = serve(*uvicorn(loop_name, "--workers", "2"), ready="Application startup complete")
    pids = set()
    deadline = time.monotonic() + PATIENCE_S
    while len(pids) < 2 and time.monotonic() < deadline:
        answer = served.get("/")
        assert answer.startswith(loop_class(loop_name))
        pids.add(answer.split()[1])
    assert str(served.process.pid) not in pids
    assert len(pids) >= 1  # the kernel decides who accepts
    served.stop()
    assert not any("Traceback" in line for line in served.output), served.output


def test_hypercorn(serve, loop_name, unix_path):
    pytest.importorskip("hypercorn", reason="hypercorn is not installed")
    program = textwrap.dedent(
        f"""
        import asyncio, importlib, signal
        from application import app
        from hypercorn.asyncio import serve
        from hypercorn.config import Config
        module, _, attribute = {loop_name!r}.partition(":")
        loop = getattr(importlib.import_module(module), attribute)()
        config = Config()
        config.bind = ["unix:" + {unix_path!r}]
        config.graceful_timeout = 2
        async def main():
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            await serve(app, config, shutdown_trigger=stop.wait)
        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        print("closed", flush=True)
        """
    )
    served = serve("-c", program, ready="Running on", path=unix_path)
    assert served.get("/hypercorn", b"body").endswith(" /hypercorn 4")
    assert served.stop() == 0
    assert any("closed" in line for line in served.output)
    assert not any("Traceback" in line for line in served.output), served.output


def test_fastapi_under_uvicorn_in_one_loop(run):
    fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")
    server_module = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")

    app = fastapi.FastAPI()

    @app.get("/items/{number}")
    async def item(number: int) -> dict[str, int]:
        await asyncio.sleep(0)
        return {"number": number}

    @app.get("/blocking")
    def blocking() -> dict[str, str]:
        return {"thread": threading.current_thread().name}

    @app.get("/stream")
    async def stream() -> Any:
        async def lines() -> Any:
            for number in range(100):
                yield f"{number}\n"
                await asyncio.sleep(0)

        return fastapi.responses.StreamingResponse(lines())

    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        server = server_module.Server(server_module.Config(app, log_level="error"))
        with signal_handlers_restored():
            serving = asyncio.ensure_future(server.serve(sockets=[listener]))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with httpx.AsyncClient(base_url=url) as client:
                answers = await within(
                    asyncio.gather(*(client.get(f"/items/{number}") for number in range(20)))
                )
                assert [answer.json() for answer in answers] == [{"number": number} for number in range(20)]
                assert "MainThread" not in (await within(client.get("/blocking"))).text
                assert (await within(client.get("/stream"))).text == "".join(
                    f"{number}\n" for number in range(100)
                )
                assert (await within(client.get("/nothing"))).status_code == 404
            server.should_exit = True
            await within(serving)
        listener.close()

    run(main())


@contextlib.contextmanager
def signal_handlers_restored() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_starlette_through_httpx_without_network(run):
    applications = pytest.importorskip("starlette.applications", reason="starlette is not installed")
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    from starlette.background import BackgroundTask
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    done: list[str] = []

    async def home(request: Any) -> Any:
        return JSONResponse({"path": request.url.path}, background=BackgroundTask(done.append, "background"))

    app = applications.Starlette(routes=[Route("/home", home)])

    async def main() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await within(client.get("/home"))).json() == {"path": "/home"}
        assert done == ["background"]

    run(main())


def test_httpx_over_tls(run, tls):
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
                writer.write(b"hello")
                await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls.server)
        port = server.sockets[0].getsockname()[1]
        async with httpx.AsyncClient(verify=tls.client) as client:
            for _ in range(3):
                answers = await within(
                    asyncio.gather(*(client.get(f"https://localhost:{port}/") for _ in range(5)))
                )
                assert [answer.text for answer in answers] == ["hello"] * 5
        server.close()
        await asyncio.sleep(0.01)

    run(main())


def test_aiohttp_server_and_client(run, tls):
    aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    from aiohttp import web

    async def echo(request: Any) -> Any:
        return web.Response(body=await request.read())

    async def socket_handler(request: Any) -> Any:
        response = web.WebSocketResponse()
        await response.prepare(request)
        async for message in response:
            await response.send_str(message.data.upper())
        return response

    async def main() -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/echo", echo)
        app.router.add_get("/socket", socket_handler)
        runner = web.AppRunner(app)
        await runner.setup()
        plain = web.TCPSite(runner, "127.0.0.1", 0)
        secure = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server)
        for site in (plain, secure):
            await site.start()
        addresses = list(runner.addresses)
        async with aiohttp.ClientSession() as session:
            for (_, port), url, context in zip(addresses, ("http", "https"), (None, tls.client), strict=True):
                options = {"ssl": context} if context else {}
                base = f"{url}://localhost:{port}"
                data = os.urandom(500_000)

                async def post(base: str = base, data: bytes = data, options: Any = options) -> bytes:
                    async with session.post(f"{base}/echo", data=data, **options) as answer:
                        return await answer.read()

                assert await within(asyncio.gather(*(post() for _ in range(5)))) == [data] * 5
                async with session.ws_connect(f"{base}/socket", **options) as websocket:
                    await websocket.send_str("hello")
                    assert (await within(websocket.receive())).data == "HELLO"
            with pytest.raises(asyncio.TimeoutError):
                async with session.get(
                    f"http://localhost:{addresses[0][1]}/socket", timeout=aiohttp.ClientTimeout(total=1e-9)
                ):
                    pass
        await within(runner.cleanup())
        await asyncio.sleep(0.01)

    run(main())


def test_websockets_library(run):
    server_module = pytest.importorskip("websockets.asyncio.server", reason="websockets is not installed")
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    async def handler(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    async def main() -> None:
        async with server_module.serve(handler, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with connect(f"ws://127.0.0.1:{port}") as connection:
                for message in ("text", b"bytes", "x" * 300_000):
                    await connection.send(message)
                    assert await within(connection.recv()) == message
                waiter = await connection.ping()
                await within(waiter)
            with pytest.raises(ConnectionClosed):
                await connection.recv()

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="anyio's loop_factory needs a Runner")
def test_anyio_with_loop_factory(loop_factory):
    anyio = pytest.importorskip("anyio", reason="anyio is not installed")

    async def main() -> str:
        results: list[int] = []

        async def child(number: int) -> None:
            await anyio.sleep(0.001)
            results.append(number)

        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(child, number)
        assert sorted(results) == list(range(10))
        with anyio.move_on_after(0.005) as scope:
            await anyio.sleep(3600)
        assert scope.cancelled_caught
        assert await anyio.to_thread.run_sync(lambda: 5) == 5
        process = await anyio.run_process(["echo", "child"])
        assert process.stdout == b"child\n"
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)

        async def echo(stream: Any) -> None:
            async with stream:
                async for data in stream:
                    await stream.send(data)

        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"
            group.cancel_scope.cancel()
        await listener.aclose()
        with anyio.open_signal_receiver(signal.SIGUSR1) as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            async for number in signals:
                assert number == signal.SIGUSR1
                break
        return type(asyncio.get_running_loop()).__module__

    expected = loop_factory()
    expected.close()
    assert anyio.run(main, backend_options={"loop_factory": loop_factory}) == type(expected).__module__


def test_pytest_asyncio(loop_name, tmp_path):
    pytest.importorskip("pytest_asyncio", reason="pytest-asyncio is not installed")
    if sys.version_info >= (3, 16):
        pytest.skip("this way of choosing a loop needs policies")
    policy = "zloop.EventLoopPolicy" if loop_name.startswith("zloop") else "asyncio.DefaultEventLoopPolicy"
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent(
            f"""
            import asyncio
            import {policy.split(".")[0]}
            import pytest, pytest_asyncio

            @pytest.fixture(scope="session")
            def event_loop_policy():
                return {policy}()

            @pytest_asyncio.fixture
            async def server():
                server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
                yield server
                server.close()
                await server.wait_closed()

            @pytest.mark.asyncio
            async def test_one(server):
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                assert await reader.read() == b""
                writer.close()
                await writer.wait_closed()

            @pytest.mark.asyncio
            async def test_two():
                print("LOOP", type(asyncio.get_running_loop()).__module__)
                await asyncio.sleep(0.001)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-W", "ignore", "-p", "no:cacheprovider", str(tmp_path)],
        env=child_env(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout
    assert ("LOOP zloop" in done.stdout) == loop_name.startswith("zloop")


def test_aiofiles_style_thread_offloading(run, tmp_path):
    """What aiofiles, asgiref and many others do: very many blocking calls by the default executor."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        path = tmp_path / "file"
        await loop.run_in_executor(None, path.write_text, json.dumps(list(range(100))))
        texts = await within(asyncio.gather(*(asyncio.to_thread(path.read_text) for _ in range(200))))
        assert all(json.loads(text) == list(range(100)) for text in texts)
        done: list[int] = []
        await until(lambda: (done.append(1), len(done) > 3)[1])

    run(main())
