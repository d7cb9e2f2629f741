"""Tests of the conformance runner itself: `pytest conformance/selftest`. They start only small processes."""

from __future__ import annotations

import sys
from pathlib import Path

CONFORMANCE_ROOT = Path(__file__).resolve().parent.parent
for place in (CONFORMANCE_ROOT, CONFORMANCE_ROOT / "child"):
    sys.path.insert(0, str(place))
