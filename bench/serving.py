"""Starts a server under test, Python or native, for the length of a `with` block."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from bench import loops, native
from bench.certificates import certificate
from bench.harness import Sample, SampleFailed
from bench.paths import ROOT

START_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    pid: int
    port: int
    unix_path: str | None
    uses_tls: bool
    errors: IO[str]

    def target(self) -> dict[str, object]:
        """Options that point the load generator at this server."""
        where: dict[str, object] = {"unix": self.unix_path} if self.unix_path else {"port": self.port}
        return {**where, "tls": self.uses_tls}

    def load(self, mode: str, **options: object) -> Sample:
        """Runs the load generator against this server and charges it the server's CPU time."""
        try:
            return native.run_load(mode, **self.target(), watch_pid=self.pid, **options)
        except native.LoadFailed as error:
            raise SampleFailed(f"{error}; {self.complaint()}".rstrip("; ")) from None
        except subprocess.TimeoutExpired:
            raise SampleFailed("the load generator got no answers") from None

    def complaint(self) -> str:
        """What the server wrote to standard error so far."""
        self.errors.seek(0)
        return self.errors.read().strip()[-1000:]


@contextlib.contextmanager
def echo_server(name: str, transport: str, shape: str, size: int) -> Iterator[Running]:
    """The named contender, or the native server for the C limit, which knows the one shape of echoing."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        arguments: list[object] = []
        unix_path = f"{folder}/socket" if transport == "unix" else None
        if unix_path:
            arguments += ["--unix", unix_path]
        if transport == "tls":
            pair = certificate()
            arguments += ["--certificate", pair.chain, "--key", pair.key]
        if name == loops.LIMIT:
            command = [str(native.program("echo_epoll"))]
        else:
            command = python_command("bench.server_child", "--loop", name, "--shape", shape, "--size", size)
        with running([*command, *map(str, arguments)], unix_path, transport == "tls") as server:
            yield server


def python_command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


@contextlib.contextmanager
def running(
    command: Sequence[str], unix_path: str | None = None, uses_tls: bool = False
) -> Iterator[Running]:
    """Starts the command, waits for the port it announces, and ends it afterwards."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
            line = process.stdout.readline() if ready else ""
            if not line:
                errors.seek(0)
                raise SampleFailed(errors.read().strip()[-2000:] or "the server did not start")
            yield Running(process.pid, json.loads(line)["port"], unix_path, uses_tls, errors)
        finally:
            process.kill()
            process.communicate()
