"""Builds the Zig programs once per source text and runs the load generator."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.paths import BENCH, CACHE, ROOT

SOURCES = BENCH / "native"
LOAD_TIMEOUT_S = 60.0


class NoCompiler(RuntimeError):
    """There is no Zig here, so there is no load generator."""


class LoadFailed(RuntimeError):
    """The load generator saw a wrong answer or a closed connection."""


def zig_command() -> list[str]:
    if configured := os.environ.get("ZLOOP_ZIG"):
        return [configured]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang"]
    for name in ("zig", "python-zig"):
        if found := shutil.which(name):
            return [found]
    raise NoCompiler("install ziglang or set ZLOOP_ZIG to a Zig compiler")


@functools.cache
def program(name: str) -> Path:
    """Path of a built program; a changed source gives another path, so stale binaries are never run."""
    sources = sorted(SOURCES.glob("*.zig"))
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    binary = CACHE / "native" / digest / name
    if binary.exists():
        return binary
    binary.parent.mkdir(parents=True, exist_ok=True)
    unfinished = binary.with_name(f"{name}.{os.getpid()}")
    command = [*zig_command(), "build-exe", "-O", "fast", "-lc", f"{name}.zig", f"-femit-bin={unfinished}"]
    subprocess.run([*command, "--cache-dir", str(CACHE / "zig")], cwd=SOURCES, check=True)
    unfinished.rename(binary)
    return binary


def load_command(mode: str, **options: object) -> list[str]:
    """Options become `--name value`; True is a flag, None and False are left out."""
    command = [str(program("loadgen")), mode]
    for name, value in options.items():
        if value is None or value is False:
            continue
        command.append("--" + name.replace("_", "-"))
        if value is not True:
            command.append(str(value))
    return command


def run_load(mode: str, **options: object) -> dict[str, float]:
    command = load_command(mode, **options)
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LOAD_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise LoadFailed(done.stderr.strip() or f"the load generator ended with status {done.returncode}")
    result: dict[str, float] = json.loads(done.stdout)
    return result
