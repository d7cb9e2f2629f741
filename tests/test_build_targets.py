"""The names of libraries and wheels for each system a build can be made for."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path

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


@pytest.mark.parametrize("triple", ["i386-linux-gnu", "x86_64-windows-gnu", "x86_64-linux", "nonsense"])
def test_what_cannot_be_built_is_refused_with_its_name(targets, triple):
    with pytest.raises(targets.TargetError, match=triple):
        targets.parse(triple)


def test_the_running_interpreter_loads_what_is_built_for_it(targets):
    assert targets.host().library_suffix == sysconfig.get_config_var("EXT_SUFFIX")
