"""Make a release's files and check them: scripts/release runs this, RELEASING.md tells what it is for.

    python build_tools/release.py DIST [--only-run] [--python PATH]... [--for TAG]... [--target TRIPLE]...

--only-run makes nothing, and runs the wheels of DIST that this machine can run; --for and --target choose
wheels other than all. Every step reads only what the step before has left in DIST.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import engine
import platforms
from debian import Unavailable

INTERPRETERS = ("310", "311", "312", "313", "313t", "314", "314t", "315", "315t")
TARGETS = (
    "x86_64-linux-gnu.2.17",
    "aarch64-linux-gnu.2.17",
    "arm-linux-gnueabihf.2.17",
    "riscv64-linux-gnu.2.31",
    "x86_64-linux-musl",
    "aarch64-linux-musl",
    "x86_64-macos.11.0",
    "aarch64-macos.11.0",
)
SMOKE = Path(__file__).with_name("smoke.py")


class Failure(Exception):
    """The release is not fit; the message says why."""


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def tool(name: str) -> Path:
    """A program of this interpreter's environment."""
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise Failure(f"{name} is not installed beside {sys.executable}")
    return path


def side_by_side(work: Callable[..., object], rows: Iterable[tuple[object, ...]]) -> None:
    """Call `work` with each row, on every processor; the first failure is raised when all have ended."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for call in [pool.submit(work, *row) for row in rows]:
            call.result()


def commit_time() -> str:
    """Seconds since 1970 that the files in the archives get: the same whenever they are built."""
    return run("git", "log", "-1", "--format=%ct", cwd=engine.ROOT).strip()


def environment(tag: str, target: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ZLOOP_") or name == "ZLOOP_ZIG"
    }
    return {**kept, "ZLOOP_FOR": tag, "ZLOOP_TARGET": target, "ZLOOP_PATCHELF": str(tool("patchelf"))}


def build_wheel(source: Path, dist: Path, tag: str, target: str) -> None:
    command = (sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", dist)
    run(*command, cwd=source, env=environment(tag, target))


def is_supported(tag: str, target: str) -> bool:
    return not (tag.endswith("t") and engine.targets.parse(target).is_32_bit)


def compare_with_another_build(dist: Path, rows: list[tuple[str, str]]) -> None:
    """Built again from the source distribution, in another folder and without a cache, wheels are the same.

    Enough of them to have each system and each interpreter at least once.
    """
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder, "dist")
        (sdist,) = dist.glob("*.tar.gz")
        with tarfile.open(sdist) as tar:
            tar.extractall(folder, filter="data")
        (source,) = (path for path in Path(folder).iterdir() if path.is_dir())
        chosen: list[tuple[str, str]] = []
        for tag, target in rows:
            known = {name for row in chosen for name in row}
            is_last = (tag, target) == [row for row in rows if row[0] == tag][-1]
            if target not in known or (tag not in known and is_last):
                chosen.append((tag, target))
        side_by_side(build_wheel, ((source, again, *row) for row in chosen))
        wheels = sorted(again.glob("*.whl"))
        for wheel in wheels:
            if wheel.read_bytes() != (dist / wheel.name).read_bytes():
                raise Failure(f"{wheel.name} is not reproducible: {differences(wheel, dist / wheel.name)}")
    print(f"{len(wheels)} wheels are the same when they are built again")


def differences(one: Path, other: Path) -> str:
    with zipfile.ZipFile(one) as left, zipfile.ZipFile(other) as right:
        names = {*left.namelist(), *right.namelist()}
        return ", ".join(sorted(name for name in names if content(left, name) != content(right, name)))


def content(archive: zipfile.ZipFile, name: str) -> bytes | None:
    with contextlib.suppress(KeyError):
        return archive.read(name)
    return None


def check(dist: Path) -> None:
    files = sorted([*dist.glob("*.whl"), *dist.glob("*.tar.gz")])
    run(tool("twine"), "check", "--strict", *files)
    wheels = [path for path in files if path.suffix == ".whl"]
    run(tool("check-wheel-contents"), *wheels)
    side_by_side(audit, ((wheel,) for wheel in wheels if "linux" in wheel.name))
    print(f"{len(files)} files are what twine, check-wheel-contents and auditwheel ask for")


def audit(wheel: Path) -> None:
    """auditwheel finds the same system, or an older one, as the wheel's name promises."""
    said = " ".join(run(tool("auditwheel"), "show", wheel).split())
    promised = wheel.stem.rpartition("-")[2]
    found = re.search(r'consistent with the following platform tag: "([^"]+)"', said)
    if found is None or not covers(found[1], promised):
        raise Failure(f"{wheel.name}: auditwheel says {said}")


def covers(found: str, promised: str) -> bool:
    pattern = r"(manylinux|musllinux)_(\d+)_(\d+)_(\w+)"
    one, other = re.fullmatch(pattern, found), re.fullmatch(pattern, promised)
    if one is None or other is None:
        return False
    same = (one[1], one[4]) == (other[1], other[4])
    return same and (int(one[2]), int(one[3])) <= (int(other[2]), int(other[3]))


def run_wheels(dist: Path, pythons: list[str]) -> None:
    """Every wheel that can be run here, is."""
    left = {wheel.name: wheel for wheel in sorted(dist.glob("*.whl"))}
    for python in pythons:
        for name in run_by_pip(python, list(left.values())):
            left.pop(name)
    for name, foreign in platforms.PLATFORMS.items():
        machine = foreign.triple.partition("-")[0]
        libc = "musllinux" if "musl" in foreign.triple else "manylinux"
        tag = f"-cp{platforms.TAG}-{libc}_"
        for wheel in list(left.values()):
            if machine and tag in wheel.name and wheel.stem.endswith(f"_{engine.targets.MACHINES[machine]}"):
                try:
                    run_foreign(name, foreign, wheel)
                except Unavailable as error:
                    print(f"WARNING: {wheel.name} IS NOT RUN: {error}")
                left.pop(wheel.name)
    print(f"{len(left)} wheels cannot be run here")


def run_by_pip(python: str, wheels: list[Path]) -> list[str]:
    """Install in a new environment each of the wheels that this interpreter takes; their names."""
    ran = []
    with tempfile.TemporaryDirectory() as folder:
        run(python, "-m", "venv", folder)
        inside = Path(folder, "bin", "python")
        pip = (inside, "-W", "ignore", "-m", "pip", "--disable-pip-version-check")
        tags = set(run(*pip, "debug", "--verbose").split())
        for wheel in wheels:
            if "-".join(wheel.stem.split("-")[2:]) in tags:
                run(*pip, "install", "-q", "--no-index", "--force-reinstall", wheel)
                print(f"{wheel.name}: {run(inside, '-I', SMOKE).strip()}")
                ran.append(wheel.name)
    return ran


def run_foreign(name: str, foreign: platforms.Foreign, wheel: Path) -> None:
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise Unavailable("this is not Linux on x86_64")
    platforms.WORK.mkdir(parents=True, exist_ok=True)
    with engine.locked(platforms.WORK / f"{name}.lock"), tempfile.TemporaryDirectory() as folder:
        interpreter = platforms.interpreter_for(name, foreign)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        variables = {**os.environ, **interpreter.environment, "PYTHONPATH": folder}
        print(f"{wheel.name}: {run(*interpreter.command, SMOKE, env=variables).strip()}")


def write_lists(dist: Path) -> None:
    """SHA256SUMS, and the parts of the release in the CycloneDX format."""
    for made in (*dist.glob("*.cdx.json"), *dist.glob("SHA256SUMS")):
        made.unlink()
    files = sorted([*dist.glob("*.whl"), *dist.glob("*.tar.gz")])
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
    (dist / "SHA256SUMS").write_text("".join(lines))
    version = files[0].name.split("-")[1]
    zig = re.search(r"ziglang==(\S+)", Path(__file__).with_name("release-requirements.txt").read_text())
    assert zig is not None
    listing = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, ''.join(lines))}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": "zloop",
                "name": "zloop",
                "version": version,
                "purl": f"pkg:pypi/zloop@{version}",
                "licenses": [{"license": {"id": "MIT"}}],
            }
        },
        "components": [
            # What a library contains beside zloop's own source: pieces of Zig's standard library and of its
            # run-time support.
            {
                "type": "library",
                "bom-ref": "zig",
                "name": "zig",
                "version": zig[1],
                "purl": f"pkg:pypi/ziglang@{zig[1]}",
                "licenses": [{"license": {"id": "MIT"}}],
            },
            *(
                {
                    "type": "file",
                    "bom-ref": name,
                    "name": name,
                    "hashes": [{"alg": "SHA-256", "content": digest}],
                }
                for name, digest in sums.items()
            ),
        ],
        "dependencies": [{"ref": "zloop", "dependsOn": ["zig"]}, {"ref": "zig", "dependsOn": []}],
    }
    (dist / f"zloop-{version}.cdx.json").write_text(json.dumps(listing, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dist", type=Path)
    parser.add_argument("--only-run", action="store_true")
    parser.add_argument("--python", action="append", default=[], help="an interpreter to run wheels with")
    parser.add_argument("--for", dest="tags", action="append", choices=INTERPRETERS)
    parser.add_argument("--target", dest="targets", action="append", choices=TARGETS)
    options = parser.parse_args()
    dist = options.dist.resolve()
    if not options.only_run:
        os.environ["SOURCE_DATE_EPOCH"] = commit_time()
        tags, targets = options.tags or list(INTERPRETERS), options.targets or list(TARGETS)
        shutil.rmtree(dist, ignore_errors=True)
        command = (sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", dist)
        run(*command, cwd=engine.ROOT)
        rows = [(tag, target) for tag in tags for target in targets if is_supported(tag, target)]
        side_by_side(build_wheel, ((engine.ROOT, dist, *row) for row in rows))
        made = list(dist.glob("*.whl"))
        print(f"{len(made)} wheels, {sum(wheel.stat().st_size for wheel in made) / 1e6:.1f} MB")
        compare_with_another_build(dist, rows)
        check(dist)
        write_lists(dist)
    run_wheels(dist, options.python)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failure, engine.BuildError) as error:
        sys.exit(f"release: {error}")
