"""Give tests the kernels, and the modules of the benchmark, a plain folder of programs.

Where there is no CUDA card the kernels run in Triton's interpreter. Triton decides that when it is imported, so it is
imported here, with the variable set; the variable itself is set in the tests of kernels only, for `supports` reads it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parent
BENCH = FOLDER.parents[1] / "kernels/bench"
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "model")]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

with pytest.MonkeyPatch.context() as early:
    if DEVICE == "cpu":
        early.setenv("TRITON_INTERPRET", "1")
    from mesa_kernels import launch

WRONG_NUMBER = -(2**30)


def fresh_and_wrong(like: torch.Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Allocate as `launch.fresh` does, filled with what no result may depend on."""
    made = torch.empty(shape, dtype=dtype, device=like.device)
    return made.fill_(torch.nan if dtype.is_floating_point else WRONG_NUMBER)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make kernels run on this machine, on fresh memory full of NaN; return the device."""
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(launch, "fresh", fresh_and_wrong)
    return DEVICE


@pytest.fixture(scope="session")
def bench() -> Iterator[SimpleNamespace]:
    """Import every module of the benchmark, which import one another from their own folder."""
    sys.path.insert(0, str(BENCH))
    try:
        yield SimpleNamespace(**{file.stem: importlib.import_module(file.stem) for file in BENCH.glob("*.py")})
    finally:
        sys.path.remove(str(BENCH))
