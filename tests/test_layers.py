"""The layers are real: arrows go one way, and no file of the core is left out of its tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "src" / "core"
ADAPTER = ROOT / "src" / "cpython"
EDGE = ROOT / "python" / "zloop"

IMPORT = re.compile(r'@import\("([^"]+)"\)')


def zig_files(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.zig"))
    assert files, f"{folder} is empty"
    return files


def code(path: Path) -> str:
    """A file without its comments, which may name anything."""
    return "\n".join(line.split("//", 1)[0] for line in path.read_text().splitlines())


@pytest.mark.parametrize("path", zig_files(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_the_core_imports_only_itself(path: Path):
    text = code(path)
    assert "Python.h" not in text
    assert "cpython" not in text.lower().replace("non-cpython", "")
    for name in IMPORT.findall(text):
        if name.endswith(".zig"):
            target = (path.parent / name).resolve()
            assert target.is_file(), f"{name} does not exist"
            assert CORE in target.parents, f"{name} lies outside the core"
        else:
            assert name in ("std", "builtin", "build_options", "root"), f"the core must not import {name}"


def test_every_file_of_the_core_is_in_the_test_list():
    text = (CORE / "root.zig").read_text()
    tests = re.findall(r"^test(?: \"[^\"]*\")? \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    listed = {name for block in tests for name in IMPORT.findall(block) if name.endswith(".zig")}
    present = {str(path.relative_to(CORE)) for path in zig_files(CORE)} - {"root.zig"}
    assert listed == present


def test_only_the_adapter_sees_the_interpreter():
    """The adapter reaches the core by its façade alone."""
    for path in zig_files(ADAPTER):
        for name in IMPORT.findall(code(path)):
            if name.endswith(".zig"):
                target = (path.parent / name).resolve()
                assert target.is_file(), f"{path.name} imports {name}, which does not exist"
                assert CORE not in target.parents, f"{path.name} reaches into the core's files: {name}"


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", sorted(EDGE.glob("*.py")), ids=lambda path: path.name)
def test_the_python_edge_stays_python(path: Path):
    names = imported_modules(path)
    assert not names & {"ctypes", "cffi", "_ctypes"}, "native work belongs into the adapter"
    assert not names & {"uvloop", "rloop", "uvicorn", "aiohttp", "pytest"}, (
        "zloop stands on the interpreter alone"
    )


def test_every_python_file_opens_with_what_it_is():
    for path in sorted(EDGE.glob("*.py")):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path.name} does not say what it is"


def test_every_zig_file_opens_with_what_it_is():
    for path in zig_files(ROOT / "src"):
        assert path.read_text().startswith("//!"), f"{path.relative_to(ROOT)} does not say what it is"
