"""Run a program on zloop unchanged: `python -m zloop FILE [ARGS...]`, `python -m zloop -m MODULE [ARGS...]`.

The program sees what `python FILE` or `python -m MODULE` would show it (`sys.argv`, `sys.path[0]`,
`__main__`); the one difference is that `asyncio.run`, `asyncio.Runner` and `asyncio.new_event_loop` make
zloop loops.
"""

from __future__ import annotations

import asyncio
import os
import runpy
import sys
import warnings

import zloop

USAGE = """\
usage: python -m zloop FILE [ARGS...]
       python -m zloop -m MODULE [ARGS...]
       python -m zloop --version

Run a Python program with zloop as the default asyncio event loop.
"""


def use_zloop_by_default() -> None:
    """Make zloop the loop that asyncio makes for this process when a program does not name one."""
    if hasattr(asyncio.events, "set_event_loop_policy"):
        with warnings.catch_warnings():
            # Python 3.14 deprecates policies: news for a program's author, not for one who runs it.
            warnings.simplefilter("ignore", DeprecationWarning)
            zloop.install()
        return
    # Without policies every maker of a loop in asyncio looks this one function up at the time of the call.
    asyncio.events.new_event_loop = asyncio.new_event_loop = zloop.new_event_loop


def run_file(path: str, arguments: list[str]) -> None:
    sys.argv = [path, *arguments]
    if not getattr(sys.flags, "safe_path", False):  # pragma: no branch (Python 3.10 has no such flag)
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    runpy.run_path(path, run_name="__main__")


def run_module(name: str, arguments: list[str]) -> None:
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def main() -> int:
    match sys.argv[1:]:
        case ["-h" | "--help", *_]:
            print(USAGE, end="")
        case ["--version", *_]:
            print(f"zloop {zloop.__version__} on {sys.implementation.name} {sys.version.split()[0]}")
        case ["-m", name, *arguments]:
            use_zloop_by_default()
            run_module(name, arguments)
        case [path, *arguments] if not path.startswith("-"):
            if not os.path.exists(path):
                print(f"{sys.executable}: can't open file {path!r}", file=sys.stderr)
                return 2
            use_zloop_by_default()
            run_file(path, arguments)
        case _:
            print(USAGE, end="", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
