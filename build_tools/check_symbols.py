"""Check that every symbol the built engine leaves undefined exists where the library will be loaded.

    python build_tools/check_symbols.py [LIBRARY]      (default: the engine of the zloop that is installed)

The library is linked with undefined symbols allowed, because the interpreter supplies the C API when it loads
it. That hides two mistakes until a user imports it: a C-API name this Python does not export, and a libc
function newer than the oldest libc promised, which links without a version.
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path


def problems(library: str) -> list[str]:
    command = ["nm", "-D", "--undefined-only", library]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = []
    for line in listing.splitlines():
        kind, name = line.split()
        if name.startswith(("Py", "_Py")):
            if not hasattr(ctypes.pythonapi, name):
                found.append(f"{name}: not exported by Python {sys.version.split()[0]}")
        elif kind != "w" and "@" not in name:
            found.append(f"{name}: not in the libc that the engine is linked for")
    return found


def installed_library() -> str:
    # The package is found, not imported: importing is what fails when a symbol is missing.
    spec = importlib.util.find_spec("zloop")
    if spec is None or spec.origin is None:
        raise SystemExit("zloop is not installed")
    return str(Path(spec.origin).parent / f"_engine{sysconfig.get_config_var('EXT_SUFFIX')}")


def main() -> int:
    library = sys.argv[1] if len(sys.argv) > 1 else installed_library()
    found = problems(library)
    print("\n".join(found) or f"{library}: every undefined symbol is accounted for")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
