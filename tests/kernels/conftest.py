"""Give tests the modules of the benchmark, a plain folder of programs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCH = Path(__file__).parents[2] / "kernels/bench"


@pytest.fixture(scope="session")
def bench() -> Iterator[SimpleNamespace]:
    """Import every module of the benchmark, which import one another from their own folder."""
    sys.path.insert(0, str(BENCH))
    try:
        yield SimpleNamespace(**{file.stem: importlib.import_module(file.stem) for file in BENCH.glob("*.py")})
    finally:
        sys.path.remove(str(BENCH))
