"""Facts about the machine and interpreter that a number is meaningless without. No host names."""

from __future__ import annotations

import os
import platform
import ssl
import sys
import sysconfig


def facts() -> dict[str, object]:
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {kernel_release()}",
        "architecture": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "python": platform.python_version(),
        "python_compiler": platform.python_compiler(),
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "openssl": ssl.OPENSSL_VERSION,
    }


def cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def load() -> float:
    """Processes that wanted to run over the last minute, this benchmark's own (two at most) among them."""
    return os.getloadavg()[0]


def kernel_release() -> str:
    """Version numbers only: what follows them may name the machine's maker or owner."""
    return platform.release().partition("-")[0]


def summary(stored: dict[str, object]) -> str:
    return f"{stored['cpu']}, {stored['cores']} cores, {stored['kernel']}, CPython {stored['python']}"


def python_tag() -> str:
    suffix = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    return f"{sys.version_info.major}.{sys.version_info.minor}{suffix}"
