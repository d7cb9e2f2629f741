"""What the README says of platforms, and by which command each row is shown; `--write` puts it there.

A test of the documentation compares the two, and asks that each stage exists and each target has a row.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- platforms -->", "<!-- end of platforms -->"

RUN = "run"
EMULATED = "emulated"
RELEASE = "emulated, before a release"
COMPILED = "compiled"


@dataclass(frozen=True)
class Row:
    system: str
    machine: str
    how: str
    # The stage of scripts/test that shows it.
    stage: str
    # The lines of targets.txt that it stands for.
    targets: tuple[str, ...]


ROWS = (
    Row("Linux, glibc 2.17+", "x86_64", RUN, "pytest", ("x86_64-linux-gnu.2.17",)),
    Row("Linux, glibc 2.17+", "x86, 32 bits", RUN, "i386", ("x86-linux-gnu.2.17",)),
    Row("Linux, musl", "x86_64", RUN, "musl", ("x86_64-linux-musl",)),
    Row("Linux, glibc 2.17+", "aarch64", EMULATED, "aarch64", ("aarch64-linux-gnu.2.17",)),
    Row("Linux, glibc 2.17+", "ARMv7, 32 bits", RELEASE, "armv7", ("arm-linux-gnueabihf.2.17",)),
    Row("Linux, glibc 2.27+", "riscv64", RELEASE, "riscv64", ("riscv64-linux-gnu.2.27",)),
    Row("Linux, glibc 2.19+", "ppc64le", RELEASE, "powerpc64le", ("powerpc64le-linux-gnu.2.19",)),
    Row("Linux, glibc 2.17+", "s390x", RELEASE, "s390x", ("s390x-linux-gnu.2.17",)),
    Row("Linux, musl", "aarch64", COMPILED, "targets", ("aarch64-linux-musl",)),
    Row("macOS 11+", "x86_64, arm64", COMPILED, "targets", ("x86_64-macos.11.0", "aarch64-macos.11.0")),
    Row(
        "FreeBSD 14+", "x86_64, aarch64", COMPILED, "targets", ("x86_64-freebsd.14.0", "aarch64-freebsd.14.0")
    ),
    Row("NetBSD, OpenBSD", "x86_64", COMPILED, "targets", ("x86_64-netbsd", "x86_64-openbsd")),
    Row("their kqueue", "over an emulated kernel", RUN, "kqueue", ()),
)


def render() -> str:
    lines = ["| System | Machine | The tests are | Shown by |", "|---|---|---|---|"]
    for row in ROWS:
        command = "scripts/test" if row.stage == "pytest" else f"scripts/test --only {row.stage}"
        lines.append(f"| {row.system} | {row.machine} | {row.how} | `{command}` |")
    return "\n".join(lines)


def written(text: str) -> str:
    """The text with the table in its place."""
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{README.name} has no place for the table: {BEGIN}")
    return pattern.sub(lambda _: f"{BEGIN}\n{render()}\n{END}", text)


def main() -> int:
    text = README.read_text(encoding="utf-8")
    if sys.argv[1:] == ["--write"]:
        README.write_text(written(text), encoding="utf-8")
        return 0
    print(render())
    return 0 if written(text) == text else 1


if __name__ == "__main__":
    sys.exit(main())
