"""From a Zig target triple to the names Python packaging uses: library suffix and wheel platform tag.

Only the names are decided here; nothing is compiled and no compiler needs to be installed.
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from dataclasses import dataclass

# The oldest system a library is linked for when the triple names no version. glibc 2.17 is what
# manylinux2014 promises; riscv64 entered glibc with 2.27. Newer kernel calls are raw system calls, so they
# need no newer libc.
GLIBC_VERSION_DEFAULT = "2.17"
GLIBC_VERSION_RISCV64 = "2.27"
MACOS_VERSION_DEFAULT = "11.0"
BSD_VERSION_DEFAULT = {"freebsd": "14.0", "netbsd": "10.1", "openbsd": "7.8"}

# Zig's name of a machine and its name in Linux wheel tags. The engine's C-API declarations are written for
# 64-bit pointers and `long`, so 32-bit machines are refused rather than miscompiled.
MACHINES = {"x86_64": "x86_64", "aarch64": "aarch64", "riscv64": "riscv64", "powerpc64le": "ppc64le"}
HOST_MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "ppc64le": "powerpc64le"}


class TargetError(Exception):
    """A target that cannot be built for; the message says why."""


@dataclass(frozen=True)
class Target:
    """One system to build for: `triple` goes to Zig, the rest names the results."""

    triple: str
    library_suffix: str
    platform_tag: str

    @property
    def is_macos(self) -> bool:
        return self.platform_tag.startswith("macosx")


def interpreter_tag() -> str:
    """`313`, `313t`, `314d`: version and ABI flags as library suffixes and wheel tags spell them."""
    return f"{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"


def parse(triple: str) -> Target:
    """The target that `machine-system[-abi][.version]` names, with versions filled in."""
    machine, _, rest = triple.partition("-")
    system, _, version = rest.partition(".")
    if machine not in MACHINES:
        raise TargetError(
            f"machine {machine!r} of target {triple!r} is not one of {', '.join(sorted(MACHINES))}"
        )
    multiarch = f"cpython-{interpreter_tag()}-{machine}"
    if system == "linux-gnu":
        version = version or (GLIBC_VERSION_RISCV64 if machine == "riscv64" else GLIBC_VERSION_DEFAULT)
        return Target(
            triple=f"{machine}-linux-gnu.{version}",
            library_suffix=f".{multiarch}-linux-gnu.so",
            platform_tag=f"manylinux_{_underscored(version)}_{MACHINES[machine]}",
        )
    if system == "linux-musl":
        return Target(
            triple=f"{machine}-linux-musl",
            library_suffix=f".{multiarch}-linux-musl.so",
            platform_tag=f"musllinux_1_2_{MACHINES[machine]}",
        )
    if system == "macos":
        version = version or MACOS_VERSION_DEFAULT
        apple_machine = "arm64" if machine == "aarch64" else machine
        return Target(
            triple=f"{machine}-macos.{version}",
            library_suffix=f".cpython-{interpreter_tag()}-darwin.so",
            platform_tag=f"macosx_{_underscored(version)}_{apple_machine}",
        )
    if system in BSD_VERSION_DEFAULT:
        version = version or BSD_VERSION_DEFAULT[system]
        release = "_release" if system == "freebsd" else ""
        bsd_machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
        return Target(
            triple=f"{machine}-{system}.{version}",
            # The BSDs disagree about the multiarch part; every CPython also loads a plain `.so`.
            library_suffix=".so",
            platform_tag=f"{system}_{_underscored(version)}{release}_{bsd_machine}",
        )
    raise TargetError(
        f"target {triple!r} is not supported: "
        "use MACHINE-linux-gnu[.2.17], linux-musl, macos[.11.0], freebsd[.14.0], netbsd or openbsd"
    )


def host() -> Target:
    """The target of the running interpreter.

    On Linux and macOS the triple is explicit rather than Zig's `native`: the result then depends neither on
    the host's libc version nor on installed headers or an SDK.
    """
    machine = platform.machine().lower()
    machine = HOST_MACHINES.get(machine, machine)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    if sys.maxsize < 2**32:
        raise TargetError("a 32-bit interpreter cannot load the engine; a 64-bit one is needed")
    if sys.platform == "linux":
        libc = "musl" if _host_is_musl(suffix) else "gnu"
        triple = parse(f"{machine}-linux-{libc}").triple
    elif sys.platform == "darwin":
        triple = parse(f"{machine}-macos").triple
    elif any(sys.platform.startswith(system) for system in BSD_VERSION_DEFAULT):
        triple = "native"
    else:
        raise TargetError(
            f"there is no engine for {sys.platform}; Linux, macOS, FreeBSD, NetBSD and OpenBSD have one"
        )
    return Target(triple=triple, library_suffix=suffix, platform_tag=tag)


def _host_is_musl(suffix: str) -> bool:
    if "musl" in suffix or "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or ""):
        return True
    # An interpreter built without multiarch says nothing in its names; glibc alone answers this question.
    try:
        return not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return True


def _underscored(version: str) -> str:
    return "_".join(version.split(".")[:2])
