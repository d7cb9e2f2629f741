"""Compile the core's tests and the engine for every system in targets.txt, and the engine for every kind of
interpreter, without linking or running them.

This is what keeps the code for other kernels and interpreters alive: Zig looks only at code a target reaches.
It is `zig build check` without the build runner, which takes a minute and a half to compile on a new machine.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import engine

INTERPRETERS = [
    *(engine.Interpreter(minor, False, False) for minor in range(10, 16)),
    *(engine.Interpreter(minor, True, False) for minor in (13, 14, 15)),
    *(engine.Interpreter(minor, False, True) for minor in (10, 14, 15)),
]
CORE_ROOT = engine.SOURCE_ROOT / "core" / "root.zig"


def compiles(work: Path, command: list[str], *arguments: str) -> bool:
    common = ["-fno-emit-bin", "-lc", "--cache-dir", str(engine.CACHE_ROOT / "zig")]
    whole = [*engine.zig_command(), *command, *common, *arguments]
    return subprocess.run(whole, check=False, cwd=work, stdin=subprocess.DEVNULL).returncode == 0


def main() -> int:
    triples = (Path(__file__).parent / "targets.txt").read_text().split()
    work = engine.CACHE_ROOT / "check-targets"
    work.mkdir(parents=True, exist_ok=True)
    config = engine.write_config(work, engine.Interpreter())
    core_tests = ["test", "--test-no-exec"]
    library = ["build-lib", "-dynamic"]
    failed = []
    for triple in triples:
        if not compiles(work, core_tests, "-target", triple, f"-Mroot={CORE_ROOT}"):
            failed.append(f"core tests for {triple}")
        if not compiles(work, library, "-target", triple, *engine.module_arguments(config)):
            failed.append(f"engine for {triple}")
    for interpreter in INTERPRETERS:
        folder = work / f"3.{interpreter.minor}{'t' * interpreter.gil_disabled}{'d' * interpreter.debug}"
        folder.mkdir(exist_ok=True)
        if not compiles(work, library, *engine.module_arguments(engine.write_config(folder, interpreter))):
            failed.append(f"engine for CPython {folder.name}")
    for line in failed:
        print(f"does not compile: {line}")
    print(f"{len(triples)} systems, {len(INTERPRETERS)} interpreters, {len(failed)} failures")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except engine.BuildError as error:
        sys.exit(f"zloop: {error}")
