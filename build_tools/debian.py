"""Interpreters and parts of them out of Debian's archive, unpacked into a folder.

    python build_tools/debian.py python VERSION SUITE FOLDER     CPython with its debug build, headers, venv
    python build_tools/debian.py freethreaded FOLDER [FLAGS...]  a free-threaded CPython 3.13, compiled
    python build_tools/debian.py testsuite VERSION SUITE FOLDER  the tests, which Debian packages apart

It needs a Debian system, whose own mirror it asks, `dpkg-deb`, and for an interpreter `patchelf` on PATH; not
root. The system itself is not touched: apt works with a state of its own, and can ask for any suite and any
architecture. Suites move, so nothing here pins a version: `forky` gives what forky has today.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import engine

# What an interpreter needs of its own suite: the C library and the libraries of its extensions.
LIBRARIES = (
    *(
        "libc6",
        "libgcc-s1",
        "libstdc++6",
        "libssl3t64",
        "libffi8",
        "libexpat1",
        "zlib1g",
        "libbz2-1.0",
        "liblzma5",
    ),
    *("libreadline8t64", "libncursesw6", "libtinfo6", "libsqlite3-0", "libuuid1", "libzstd1"),
)


class Unavailable(Exception):
    """This system cannot give it; the message says why."""


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What the command prints. If it fails, what it said goes into the exception."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise Unavailable(f"{words[0]} is not installed") from None
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()[-15:]
        raise Unavailable("\n".join([f"{' '.join(words[:4])} failed with status {done.returncode}:", *said]))
    return done.stdout


def mirror() -> str:
    """The address of the archive that this system's apt uses."""
    release = Path("/etc/os-release")
    if not release.is_file() or not re.search(r"^ID=debian$", release.read_text(), re.MULTILINE):
        raise Unavailable("this is not a Debian system")
    folder = Path("/etc/apt/sources.list.d")
    for path in [
        *sorted(folder.glob("*.sources")),
        *sorted(folder.glob("*.list")),
        Path("/etc/apt/sources.list"),
    ]:
        if path.is_file():
            found = re.search(r"^(?:URIs:|deb(?: \[[^]]*\])?)\s+(\S+)", path.read_text(), re.MULTILINE)
            if found:
                return found[1]
    raise Unavailable("apt has no sources")


class Apt:
    """apt for one suite and architecture, with its lists in a folder of its own."""

    def __init__(
        self, work: Path, suite: str, architecture: str | None = None, *, sources: bool = False
    ) -> None:
        self._folder = work / f"apt-{suite}-{architecture or 'native'}{'-sources' * sources}"
        self._environment = {**os.environ, "APT_CONFIG": str(self._folder / "apt.conf")}
        self._folder.mkdir(parents=True, exist_ok=True)
        with engine.locked(self._folder / "lock"):
            if not (self._folder / "ready").is_file():
                self._begin(f"{'deb-src' if sources else 'deb'} {mirror()} {suite} main", architecture)

    def _begin(self, source: str, architecture: str | None) -> None:
        for name in ("lists/partial", "cache/archives/partial"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        (self._folder / "sources.list").write_text(f"{source}\n")
        settings = {
            "Dir::Etc::sourcelist": self._folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State": self._folder,
            "Dir::State::status": self._folder / "status",
            "Dir::State::lists": self._folder / "lists",
            "Dir::Cache": self._folder / "cache",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        if architecture:
            settings |= {"APT::Architecture": architecture, "APT::Architectures": architecture}
        if os.geteuid() == 0:
            settings["APT::Sandbox::User"] = "root"
        lines = [f'{name} "{value}";\n' for name, value in settings.items()]
        (self._folder / "apt.conf").write_text("".join(lines))
        run("apt-get", "update", "-q", env=self._environment)
        (self._folder / "ready").touch()

    def unpack(self, packages: Iterable[str], destination: Path) -> None:
        """Unpack packages, following links of the destination (a sysroot's `lib` is one)."""
        destination.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            run("apt-get", "download", "-q", *packages, cwd=Path(scratch), env=self._environment)
            for package in sorted(Path(scratch).glob("*.deb")):
                archive = subprocess.Popen(
                    ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
                )
                with archive:
                    unpacked = subprocess.run(
                        ["tar", "-x", "-C", str(destination), "--keep-directory-symlink"],
                        stdin=archive.stdout,
                        check=False,
                    )
                if unpacked.returncode != 0 or archive.returncode != 0:
                    raise Unavailable(f"{package.name} cannot be unpacked")

    def source(self, package: str, destination: Path) -> None:
        """The source as its authors published it, without Debian's patches."""
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            run(
                "apt-get",
                "source",
                "-q",
                "--download-only",
                "--tar-only",
                package,
                cwd=Path(scratch),
                env=self._environment,
            )
            (archive,) = (path for path in Path(scratch).glob("*.orig.tar.*") if path.suffix != ".asc")
            destination.mkdir(parents=True, exist_ok=True)
            run("tar", "-x", "-C", destination, "--strip-components=1", "-f", archive)


@contextlib.contextmanager
def made_whole(folder: Path) -> Iterator[None]:
    """The folder is begun empty, and taken away if it does not get finished."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def relocate(program: Path, loader: Path, libraries: Path) -> None:
    """The program uses the C library that lies beside it, whatever the system's own is."""
    # A run path that extensions inherit, as the newer kind does not.
    run("patchelf", "--set-interpreter", loader, "--force-rpath", "--set-rpath", libraries, program)


def python(version: str, suite: str, folder: Path, work: Path) -> None:
    """CPython `version` of a Debian suite for this machine. The folder cannot be moved afterwards."""
    prefix = (f"python{version}", f"libpython{version}")
    packages = [
        *(f"{prefix[0]}{part}" for part in ("", "-minimal", "-dev", "-venv", "-dbg")),
        *(f"{prefix[1]}{part}" for part in ("", "-minimal", "-stdlib", "-dev", "-dbg")),
        "python3-pip-whl",
        "libgdbm6t64",
        *LIBRARIES,
    ]
    if tuple(map(int, version.split("."))) < (3, 15):
        packages.append("libdb5.3t64")
    with made_whole(folder):
        Apt(work, suite).unpack(packages, folder)
        usr = folder / "usr"
        (loader,) = usr.glob("lib/*/ld-linux*.so.*")
        for build in ("", "d"):
            relocate(usr / "bin" / f"python{version}{build}", loader, loader.parent)
            # The headers' own redirection to this file works in /usr only.
            header = usr / "include" / f"python{version}{build}" / "pyconfig.h"
            header.unlink()
            header.symlink_to(Path("..") / loader.parent.name / f"python{version}{build}" / "pyconfig.h")
        for facts in usr.glob(f"lib/python{version}/_sysconfigdata*.py"):
            if not facts.is_symlink():
                facts.write_text(re.sub(r"/usr/(lib|include|share|bin)\b", rf"{usr}/\1", facts.read_text()))
        for mark in usr.glob("lib/**/EXTERNALLY-MANAGED"):
            mark.unlink()
        shutil.rmtree(usr / "lib" / "debug", ignore_errors=True)
        print(run(usr / "bin" / f"python{version}", "-VV").strip())


def freethreaded(folder: Path, work: Path, flags: list[str]) -> None:
    """A free-threaded CPython 3.13. Compiled without profiles: fit for tests, never for measurements."""
    configuration = (
        "--disable-gil",
        "--without-ensurepip",
        "--disable-test-modules",
        "--without-static-libpython",
    )
    with made_whole(folder), tempfile.TemporaryDirectory() as scratch:
        source, build = Path(scratch, "source"), Path(scratch, "build")
        # Debian's patches would have it ignore its own site-packages.
        Apt(work, "trixie", sources=True).source("python3.13", source)
        build.mkdir()
        run(source / "configure", "-q", f"--prefix={folder}", *configuration, *flags, cwd=build)
        run("make", "-s", f"-j{os.cpu_count()}", cwd=build)
        run("make", "-s", "install", cwd=build)
        print(run(folder / "bin" / "python3.13t", "-VV").strip())


def testsuite(version: str, suite: str, folder: Path, work: Path) -> None:
    with made_whole(folder), tempfile.TemporaryDirectory() as scratch:
        Apt(work, suite).unpack([f"libpython{version}-testsuite"], Path(scratch))
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(scratch, "usr", "lib", f"python{version}", "test"), folder)


def main() -> int:
    work = engine.CACHE_ROOT / "debian"
    match sys.argv[1:]:
        case ["python", version, suite, folder]:
            python(version, suite, Path(folder).resolve(), work)
        case ["freethreaded", folder, *flags]:
            freethreaded(Path(folder).resolve(), work, flags)
        case ["testsuite", version, suite, folder]:
            testsuite(version, suite, Path(folder).resolve(), work)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unavailable as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
