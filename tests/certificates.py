"""A throw-away authority and a certificate for localhost, by trustme or, without it, the openssl command.

trustme needs the package cryptography, which has no wheels for debug and free-threaded builds of Python.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("DNS:localhost", "IP:127.0.0.1", "IP:::1")


def make(folder: Path) -> tuple[str, str]:
    """The paths of localhost.pem (key and certificate) and authority.pem, made in *folder*."""
    if importlib.util.find_spec("trustme") is not None:
        _by_trustme(folder)
    elif shutil.which("openssl") is not None:
        _by_openssl(folder)
    else:
        pytest.skip("neither trustme nor the openssl command is here to make certificates")
    return str(folder / "localhost.pem"), str(folder / "authority.pem")


def _by_trustme(folder: Path) -> None:
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert(*(name.partition(":")[2] for name in NAMES))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "localhost.pem"))
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))


# In a file rather than by -addext, which older versions and LibreSSL lack.
CONFIGURATION = f"""
[req]
distinguished_name = name
prompt = no
[name]
organizationName = zloop tests
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[localhost]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {",".join(NAMES)}
"""


def _by_openssl(folder: Path) -> None:
    (folder / "openssl.cnf").write_text(CONFIGURATION)
    new = ("req", "-new", "-config", "openssl.cnf", "-nodes", "-newkey", "ec:curve.pem")
    _openssl(folder, "ecparam", "-name", "prime256v1", "-out", "curve.pem")
    _openssl(
        folder, *new, "-x509", "-days", "2", "-extensions", "authority", "-subj", "/O=zloop test authority",
        "-keyout", "authority.key", "-out", "authority.pem",
    )  # fmt: skip
    _openssl(folder, *new, "-keyout", "localhost.key", "-out", "localhost.csr")
    _openssl(
        folder, "x509", "-req", "-in", "localhost.csr", "-days", "2", "-set_serial", "2",
        "-CA", "authority.pem", "-CAkey", "authority.key",
        "-extfile", "openssl.cnf", "-extensions", "localhost", "-out", "localhost.crt",
    )  # fmt: skip
    parts = [(folder / name).read_text() for name in ("localhost.key", "localhost.crt")]
    (folder / "localhost.pem").write_text("".join(parts))


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)
