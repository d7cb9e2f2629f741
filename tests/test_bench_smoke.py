"""Every benchmark runs on zloop, each cell for some 20 ms: a row that fails is a bug, not a footnote."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import harness
import pytest

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "bench"

pytestmark = [
    pytest.mark.skipif(not BENCH.is_dir(), reason="the benchmarks are not part of the source distribution"),
    pytest.mark.skipif(sys.platform != "linux", reason="the load generator is written for epoll"),
    pytest.mark.skipif(
        not (os.environ.get("ZLOOP_ZIG") or importlib.util.find_spec("ziglang")),
        reason="no Zig compiler for the load generator",
    ),
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("native_programs"),
]

needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl command for a certificate")


@pytest.fixture(scope="module")
def native_programs() -> None:
    """Made once in a clone; on a busy machine that takes longer than a benchmark waits for its child."""
    build = "from bench.native import program; program('loadgen'); program('echo_epoll')"
    subprocess.run([sys.executable, "-c", build], check=True, cwd=ROOT, timeout=800)


def bench(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    # Children that measure are not traced for coverage.
    env = {name: value for name, value in harness.child_env().items() if not name.startswith("COVERAGE_")}
    return subprocess.run(
        [sys.executable, "-m", f"bench.{module}", *map(str, arguments)],
        check=False,
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )


def measure(out: Path, module: str, *arguments: object) -> list[dict[str, Any]]:
    done = bench(module, *arguments, "--tiny", "--loops", "zloop", "--out", out)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["not_installed"] == []
    return document["rows"]


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """Rows without a sample of zloop, or with one that cannot be right. Zero wake-ups are right."""
    bad = []
    for row in rows:
        result = row["results"]["zloop"]
        if "error" in result:
            bad.append(f"{row['name']}: {result['error']}")
            continue
        for metric in row["metrics"]:
            if not all(sample > 0 or metric["key"] == "wakeups" for sample in result[metric["key"]]):
                bad.append(f"{row['name']}: {result}")
    return bad


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("micro",), id="micro"),
        pytest.param(("servers", "echo"), id="echo"),
        pytest.param(("servers", "tls"), id="tls", marks=needs_openssl),
        pytest.param(("servers", "connect"), id="connect", marks=needs_openssl),
        pytest.param(("fairness",), id="fairness"),
        pytest.param(("scaling",), id="scaling"),
    ],
)
def test_rows_run(arguments: tuple[str, ...], tmp_path: Path) -> None:
    rows = measure(tmp_path / "results.json", *arguments)
    assert rows
    assert failures(rows) == []


@needs_openssl
def test_idle_servers_run(tmp_path: Path) -> None:
    rows = measure(tmp_path / "results.json", "memory")
    assert failures([row for row in rows if row["metrics"][0]["key"] != "bytes"]) == []
    # Forty connections may fit into memory that is there already: a tiny run shows only that they were held.
    assert [row["name"] for row in rows if "error" in row["results"]["zloop"]] == []


@needs_openssl
@pytest.mark.parametrize(
    ("pattern", "packages"),
    [
        ("^uvicorn, plain", ("uvicorn", "httptools")),
        ("h11", ("uvicorn", "h11")),
        ("Starlette", ("uvicorn", "httptools", "starlette")),
        ("FastAPI", ("uvicorn", "httptools", "fastapi")),
        ("hypercorn", ("hypercorn",)),
        ("aiohttp", ("aiohttp",)),
        ("httpx", ("httpx",)),
    ],
)
def test_http_rows_run(pattern: str, packages: tuple[str, ...], tmp_path: Path) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    rows = measure(tmp_path / "results.json", "http", "--rows", pattern)
    assert rows
    assert failures(rows) == []


def test_latency_rows_run(tmp_path: Path) -> None:
    for package in ("uvicorn", "httptools", "fastapi", "aiohttp"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    rows = measure(tmp_path / "results.json", "latency")
    assert failures(rows) == []
    paced = [row["results"]["zloop"] for row in rows if "wanted_rate" in row["results"]["zloop"]]
    assert paced
    for result in paced:
        # An open loop sends no more than its rate. How much less is answered depends on the machine.
        assert 0 < result["rate"][0] <= 2 * result["wanted_rate"][0]


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_system_calls_are_counted(tmp_path: Path) -> None:
    (row,) = measure(tmp_path / "results.json", "servers", "syscalls", "--rows", "^tcp proto 1 KiB, 10 ")
    result = row["results"]["zloop"]
    if "strace cannot attach here" in result.get("error", ""):
        pytest.skip("tracing is not allowed here")
    # One write at least for each request, and no storm of calls.
    assert 1 <= result["total"][0] < 20


def test_counted_paths_run() -> None:
    """The bodies that callgrind watches, without it."""
    from_child = "from bench.instruction_child import PATHS; print('\\n'.join(PATHS))"
    names = subprocess.run(
        [sys.executable, "-c", from_child], check=True, cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    assert len(names) > 5
    for name in names:
        done = bench("instruction_child", "--loop", "zloop", "--path", name, "--count", 50)
        assert (done.returncode, done.stderr) == (0, ""), name


@pytest.mark.soak
@pytest.mark.skipif(not shutil.which("valgrind"), reason="valgrind is not installed")
def test_instructions_are_within_budget() -> None:
    done = bench("instructions")
    assert done.returncode == 0, done.stdout + done.stderr


def test_load_generator_unit_tests() -> None:
    program = "from bench.native import zig_command; print('\\n'.join(zig_command()))"
    zig = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    done = subprocess.run(
        [*zig, "test", "-lc", "--cache-dir", str(ROOT / ".cache" / "bench" / "zig"), "test.zig"],
        check=False,
        cwd=BENCH / "native",
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def test_report_renders_results(tmp_path: Path) -> None:
    """Results of a run become a table between the markers, once: a second run changes nothing."""
    results = tmp_path / "results"
    rows = measure(results / "3.99" / "micro.json", "micro", "--rows", "^call_soon chain$")
    assert [row["name"] for row in rows] == ["call_soon chain"]
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- bench:3.99/micro -->\nold\n<!-- /bench:3.99/micro -->\nafter\n", encoding="utf-8"
    )
    assert bench("report", "--results", results, "--write", page, "--check").returncode == 1
    assert bench("report", "--results", results, "--write", page).returncode == 0
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert "| call_soon chain | " in text
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert bench("report", "--results", results, "--write", page, "--check").returncode == 0
