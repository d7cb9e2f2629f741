"""Put the site's source together: `python docs/_tools/assemble.py DESTINATION`, pages and configuration.

The pages in `docs/` link to files of the clone by relative paths, so that they can be read in the clone as
they are. In the site those links must lead somewhere too: a Markdown file becomes a page, any other file a
page that shows it. A link to a file that does not exist ends the build; links between pages are checked by
the site generator.

`<!-- files: FOLDER -->` in a page is replaced by a table of the folder's source files, each with the first
sentence of its own header.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
#: Files of the clone that are pages of the site under these names.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "working-on-zloop.md"}
CONFIGURATION = "zensical.toml"
NOT_PAGES = (CONFIGURATION, "requirements.txt")
LANGUAGES = {
    ".py": "python",
    ".pyi": "python",
    ".zig": "zig",
    ".toml": "toml",
    ".json": "json",
    ".sh": "bash",
}

FENCE = re.compile(r"^ *(```|~~~)")
LINK = re.compile(r"(?<!\\)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
IMAGE_OR_PAGE = re.compile(r"^[a-z]+:|^#")
FILES = re.compile(r"^<!-- files: (?P<folder>\S+) -->$")


class AssemblyError(Exception):
    """The pages cannot be put together; the message says what to mend."""


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """The text with every line that is not code changed."""
    lines, fence = [], ""
    for line in text.split("\n"):
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1] == fence:
            fence = ""
        lines.append(line if fence or mark else change(line))
    return "\n".join(lines)


class Site:
    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.pages = destination / "pages"
        self.made: set[str] = set()

    def assemble(self) -> None:
        shutil.rmtree(self.destination, ignore_errors=True)
        self.pages.mkdir(parents=True)
        shutil.copy(DOCS / CONFIGURATION, self.destination)
        for path in sorted(DOCS.rglob("*")):
            inside = path.relative_to(DOCS)
            if not path.is_file() or inside.parts[0].startswith("_") or inside.name in NOT_PAGES:
                continue
            if path.suffix == ".md":
                self.add_page(path, inside.as_posix())
            else:
                self.write(inside.as_posix(), path.read_bytes())
        for name, page in PAGES.items():
            self.add_page(ROOT / name, page)

    def write(self, name: str, content: str | bytes) -> None:
        target = self.pages / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)

    def add_page(self, path: Path, name: str) -> None:
        if name in self.made:
            return
        self.made.add(name)

        def change(line: str) -> str:
            listing = FILES.match(line)
            if listing:
                line = files_table(ROOT / listing["folder"], path.parent)
            return LINK.sub(
                lambda link: f"]({self.address(link['target'], path, name)}{link['anchor'] or ''})", line
            )

        self.write(name, outside_fences(path.read_text(encoding="utf-8"), change))

    def address(self, target: str, path: Path, name: str) -> str:
        """Where a link from the page `name`, made of the file `path`, leads in the site."""
        if IMAGE_OR_PAGE.match(target):
            return target
        file = (path.parent / target).resolve()
        if not file.is_file():
            raise AssemblyError(f"{path.relative_to(ROOT)} links to {target}, which is not a file")
        if not file.is_relative_to(ROOT):
            raise AssemblyError(f"{path.relative_to(ROOT)} links to {target}, outside of the clone")
        if file.is_relative_to(DOCS):
            page = file.relative_to(DOCS).as_posix()
        elif file.suffix == ".md":
            inside = file.relative_to(ROOT).as_posix()
            page = PAGES.get(inside, "project/" + inside.replace("/", "-").lower())
            self.add_page(file, page)
        else:
            page = self.add_source(file)
        return os.path.relpath(page, Path(name).parent)

    def add_source(self, file: Path) -> str:
        """A page that shows a file of the clone; search leaves it out."""
        inside = file.relative_to(ROOT).as_posix()
        page = f"source/{inside}.md"
        if page not in self.made:
            self.made.add(page)
            text = file.read_text(encoding="utf-8")
            language = LANGUAGES.get(file.suffix) or ("bash" if text.startswith("#!") else "text")
            head = f"---\ntitle: {inside}\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n"
            self.write(page, f"{head}\n# {inside}\n\n`````{language}\n{text.rstrip()}\n`````\n")
        return page


def files_table(folder: Path, page_folder: Path) -> str:
    """One row for each source file of a folder and its subfolders, with its header's first sentence."""
    if not folder.is_dir():
        raise AssemblyError(f"{folder.relative_to(ROOT)} is not a folder")
    rows = ["| File | What it is |", "|---|---|"]
    for path in sorted(folder.rglob("*"), key=lambda path: (len(path.relative_to(folder).parts), path)):
        if path.suffix in (".zig", ".py", ".pyi") and path.name != "__pycache__":
            link = os.path.relpath(path, page_folder)
            rows.append(f"| [{path.relative_to(folder).as_posix()}]({link}) | {first_sentence(path)} |")
    return "\n".join(rows)


def first_sentence(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".zig":
        header = "\n".join(re.findall(r"^//! ?(.*)$", text, re.MULTILINE))
    else:
        docstring = re.match(r'(?:#.*\n)*\s*r?"""(.*?)"""', text, re.DOTALL)
        header = docstring[1] if docstring else ""
    if not header.strip():
        raise AssemblyError(f"{path.relative_to(ROOT)} does not say what it is")
    paragraph = " ".join(header.strip().split("\n\n")[0].split())
    sentence = re.match(r".*?\.(?= |$)", paragraph)
    return (sentence[0] if sentence else paragraph).rstrip(".:").replace("|", "\\|")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: assemble.py DESTINATION", file=sys.stderr)
        return 2
    try:
        Site(Path(arguments[0])).assemble()
    except AssemblyError as error:
        print(f"docs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
