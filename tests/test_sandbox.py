"""Programs in a sandbox, or on an old kernel, where a system call that zloop would like to make is refused.

Each case is a process with a filter of system calls (seccomp) that answers the named ones with an error, as
container runtimes do. The program then uses each feature of a loop once.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import platform
import struct
import sys
from pathlib import Path

import pytest
from harness import run_python

#: The numbers of the calls, by machine.
NUMBERS = {
    "x86_64": {
        "accept4": 288,
        "close_range": 436,
        "epoll_create1": 291,
        "epoll_pwait2": 441,
        "eventfd2": 290,
        "pidfd_open": 434,
        "recvmmsg": 299,
        "sendfile": 40,
        "signalfd4": 289,
        "statx": 332,
        "timerfd_create": 283,
    },
    "aarch64": {
        "accept4": 242,
        "close_range": 436,
        "epoll_create1": 20,
        "epoll_pwait2": 441,
        "eventfd2": 19,
        "pidfd_open": 434,
        "recvmmsg": 243,
        "sendfile": 71,
        "signalfd4": 74,
        "statx": 291,
        "timerfd_create": 85,
    },
}.get(platform.machine() if sys.maxsize > 2**32 else "", {})
#: The kernel's word for the machine whose numbers these are.
AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38

FEATURES = Path(__file__).with_name("sandboxed.py")


def program(calls: list[str], error: int) -> bytes:
    """The filter: on this machine the calls fail with the error, all else is allowed."""

    def word(code: int, constant: int, when_true: int = 0, when_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, when_true, when_false, constant)

    words = [
        word(LOAD_WORD, 4),
        word(JUMP_IF_EQUAL, AUDIT_ARCHITECTURE[platform.machine()], 1),
        word(RETURN, ALLOW),
    ]
    words.append(word(LOAD_WORD, 0))
    for call in calls:
        words += [word(JUMP_IF_EQUAL, NUMBERS[call], 0, 1), word(RETURN, FAIL | error)]
    return b"".join([*words, word(RETURN, ALLOW)])


def refuse(calls: list[str], error: int) -> None:
    """From now on these calls fail in this process and its children. OSError: there is no such filter."""
    code = program(calls, error)
    kept = ctypes.create_string_buffer(code)

    class Filter(ctypes.Structure):
        _fields_ = (("count", ctypes.c_ushort), ("words", ctypes.c_void_p))

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    filter_ = Filter(len(code) // 8, ctypes.addressof(kept))
    privileges = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if privileges or prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter_), 0, 0):
        raise OSError(ctypes.get_errno(), "no filter of system calls")


def sandboxed(calls: str, error: int, loop_name: str) -> str:
    if loop_name.startswith("zloop") and importlib.import_module("zloop._engine").backend != "epoll":
        pytest.skip("about the calls that the engine makes on Linux")
    if not NUMBERS:
        pytest.skip("the numbers of this machine's system calls are not known here")
    done = run_python(FEATURES, calls, error, loop_name)
    if done.returncode == 77:
        pytest.skip(f"this system has no filter of system calls: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.only_zloop("asyncio takes some of these refusals for errors")
@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM], ids=["missing", "forbidden"])
@pytest.mark.parametrize(
    "calls",
    [
        "epoll_pwait2",
        "pidfd_open",
        "recvmmsg",
        "accept4",
        "eventfd2",
        "close_range",
        "timerfd_create,signalfd4",
        "epoll_pwait2,pidfd_open,recvmmsg,accept4,eventfd2,close_range,timerfd_create,signalfd4",
    ],
)
def test_every_feature_without_a_call(loop_name, calls, error):
    if error == errno.EPERM and "close_range" in calls and "," not in calls:
        pytest.skip("CPython takes the refusal for an error")
    assert sandboxed(calls, error, loop_name).splitlines()[-1] == "12 features"


def test_every_feature_without_a_filter(loop_name):
    assert sandboxed("", errno.ENOSYS, loop_name).splitlines()[-1] == "12 features"


@pytest.mark.only_zloop("asyncio's message is CPython's")
@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EACCES])
def test_a_refusal_that_nothing_can_replace_is_named(loop_name, error):
    said = sandboxed("epoll_create1", error, loop_name)
    assert f"[Errno {error}] event loop: epoll_create1: {os.strerror(error)}" in said.splitlines()
