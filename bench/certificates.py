"""A throw-away self-signed certificate for TLS on loopback, made once by the openssl command."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from bench.paths import CACHE


class Certificate(NamedTuple):
    chain: Path
    key: Path


def certificate() -> Certificate:
    folder = CACHE / "tls"
    pair = Certificate(folder / "chain.pem", folder / "key.pem")
    if pair.chain.exists() and pair.key.exists():
        return pair
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = Certificate(*(path.with_suffix(f".{os.getpid()}") for path in pair))
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "3650", "-subj", "/CN=localhost"]
    command += ["-keyout", str(unfinished.key), "-out", str(unfinished.chain)]
    subprocess.run(command, check=True, capture_output=True)
    for made, wanted in zip(unfinished, pair, strict=True):
        made.rename(wanted)
    return pair
