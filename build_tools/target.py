"""From a Zig target triple to the names Python packaging uses: library suffix and wheel platform tag.

Only the names are decided here; nothing is compiled and no compiler needs to be installed.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import sysconfig
from dataclasses import dataclass

# The oldest system a library is linked for when the triple names no version. glibc 2.17 is what
# manylinux2014 promises; some machines entered glibc later. Newer kernel calls are raw system calls, so they
# need no newer libc.
GLIBC_VERSION_DEFAULT = "2.17"
GLIBC_VERSION_FIRST = {"riscv64": "2.27", "powerpc64le": "2.19"}
MACOS_VERSION_DEFAULT = "11.0"
BSD_VERSION_DEFAULT = {"freebsd": "14.0", "netbsd": "10.1", "openbsd": "7.8"}

# Zig's name of a machine and its name in Linux wheel tags.
MACHINES = {
    "x86_64": "x86_64",
    "aarch64": "aarch64",
    "arm": "armv7l",
    "riscv64": "riscv64",
    "powerpc64le": "ppc64le",
    "s390x": "s390x",
    "x86": "i686",
}
HOST_MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "ppc64le": "powerpc64le"}
# What a 32-bit interpreter runs on; a 64-bit kernel names the machine as a 64-bit one. ARMv6 is missing: the
# library is compiled for ARMv7.
HOST_MACHINES_32 = {
    **dict.fromkeys(("x86_64", "i386", "i486", "i586", "i686", "x86"), "x86"),
    **dict.fromkeys(("aarch64", "armv7l", "armv8l"), "arm"),
}
# CPython's name of a machine in library suffixes, where it is not Zig's.
MULTIARCH_MACHINES = {"x86": "i386"}
# Where the C library has two: floating-point numbers are passed in registers.
GNU_ABI = {"arm": "gnueabihf"}
MUSL_ABI = {"arm": "musleabihf"}


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

    @property
    def is_32_bit(self) -> bool:
        return self.triple.partition("-")[0] in HOST_MACHINES_32.values()

    @property
    def is_musl(self) -> bool:
        return "-linux-musl" in self.triple


def interpreter_tag() -> str:
    """`313`, `313t`, `314d`: version and ABI flags as library suffixes and wheel tags spell them.

    Those of the interpreter that ZLOOP_FOR names, or of the running one.
    """
    tag = os.environ.get("ZLOOP_FOR")
    if not tag:
        return f"{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    if not re.fullmatch("3[1-9][0-9]t?d?", tag):
        raise TargetError(f"ZLOOP_FOR is {tag!r}; it names a CPython as 310, 313t or 314d do")
    return tag


def parse(triple: str) -> Target:
    """The target that `machine-system[-abi][.version]` names, with versions filled in."""
    machine, _, rest = triple.partition("-")
    system, _, version = rest.partition(".")
    if machine not in MACHINES:
        raise TargetError(
            f"machine {machine!r} of target {triple!r} is not one of {', '.join(sorted(MACHINES))}"
        )
    multiarch = f"cpython-{interpreter_tag()}-{MULTIARCH_MACHINES.get(machine, machine)}"
    gnu, musl = GNU_ABI.get(machine, "gnu"), MUSL_ABI.get(machine, "musl")
    if system == f"linux-{gnu}":
        version = version or GLIBC_VERSION_FIRST.get(machine, GLIBC_VERSION_DEFAULT)
        return Target(
            triple=f"{machine}-linux-{gnu}.{version}",
            library_suffix=f".{multiarch}-linux-{gnu}.so",
            platform_tag=f"manylinux_{_underscored(version)}_{MACHINES[machine]}",
        )
    if system == f"linux-{musl}":
        return Target(
            triple=f"{machine}-linux-{musl}",
            library_suffix=f".{multiarch}-linux-{musl}.so",
            platform_tag=f"musllinux_1_2_{MACHINES[machine]}",
        )
    # The other systems have no CPython for a 32-bit machine.
    is_64_bit = machine not in HOST_MACHINES_32.values()
    if system == "macos" and is_64_bit:
        version = version or MACOS_VERSION_DEFAULT
        apple_machine = "arm64" if machine == "aarch64" else machine
        return Target(
            triple=f"{machine}-macos.{version}",
            library_suffix=f".cpython-{interpreter_tag()}-darwin.so",
            platform_tag=f"macosx_{_underscored(version)}_{apple_machine}",
        )
    if system in BSD_VERSION_DEFAULT and is_64_bit:
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
        f"use {machine}-linux-{gnu}[.2.17], {machine}-linux-{musl}, or for 64-bit machines "
        "macos[.11.0], freebsd[.14.0], netbsd or openbsd"
    )


def host() -> Target:
    """The target of the running interpreter.

    On Linux and macOS the triple is explicit rather than Zig's `native`: the result then depends neither on
    the host's libc version nor on installed headers or an SDK.
    """
    machine = platform.machine().lower()
    if sys.maxsize < 2**32:
        if machine not in HOST_MACHINES_32:
            raise TargetError(f"there is no engine for a 32-bit interpreter on {machine}")
        machine = HOST_MACHINES_32[machine]
    machine = HOST_MACHINES.get(machine, machine)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    if sys.platform == "linux":
        libc = MUSL_ABI.get(machine, "musl") if _host_is_musl(suffix) else GNU_ABI.get(machine, "gnu")
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
