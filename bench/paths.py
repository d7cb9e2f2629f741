"""Where the benchmarks keep what they build and measure."""

from __future__ import annotations

import os
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
RESULTS = BENCH / "results"
"""Published results: full runs only."""
CACHE = Path(os.environ.get("ZLOOP_BENCH_CACHE", ROOT / ".cache" / "bench"))
"""Built programs, certificates, and the results of quick runs."""
