"""Compile the core's tests and the engine for every system in targets.txt, without linking or running them.

This is what keeps the code for other kernels alive: Zig looks only at code that a target reaches. It is
`zig build check` without the build runner, which takes a minute and a half to compile on a new machine.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import engine

CORE_ROOT = engine.SOURCE_ROOT / "core" / "root.zig"


def main() -> int:
    triples = (Path(__file__).parent / "targets.txt").read_text().split()
    work = engine.CACHE_ROOT / "check-targets"
    work.mkdir(parents=True, exist_ok=True)
    config = engine.write_config(work)
    zig = engine.zig_command()
    failed = []
    for triple in triples:
        common = ["-fno-emit-bin", "-lc", "-target", triple, "--cache-dir", str(engine.CACHE_ROOT / "zig")]
        checks = {
            "core tests": ["test", "--test-no-exec", *common, f"-Mroot={CORE_ROOT}"],
            "engine": ["build-lib", "-dynamic", *common, *engine.module_arguments(config)],
        }
        for name, arguments in checks.items():
            if subprocess.run([*zig, *arguments], check=False, cwd=work, stdin=subprocess.DEVNULL).returncode:
                failed.append(f"{name} for {triple}")
    for line in failed:
        print(f"does not compile: {line}")
    print(f"{len(triples)} targets, {len(failed)} failures")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except engine.BuildError as error:
        sys.exit(f"zloop: {error}")
