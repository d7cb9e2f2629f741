"""Give the tests a `localhost` that has both addresses, on a system whose hosts file knows only one.

Tests of dual-stack servers, Happy Eyeballs and IPv6 take it for granted that `localhost` is `::1`, too. Where
it is not, as in many containers, they fail on every loop, and what they leave open disturbs later tests. With
the right to do so, each module therefore runs in a mount namespace of its own, in which a better hosts file
lies over the system's; nothing changes for any other process.
"""

from __future__ import annotations

import functools
import socket
import subprocess
from pathlib import Path

from harness import cache

HOSTS = Path("/etc/hosts")
_SCRIPT = 'mount --bind "$0" /etc/hosts && exec "$@"'


@functools.cache
def command_prefix() -> tuple[str, ...]:
    """What to put before a command; empty where `localhost` is complete or where it cannot be completed."""
    if _resolves_to_ipv6() or not _has_ipv6():
        return ()
    path = cache.root() / "hosts"
    text = "127.0.0.1 localhost\n::1 localhost\n" + HOSTS.read_text()
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    prefix = ("unshare", "--mount", "sh", "-c", _SCRIPT, str(path))
    try:
        # The process replaces itself twice and keeps its id, so it can be watched like any other.
        allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    return prefix if allowed else ()


def _resolves_to_ipv6() -> bool:
    try:
        return bool(socket.getaddrinfo("localhost", None, socket.AF_INET6))
    except OSError:
        return False


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
