"""What a build makes: the names of libraries and wheels for each system, and when the compiler runs."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parent.parent / "build_tools" / "target.py"
TAG = f"{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}"


@pytest.fixture(scope="module")
def targets():
    spec = importlib.util.spec_from_file_location("zloop_build_target", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("asked", "triple", "suffix", "platform"),
    [
        ("x86_64-linux-gnu", "x86_64-linux-gnu.2.17", "-x86_64-linux-gnu.so", "manylinux_2_17_x86_64"),
        (
            "aarch64-linux-gnu.2.28",
            "aarch64-linux-gnu.2.28",
            "-aarch64-linux-gnu.so",
            "manylinux_2_28_aarch64",
        ),
        ("riscv64-linux-gnu", "riscv64-linux-gnu.2.27", "-riscv64-linux-gnu.so", "manylinux_2_27_riscv64"),
        ("aarch64-linux-musl", "aarch64-linux-musl", "-aarch64-linux-musl.so", "musllinux_1_2_aarch64"),
        (
            "arm-linux-gnueabihf",
            "arm-linux-gnueabihf.2.17",
            "-arm-linux-gnueabihf.so",
            "manylinux_2_17_armv7l",
        ),
        ("arm-linux-musleabihf", "arm-linux-musleabihf", "-arm-linux-musleabihf.so", "musllinux_1_2_armv7l"),
        ("x86-linux-gnu", "x86-linux-gnu.2.17", "-i386-linux-gnu.so", "manylinux_2_17_i686"),
        ("s390x-linux-gnu", "s390x-linux-gnu.2.17", "-s390x-linux-gnu.so", "manylinux_2_17_s390x"),
        (
            "powerpc64le-linux-gnu",
            "powerpc64le-linux-gnu.2.19",
            "-powerpc64le-linux-gnu.so",
            "manylinux_2_19_ppc64le",
        ),
        ("x86_64-macos", "x86_64-macos.11.0", "-darwin.so", "macosx_11_0_x86_64"),
        ("aarch64-macos.13.0", "aarch64-macos.13.0", "-darwin.so", "macosx_13_0_arm64"),
    ],
)
def test_names_of_a_target(targets, asked, triple, suffix, platform):
    target = targets.parse(asked)
    assert (target.triple, target.platform_tag) == (triple, platform)
    assert target.library_suffix == f".cpython-{TAG}{suffix}"


def test_a_bsd_library_has_the_suffix_every_python_loads(targets):
    target = targets.parse("x86_64-freebsd.14.0")
    assert (target.library_suffix, target.platform_tag) == (".so", "freebsd_14_0_release_amd64")


@pytest.mark.parametrize(
    "triple",
    [
        "i386-linux-gnu",
        "arm-linux-gnu",
        "arm-macos",
        "x86-freebsd",
        "x86_64-windows-gnu",
        "x86_64-linux",
        "nonsense",
    ],
)
def test_what_cannot_be_built_is_refused_with_its_name(targets, triple):
    with pytest.raises(targets.TargetError, match=triple):
        targets.parse(triple)


def test_another_interpreter_can_be_named(targets, monkeypatch):
    monkeypatch.setenv("ZLOOP_FOR", "314t")
    assert targets.parse("aarch64-macos").library_suffix == ".cpython-314t-darwin.so"
    for nonsense in ("3.14", "27", "314x"):
        monkeypatch.setenv("ZLOOP_FOR", nonsense)
        with pytest.raises(targets.TargetError, match=nonsense):
            targets.parse("aarch64-macos")


@pytest.mark.parametrize(
    ("machine", "triple"), [("x86_64", "x86-linux-gnu"), ("i686", "x86-linux-gnu"), ("aarch64", "arm-linux-")]
)
def test_a_32_bit_interpreter_on_a_64_bit_kernel_gets_a_32_bit_library(targets, monkeypatch, machine, triple):
    monkeypatch.setattr(targets.sys, "maxsize", 2**31 - 1)
    monkeypatch.setattr(targets.sys, "platform", "linux")
    monkeypatch.setattr(targets.platform, "machine", lambda: machine)
    monkeypatch.setattr(targets, "_host_is_musl", lambda suffix: False)
    assert targets.host().triple.startswith(triple)
    monkeypatch.setattr(targets.platform, "machine", lambda: "armv6l")
    with pytest.raises(targets.TargetError, match="armv6l"):
        targets.host()


def test_the_running_interpreter_loads_what_is_built_for_it(targets):
    assert targets.host().library_suffix == sysconfig.get_config_var("EXT_SUFFIX")


FAKE_ZIG = """#!/bin/sh
[ "$1" = version ] && exec echo 0.17.1
echo built >> "$LOG"
for word; do case $word in -femit-bin=*) echo library > "${word#-femit-bin=}" ;; esac; done
"""


@pytest.fixture
def engine(monkeypatch, tmp_path):
    """build_tools/engine.py over a source tree of two files and a compiler that only counts its calls."""
    monkeypatch.syspath_prepend(str(SOURCE.parent))
    spec = importlib.util.spec_from_file_location("zloop_build_engine", SOURCE.parent / "engine.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    for name in ("cpython/module.zig", "core/root.zig"):
        (tmp_path / "src" / name).parent.mkdir(parents=True)
        (tmp_path / "src" / name).write_text("//! source\n")
    zig = tmp_path / "zig"
    zig.write_text(FAKE_ZIG)
    zig.chmod(0o755)
    monkeypatch.setattr(module, "SOURCE_ROOT", tmp_path / "src")
    monkeypatch.setattr(module, "CACHE_ROOT", tmp_path / "cache")
    monkeypatch.setenv("ZLOOP_ZIG", str(zig))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    for name in ("ZLOOP_BUILD_MODE", "ZLOOP_SYMBOLS", "ZLOOP_TARGET", "ZLOOP_FOR", "ZLOOP_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_a_library_is_compiled_again_only_when_something_has_changed(engine, tmp_path):
    def builds(**options: Any) -> int:
        library = engine.build(engine.Options(**options))
        assert library.path.read_text() == "library\n"
        return len((tmp_path / "log").read_text().split())

    assert builds() == 1
    assert builds() == 1
    (tmp_path / "src" / "core" / "root.zig").write_text("//! sourcf\n")
    assert builds() == 2
    assert builds(mode="safe") == 3
    assert builds(target="aarch64-linux-gnu") == 4
    assert builds() == 4
    (tmp_path / "src" / "core" / "new.zig").write_text("//! more\n")
    assert builds() == 5
    zig = tmp_path / "zig"
    zig.write_text(FAKE_ZIG.replace("0.17.1", "0.17.2"))
    assert builds() == 6


def test_options_that_contradict_each_other_are_refused(engine, monkeypatch):
    monkeypatch.setenv("ZLOOP_FOR", "314t")
    with pytest.raises(engine.BuildError, match="ZLOOP_TARGET"):
        engine.Options.from_environment()
    monkeypatch.setenv("ZLOOP_TARGET", "arm-linux-gnueabihf")
    with pytest.raises(engine.BuildError, match="free-threaded"):
        engine.build(engine.Options.from_environment())
    monkeypatch.setenv("ZLOOP_TARGET", "aarch64-macos")
    monkeypatch.setenv("ZLOOP_BACKEND", "kqueue-emulated")
    with pytest.raises(engine.BuildError, match="kqueue-emulated"):
        engine.build(engine.Options.from_environment())
    monkeypatch.setenv("ZLOOP_BACKEND", "uring")
    with pytest.raises(engine.BuildError, match="uring"):
        engine.Options.from_environment()
