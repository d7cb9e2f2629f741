"""Compile the native engine, `zloop._engine`, with the Zig compiler that the `ziglang` package brings.

The packaging hook (hatch_build.py) calls `build`. Run as a program this file rebuilds the library in
place for the interpreter that runs it, which is what an editable install loads:

    python build_tools/engine.py            # ZLOOP_BUILD_MODE, ZLOOP_SYMBOLS and ZLOOP_ZIG apply

A library is kept with a digest of all that it was made from, and made again only when the digest differs: the
compiler's own cache does not answer for a file that is given a name.

`build-lib` is used rather than `zig build`: the latter first compiles its own build runner, which costs a
user who installs from source a minute and a half. build.zig is for development only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import target as targets

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOT = ROOT / "src"
PACKAGE_ROOT = ROOT / "python" / "zloop"
CACHE_ROOT = ROOT / ".cache"
# The first of each is the default.
MODES = ("fast", "safe", "debug")
# What the engine waits for events by. The emulated ones are tests for Linux: kqueue.zig over a kqueue made of
# epoll, and every other branch for systems that are not Linux; the second wakes by a pipe, as old BSDs do.
BACKENDS = ("native", "kqueue-emulated", "kqueue-emulated-pipe")


class BuildError(Exception):
    """The engine could not be built; the message is what the user needs to read."""


@dataclass(frozen=True)
class Options:
    """What to build. `target` is None for the running interpreter's own system."""

    mode: str = "fast"
    symbols: bool = False
    target: str | None = None
    backend: str = "native"
    # A patchelf to give musl's libc the name that it has on the systems the wheel is for.
    patchelf: str | None = None

    @classmethod
    def from_environment(cls) -> Options:
        options = cls(
            mode=_choice("ZLOOP_BUILD_MODE", MODES),
            symbols=os.environ.get("ZLOOP_SYMBOLS", "") not in ("", "0"),
            target=os.environ.get("ZLOOP_TARGET") or None,
            backend=_choice("ZLOOP_BACKEND", BACKENDS),
            patchelf=os.environ.get("ZLOOP_PATCHELF") or None,
        )
        if os.environ.get("ZLOOP_FOR") and not options.target:
            raise BuildError("ZLOOP_FOR names another interpreter: ZLOOP_TARGET must say for which system")
        return options

    def resolve_target(self) -> targets.Target:
        try:
            return targets.parse(self.target) if self.target else targets.host()
        except targets.TargetError as error:
            raise BuildError(str(error)) from None


def _choice(variable: str, allowed: tuple[str, ...]) -> str:
    """The value of an environment variable; the first of the allowed ones if it is not set."""
    value = os.environ.get(variable) or allowed[0]
    if value not in allowed:
        raise BuildError(f"{variable} is {value!r}; it can be {', '.join(allowed)}")
    return value


@dataclass(frozen=True)
class Library:
    """A built library: where it is, what it must be called beside the package, and for which target it is."""

    path: Path
    name: str
    target: targets.Target


def build(options: Options) -> Library:
    """Compile into the cache folder and return the library; quick when the source has not changed."""
    target = options.resolve_target()
    if not (SOURCE_ROOT / "cpython" / "module.zig").is_file():
        raise BuildError(f"the engine's source is not in {SOURCE_ROOT}")
    if options.backend != "native" and "-linux-" not in target.triple:
        raise BuildError(
            f"ZLOOP_BACKEND={options.backend} is a test for Linux; the target is {target.triple}"
        )
    interpreter = Interpreter.chosen()
    if interpreter.gil_disabled and target.is_32_bit:
        raise BuildError("there is no engine for a free-threaded interpreter on a 32-bit machine")
    name = f"_engine{target.library_suffix}"
    kind = "-".join(
        [options.mode, *["symbols"] * options.symbols, *[options.backend] * (options.backend != "native")]
    )
    work = CACHE_ROOT / "engine" / f"{interpreter.tag}-{target.triple}-{kind}"
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / "lock"):
        config = write_config(work, interpreter, options.backend)
        zig = zig_command()
        arguments = [
            "build-lib",
            "-dynamic",
            *("-O", options.mode),
            "-fno-strip" if options.symbols or options.mode == "debug" else "-fstrip",
            "-lc",
            "-fallow-shlib-undefined",
            *("-target", target.triple),
            # Without this a native build takes every instruction the building machine has.
            "-mcpu=baseline",
            *("-install_name", f"@rpath/{name}") * target.is_macos,
            *("--name", "_engine"),
            *module_arguments(config),
        ]
        needs_rename = options.patchelf is not None and target.is_musl
        digest = _digest(zig, [*arguments, f"patchelf {needs_rename}"], config)
        stamp = work / "digest"
        if (work / name).is_file() and stamp.is_file() and stamp.read_text() == digest:
            return Library(path=work / name, name=name, target=target)
        # The final name appears by rename: a process that has the old library mapped keeps the old file.
        unfinished = work / f"unfinished-{name}"
        command = [*zig, *arguments, "--cache-dir", str(CACHE_ROOT / "zig"), f"-femit-bin={unfinished}"]
        result = subprocess.run(command, check=False, cwd=work, stdin=subprocess.DEVNULL)
        if result.returncode != 0:
            raise BuildError(
                f"the Zig compiler failed with status {result.returncode}; its messages are above"
            )
        if needs_rename:
            new = f"libc.musl-{target.triple.partition('-')[0]}.so.1"
            subprocess.run(
                [options.patchelf, "--replace-needed", "libc.so", new, str(unfinished)], check=True
            )
        stamp.unlink(missing_ok=True)
        os.replace(unfinished, work / name)
        stamp.write_text(digest)
    return Library(path=work / name, name=name, target=target)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Two builds of one configuration take turns: the second finds the library made."""
    with path.open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass  # a file system without locks: whoever builds twice there at once is on his own
        yield


def _digest(zig: list[str], arguments: list[str], config: Path) -> str:
    """Of all that a library is made from: the compiler, what it is told, and every source file."""
    version = subprocess.run([*zig, "version"], check=False, capture_output=True, stdin=subprocess.DEVNULL)
    digest = hashlib.sha256(version.stdout)
    digest.update("\0".join(arguments).encode())
    for path in (config, *sorted(SOURCE_ROOT.rglob("*.zig"))):
        digest.update(f"\0{path}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build_in_place(options: Options) -> Library:
    """Build for the running interpreter, into the source package, where editable installs look."""
    if options.target:
        raise BuildError(
            "ZLOOP_TARGET is for wheels; a library built in place is for the running interpreter"
        )
    library = build(options)
    destination = PACKAGE_ROOT / library.name
    unfinished = PACKAGE_ROOT / f".{library.name}.{os.getpid()}"
    shutil.copyfile(library.path, unfinished)
    os.replace(unfinished, destination)
    return Library(path=destination, name=library.name, target=library.target)


def zig_command() -> list[str]:
    override = os.environ.get("ZLOOP_ZIG")
    if override:
        executable = shutil.which(override)
        if executable is None:
            raise BuildError(f"ZLOOP_ZIG names {override!r}, which is not an executable")
        return [os.path.abspath(executable)]
    if importlib.util.find_spec("ziglang") is None:
        raise BuildError(
            f"the Zig compiler is missing: run `{sys.executable} -m pip install ziglang==0.17.1`, "
            "install without --no-build-isolation, or name a Zig 0.17.1 executable in ZLOOP_ZIG"
        )
    return [sys.executable, "-m", "ziglang"]


def module_arguments(config: Path) -> list[str]:
    """The engine's Zig modules: the adapter, which imports the core and the generated `config`."""
    return [
        *("--dep", "core", "--dep", "config"),
        f"-Mroot={SOURCE_ROOT / 'cpython' / 'module.zig'}",
        f"-Mcore={SOURCE_ROOT / 'core' / 'root.zig'}",
        f"-Mconfig={config}",
    ]


@dataclass(frozen=True)
class Interpreter:
    """What the adapter has to know at compile time of the interpreter it is built for."""

    minor: int = sys.version_info.minor
    gil_disabled: bool = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    debug: bool = hasattr(sys, "gettotalrefcount")
    tag: str = ""

    @classmethod
    def chosen(cls) -> Interpreter:
        """The one that ZLOOP_FOR names, or the running one."""
        try:
            tag = targets.interpreter_tag()
        except targets.TargetError as error:
            raise BuildError(str(error)) from None
        if not os.environ.get("ZLOOP_FOR"):
            return cls(tag=tag)
        return cls(int(tag.rstrip("td")[1:]), "t" in tag, "d" in tag, tag)


def write_config(folder: Path, interpreter: Interpreter, backend: str = "native") -> Path:
    """Write the Zig module `config`: facts about the interpreter, the package's version, the backend.

    The folder is one configuration's own and the file is rewritten only when it differs, because Zig's cache
    goes by path and by time before it goes by content.
    """
    version = re.search(
        r'^__version__ = "([^"]+)"$', (PACKAGE_ROOT / "_version.py").read_text(), re.MULTILINE
    )
    if version is None:
        raise BuildError(f"no version in {PACKAGE_ROOT / '_version.py'}")
    flag = {False: "false", True: "true"}
    source = (
        f"pub const py_major: u32 = {sys.version_info.major};\n"
        f"pub const py_minor: u32 = {interpreter.minor};\n"
        f"pub const gil_disabled: bool = {flag[interpreter.gil_disabled]};\n"
        f"pub const py_debug: bool = {flag[interpreter.debug]};\n"
        f'pub const zloop_version: []const u8 = "{version[1]}";\n'
        f"pub const backend = .{backend.replace('-', '_')};\n"
    )
    path = folder / "config.zig"
    if not path.is_file() or path.read_text() != source:
        path.write_text(source)
    return path


def main() -> int:
    started = time.monotonic()
    try:
        options = Options.from_environment()
        library = build_in_place(options)
    except BuildError as error:
        print(f"zloop: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - started
    print(f"zloop: {os.path.relpath(library.path)} ({options.mode}, {seconds:.1f} s)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
