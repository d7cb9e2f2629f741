"""README and the documentation site: every Python snippet runs, and what it prints is what the page shows.

How a page is read:

- A fenced block with a title (```` ```python title="app.py" ````) is a file. An example runs in an empty
  folder with all files that the page has shown so far.
- A Python block is run, unless a console block follows it: that one says how.
- A block titled "Output" is the exact output of the block before it.
- In a console block `$` begins a command and the other lines are its exact output, `...` in them being
  anything. A command that ends in `&` is a server, ended by the test; `curl` is done by the test, as soon
  as the server answers.
- `<!-- test: ... -->` before a block says what the example needs: `python 3.12`, `needs module ...`, `with
  service`.
- Well-known ports are replaced by free ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"

if not DOCS.is_dir():
    pytest.skip("a source distribution has no documentation", allow_module_level=True)

FENCE = re.compile(r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?$")
DIRECTIVE = re.compile(r"^<!-- test: (.*) -->$")
PORTS = ("8000", "5432", "6379")
OUTPUT = "Output"
PATIENCE_S = 20


@dataclasses.dataclass
class Block:
    language: str
    title: str
    text: str
    line: int
    directive: str = ""


@dataclasses.dataclass
class Example:
    """Blocks that belong together: files, then console blocks or an output."""

    page: Path
    blocks: list[Block]
    files: dict[str, str]
    """Of this example and those above it on the page."""

    def __str__(self) -> str:
        return f"{self.page.stem}-{self.blocks[0].line}"

    @property
    def directives(self) -> list[str]:
        return [part.strip() for block in self.blocks for part in block.directive.split(";") if part.strip()]


def blocks_of(page: Path) -> list[Block]:
    found: list[Block] = []
    inside: Block | None = None
    directive = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if inside is not None:
            if line == "```":
                found.append(inside)
                inside = None
            else:
                inside.text += line + "\n"
            continue
        fence = FENCE.match(line)
        if fence:
            inside = Block(fence["language"], fence["title"] or "", "", number, directive)
            directive = ""
        elif line.startswith("```"):
            raise AssertionError(f"{page.name}:{number}: a block without a language: {line}")
        elif DIRECTIVE.match(line):
            directive = DIRECTIVE.sub(r"\1", line)
    assert inside is None, f"{page.name}: a block has no end"
    return found


def examples_of(page: Path) -> list[Example]:
    found: list[Example] = []
    files: dict[str, str] = {}
    current: list[Block] = []

    def finish() -> None:
        nonlocal current
        if any(block.language in ("python", "console") for block in current):
            found.append(Example(page, current, dict(files)))
        current = []

    for block in blocks_of(page):
        is_file = bool(block.title) and block.title != OUTPUT
        runs = block.language == "console" or block.title == OUTPUT
        if not runs and current and (current[-1].language == "console" or current[-1].title == OUTPUT):
            finish()
        if not runs and not is_file:
            # A block by itself: Python is run, anything else only shows something.
            finish()
            if block.language != "python":
                continue
        if is_file:
            # Files that are shown one after the other make one example only if a console block uses them.
            if current and current[-1].language == block.language == "python" and not is_driven(page, block):
                finish()
            files[block.title] = block.text
        current.append(block)
    finish()
    return found


def is_driven(page: Path, block: Block) -> bool:
    """Whether a console block comes before anything else is run."""
    for later in blocks_of(page):
        if later.line > block.line and later.title in ("", OUTPUT):
            return later.language == "console"
    return False


PAGES = [README, *sorted(DOCS.glob("*.md"))]
EXAMPLES = [example for page in PAGES for example in examples_of(page)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Session:
    """One example's folder, ports and servers."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self.folder = folder
        self.ports = {port: str(free_port()) for port in PORTS}
        self.servers: list[subprocess.Popen[str]] = []
        self.environment = {**harness.child_env(), "COLUMNS": "120", "PYTHONUNBUFFERED": "1"}
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.with_ports(text))

    def with_ports(self, text: str) -> str:
        for known, free in self.ports.items():
            text = re.sub(rf"\b{known}\b", free, text)
        return text

    def arguments(self, command: str) -> tuple[list[str], dict[str, str]]:
        words = shlex.split(self.with_ports(command))
        environment = dict(self.environment)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        if words[0] == "python":
            words[0] = sys.executable
        else:
            words[:1] = [sys.executable, "-m", words[0]]
        return words, environment

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        words, environment = self.arguments(command)
        return subprocess.run(
            words,
            cwd=self.folder,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def serve(self, command: str) -> None:
        words, environment = self.arguments(command)
        log = (self.folder / f"server{len(self.servers)}.log").open("w")
        with log:
            server = subprocess.Popen(
                words,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.servers.append(server)

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("server*.log")))

    def fetch(self, url: str) -> str:
        url = self.with_ports(url)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
                    return answer.read().decode()
            except (urllib.error.URLError, ConnectionError) as error:
                if time.monotonic() > deadline or any(server.poll() is not None for server in self.servers):
                    raise AssertionError(f"{url}: {error}\n{self.log()}") from error
                time.sleep(0.05)

    def close(self) -> None:
        """Ends each server with what it may have started: it leads a process group of its own."""
        for server in self.servers:
            try:
                server.terminate()
                # Some give their workers half a minute.
                server.wait(2 * PATIENCE_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def matches(expected: str, found: str) -> bool:
    pattern = r".*".join(re.escape(part) for part in expected.split("..."))
    return re.fullmatch(pattern, found) is not None


def console_commands(text: str) -> list[tuple[str, str]]:
    """(command, output) of each `$` line; a backslash at its end continues it."""
    found: list[tuple[str, str]] = []
    for line in text.replace("\\\n", "").splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            command, output = found.pop()
            found.append((command, output + line + "\n"))
    return found


def run_console(session: Session, text: str) -> None:
    for command, expected in console_commands(text):
        if command.endswith("&"):
            session.serve(command[:-1])
            continue
        if command.startswith("curl "):
            printed = session.fetch(command.split()[-1])
        else:
            result = session.run(command)
            assert result.returncode == 0, f"$ {command}\n{result.stdout}{result.stderr}"
            printed = result.stdout
        assert matches(expected.rstrip("\n"), printed.rstrip("\n")), (
            f"$ {command}\n{printed}\n{session.log()}"
        )


def run_python(session: Session, block: Block, expected: str) -> None:
    name = block.title or "snippet.py"
    (session.folder / name).write_text(session.with_ports(block.text))
    result = session.run(f"python -W error::DeprecationWarning:__main__ {name}")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == expected


# Services.


@contextlib.contextmanager
def redis(session: Session) -> Iterator[None]:
    """A server that speaks the protocol; in Python, so that nothing needs to be installed."""
    if not importlib.util.find_spec("fakeredis"):
        pytest.skip("fakeredis is not installable for this Python")
    port = session.ports["6379"]
    program = f"from fakeredis import TcpFakeServer; TcpFakeServer(('127.0.0.1', {port})).serve_forever()"
    (session.folder / "fake_redis.py").write_text(program)
    session.serve("python fake_redis.py")
    await_port(session, port)
    yield


@contextlib.contextmanager
def postgres(session: Session) -> Iterator[None]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("there is no PostgreSQL server on this machine")
    # The server refuses to run as root, and whoever it runs as has to reach its folder. pytest closes its own
    # folders to others whenever one more pytest starts.
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="zpg") as data:
        if user is not None:
            shutil.chown(data, user)
        command = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust"]
        command += ["--no-sync", "--no-locale"]
        made = subprocess.run(command, check=False, user=user, cwd="/", capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        options = [
            f"-p{session.ports['5432']}",
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            f"unix_socket_directories={data}",
        ]
        with (session.folder / "server-postgres.log").open("w") as log:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, *options, "-c", "fsync=off"],
                user=user,
                cwd="/",
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        session.servers.append(server)
        try:
            await_port(session, session.ports["5432"])
            yield
        finally:
            # Does not wait for its clients.
            server.send_signal(signal.SIGINT)
            server.wait(PATIENCE_S)


def postgres_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("initdb")
    folders = [*([Path(on_path).resolve().parent] if on_path else []), *found]
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def await_port(session: Session, port: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(port))).close()
            return
        except OSError:
            if time.monotonic() > deadline or session.servers[-1].poll() is not None:
                raise AssertionError(session.log()) from None
            time.sleep(0.05)


SERVICES = {"redis": redis, "postgres": postgres}


def fulfil(example: Example, session: Session, services: contextlib.ExitStack) -> None:
    for directive in example.directives:
        kind, _, rest = directive.partition(" ")
        if kind == "python":
            wanted = tuple(int(part) for part in rest.split("."))
            if sys.version_info < wanted:
                pytest.skip(f"the page says that this needs Python {rest}")
        elif kind == "needs":
            for module in rest.split():
                if not importlib.util.find_spec(module):
                    pytest.skip(f"{module} is not installed; not every interpreter has a wheel of it")
        elif kind == "with":
            services.enter_context(SERVICES[rest](session))
        else:
            raise AssertionError(f"{example}: what does {directive!r} mean?")


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_example(example: Example, tmp_path: Path):
    session = Session(tmp_path, example.files)
    try:
        with contextlib.ExitStack() as services:
            fulfil(example, session, services)
            for block, following in zip(example.blocks, [*example.blocks[1:], None]):
                if block.language == "console":
                    run_console(session, block.text)
                elif block.language == "python" and not any(b.language == "console" for b in example.blocks):
                    expected = following.text if following and following.title == OUTPUT else ""
                    run_python(session, block, expected)
    finally:
        session.close()


# What the pages say about the tree.


def tool(name: str) -> Any:
    """A module of docs/_tools, conformance or bench."""
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[path.stem]
    return module


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def code_in(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def variables_in(text: str) -> set[str]:
    return {word.partition("=")[0] for word in code_in(text) if word.startswith("ZLOOP_")}


def table_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")
    ]


def test_the_site_can_be_put_together(tmp_path: Path):
    # Ends with an error for a link to a file that is not there.
    tool("docs/_tools/assemble.py").Site(tmp_path / "site").assemble()
    pages = {path.name for path in (tmp_path / "site" / "pages").glob("*.md")}
    assert {path.name for path in DOCS.glob("*.md")} < pages


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_front_pages_lead_somewhere(name: str):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_pages_load_nothing_from_elsewhere():
    loads = re.compile(r"!\[[^\]]*\]\(https?:|<(script|link|img)\b[^>]*https?:|@import|url\(\"?https?:")
    for path in [*PAGES, *DOCS.glob("assets/*")]:
        assert not loads.search(path.read_text(encoding="utf-8")), path


def test_the_phases_of_a_turn_are_those_of_the_code():
    source = (ROOT / "src/core/loop.zig").read_text(encoding="utf-8")
    body = re.search(r"pub fn turn\(.*?\n        }\n", source, re.DOTALL)
    assert body is not None
    called = re.findall(r"(?:self|host)\.((?:\w+\.)*(?!is)\w+)\(", body[0])
    shown = re.search(r"<!-- phases of turn:.*?-->\n(.*?)\n\n", page("architecture.md"), re.DOTALL)
    assert shown is not None
    phases = re.findall(r"^\d\. `([^`]+)`", shown[1], re.MULTILINE)
    assert phases == [name for name in called if name not in ("isForked", "inbox.isEmptyHint")]
    diagram = next(one for one in tool("docs/_tools/diagrams.py").DIAGRAMS if one.name == "turn")
    assert [box.name for box in diagram.boxes if not box.inside] == phases


def test_the_diagrams_name_what_is_in_the_code():
    diagrams = tool("docs/_tools/diagrams.py")
    for diagram in diagrams.DIAGRAMS:
        drawn = (DOCS / "assets" / f"{diagram.name}.svg").read_text(encoding="utf-8")
        assert drawn == diagrams.draw(diagram), diagram.name
        assert f"assets/{diagram.name}.svg" in page("architecture.md")
        for box in diagram.boxes:
            if box.file:
                text = (ROOT / box.file).read_text(encoding="utf-8")
                missing = [name for name in box.names if not re.search(rf"\b{re.escape(name)}\b", text)]
                assert not missing, f"{missing} not in {box.file} ({diagram.name})"


def test_the_bounds_are_those_of_the_code():
    section = page("architecture.md").partition("## Bounds")[2].partition("\n## ")[0]
    rows = table_rows(section)[1:]
    assert len(rows) > 4
    units = {"KiB": 1024, "": 1}
    for _, value, where in rows:
        number, _, unit = value.partition(" ")
        (name,) = code_in(where)
        target = re.search(r"\]\(([^)]+)\)", where)
        assert target is not None
        text = (DOCS / target[1]).read_text(encoding="utf-8")
        found = re.search(rf"^(?:pub )?(?:const )?{name}(?:: \w+)? = ([\d *_]+);?$", text, re.MULTILINE)
        assert found is not None, f"no {name} in {target[1]}"
        assert eval(found[1]) == int(number) * units[unit], name


#: What a build of the package runs; the rest of build_tools/ is for the project's own checks.
BUILD = [ROOT / "build_tools" / "engine.py", ROOT / "build_tools" / "target.py", ROOT / "hatch_build.py"]


def test_the_api_page_has_every_public_name_and_variable():
    zloop = pytest.importorskip("zloop", reason="not installed")
    headings = re.findall(r"^#+ (.*)$", page("api.md").replace("\\", ""), re.MULTILINE)
    for name in zloop.__all__:
        assert any(heading.startswith(f"zloop.{name}") for heading in headings), name
    used = set()
    for path in [*ROOT.glob("python/zloop/*.py"), *BUILD]:
        used |= set(re.findall(r"\bZLOOP_[A-Z]+(?:_[A-Z]+)*\b", path.read_text(encoding="utf-8")))
    assert used <= variables_in(page("api.md"))
    assert variables_in(README.read_text(encoding="utf-8")) <= used


def test_the_table_of_platforms_is_what_is_tested(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "build_tools"))
    table: Any = importlib.import_module("platform_table")
    readme = README.read_text(encoding="utf-8")
    assert table.written(readme) == readme, "python build_tools/platform_table.py --write"
    targets = (ROOT / "build_tools" / "targets.txt").read_text().split()
    assert sorted(target for row in table.ROWS for target in row.targets) == sorted(targets)
    script = (ROOT / "scripts" / "test").read_text()
    in_ci = re.search(r'--platforms\) platforms="([^"]*)"', script)
    assert in_ci is not None
    assert "--platforms" in (ROOT / ".ci" / "run").read_text()
    platforms: Any = importlib.import_module("platforms")
    for row in table.ROWS:
        if row.stage in ("pytest", "targets"):
            assert re.search(rf"\bstage {row.stage} ", script), row
        else:
            assert re.search(rf"[ |]{row.stage}[ |)]", script), row
            assert row.stage == "kqueue" or row.stage in platforms.PLATFORMS
            assert (row.stage in in_ci[1].split()) == (row.how != table.RELEASE), row


def test_the_messages_of_the_troubleshooting_page_are_the_programs():
    section = page("troubleshooting.md").partition("## The build fails")[2].partition("\n## ")[0]
    messages = [row[0].strip("`") for row in table_rows(section)[1:]]
    assert len(messages) > 3
    source = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("build_tools/*.py"))
    # Strings that go over two lines are one; what is put into them is not in the source.
    source = re.sub(r'"\n\s*f?"', "", source).replace("win32", "")
    for message in messages:
        for part in re.split(r"\.\.\.|win32.*|ZLOOP_ZIG|ZLOOP_BUILD_MODE|fast.*", message):
            assert part.strip() in source, message
    for message in ("this event loop belongs to the parent process", "zloop does not know this Python's"):
        assert message in page("troubleshooting.md")
        assert any(message in path.read_text("utf-8") for path in ROOT.glob("src/cpython/*.zig")), message


def test_the_message_of_a_missing_library_is_the_one_on_the_page(tmp_path: Path):
    shutil.copytree(ROOT / "python" / "zloop", tmp_path / "zloop", ignore=shutil.ignore_patterns("*.so"))
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import zloop"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    message = "cannot import name '_engine' from partially initialized module 'zloop'"
    assert message in done.stderr
    assert message in page("troubleshooting.md")


def test_the_table_of_differences_holds_on_this_python():
    """zloop's column on every version; asyncio's on the version that the table was made with."""
    pytest.importorskip("zloop", reason="not installed")
    if sys.platform != "linux":
        pytest.skip("the table was made on Linux")
    text = page("differences.md").partition("<!-- differences -->")[2].partition("<!-- /differences -->")[0]
    head, *rows = table_rows(text)
    made_with = re.search(r"CPython (\d+\.\d+)\.", text)
    assert made_with is not None
    differences = tool("conformance/differences.py")
    columns = ["zloop"]
    if made_with[1] == ".".join(map(str, sys.version_info[:2])):
        columns.append("asyncio")
    for name in columns:
        shown = {row[0]: row[head.index(name)] for row in rows}
        assert differences.ask(differences.LOOPS[name]) == shown


def test_the_performance_page_is_up_to_date():
    wanted = set(re.findall(r"<!-- bench:([\w./]+) -->", page("performance.md"))) - {"plot", "losses"}
    missing = wanted - {f"{path.parent.name}/{path.stem}" for path in ROOT.glob("bench/results/*/*.json")}
    if missing:
        pytest.skip(f"no results are stored of {', '.join(sorted(missing))}")
    command = [sys.executable, "-m", "bench.report", "--check", "--write", "docs/performance.md"]
    command += ["--plot", "docs/performance.svg"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_losses_are_the_rows_in_which_another_loop_is_better(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    report = importlib.import_module("bench.report")

    def row(name: str, lower_is_better: bool, **medians: float) -> dict[str, Any]:
        results = {loop: {"x": [value]} for loop, value in medians.items()}
        metric = {"key": "x", "unit": "x/s", "lower_is_better": lower_is_better}
        return {"name": name, "metrics": [metric], "results": results}

    rows = [
        row("won", False, zloop=3.0, uvloop=2.0, rloop=1.0),
        row("lost", False, zloop=2.0, uvloop=1.0, rloop=4.0),
        row("lost cost", True, zloop=4.0, uvloop=1.0),
        row("won cost", True, zloop=1.0, uvloop=4.0),
        row("alone", False, zloop=1.0),
    ]
    lines = report.losses({"group": {"rows": rows}}).splitlines()[2:]
    assert lines == ["| group | lost cost | x/s | 0.25 |", "| group | lost | x/s | 0.50 |"]
    assert report.losses({"group": {"rows": rows[:1]}}) == "There is no such row."
