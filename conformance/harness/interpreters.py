"""Facts about the interpreter under test, asked of itself."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import cache
from harness.errors import ConformanceError, checked

_PROBE = """
import importlib.util, json, os, platform, ssl, sys, sysconfig
package = importlib.util.find_spec("test")
places = package.submodule_search_locations if package else []
print(json.dumps({
    "executable": sys.executable,
    "base_prefix": sys.base_prefix,
    "implementation": sys.implementation.name,
    "version": platform.python_version(),
    "build": " ".join(platform.python_build()),
    "tag": f"{sys.version_info[0]}{sys.version_info[1]}"
           + ("t" if sysconfig.get_config_var("Py_GIL_DISABLED") else "")
           + ("d" if hasattr(sys, "gettotalrefcount") else ""),
    "openssl": ssl.OPENSSL_VERSION,
    "system": sysconfig.get_platform(),
    "test_package": next((place for place in places if os.path.isdir(place)), None),
}))
"""


@dataclass(frozen=True)
class Interpreter:
    executable: str
    base_prefix: str
    implementation: str
    version: str
    build: str
    tag: str
    """`313`, `313t`, `314d`: as in the names of wheels."""
    openssl: str
    system: str
    test_package: str | None
    """Where the package `test` is installed, with or without the tests themselves."""

    @property
    def version_info(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split(".")[:2])

    @property
    def free_threaded(self) -> bool:
        return "t" in self.tag

    @property
    def name(self) -> str:
        """Distinct for each interpreter of a machine, and readable."""
        return (
            f"cp{self.tag}-{cache.digest(os.path.realpath(self.base_prefix), self.version, self.build)[:6]}"
        )

    def facts(self) -> dict[str, str]:
        """What a stored result says of its interpreter: nothing about where it is installed."""
        named = ("implementation", "version", "build", "tag", "openssl", "system")
        return {key: value for key, value in asdict(self).items() if key in named}


def probe(python: Path | str) -> Interpreter:
    # Not resolved: a virtual environment is known by the link that was called.
    output = checked([str(python), "-c", _PROBE], what="asking the interpreter about itself")
    interpreter = Interpreter(**json.loads(output))
    if interpreter.implementation != "cpython" or interpreter.version_info < (3, 10):
        raise ConformanceError(f"{python} is not CPython 3.10 or newer")
    return interpreter
