"""Give tests the kernels, and the modules of the benchmark, a plain folder of programs.

Where there is no CUDA card the kernels run in Triton's interpreter. Triton decides that when it is imported, so it is
imported here, with the variable set; the variable itself is set in the tests of kernels only, for `supports` reads it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.version import Version

FOLDER = Path(__file__).parent
BENCH = FOLDER.parents[1] / "kernels/bench"
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "model")]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

with pytest.MonkeyPatch.context() as early:
    if DEVICE == "cpu":
        early.setenv("TRITON_INTERPRET", "1")
    from mesa_kernels import interpreter, launch
    from mesa_kernels.tuning import Choice, Shapes, choose


interpreter.mend()
WRONG_NUMBER = -(2**30)
OLD_INTERPRETER = DEVICE == "cpu" and Version(version("triton")) < Version("3.7")
"""Triton 3.6 makes scalars of arrays with one entry, of which NumPy warns and which 2.4 refuses; cards are spared."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what an old interpreter cannot run under this NumPy, or let it be warned."""
    refused = Version(version("numpy")) >= Version("2.4")
    for item in items:
        if OLD_INTERPRETER and {"kernels", "tile"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(
                pytest.mark.skip("Triton 3.6 interprets kernels with NumPy below 2.4 only")
                if refused
                else pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
            )


def fresh_and_wrong(like: torch.Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Allocate as `launch.fresh` does, filled with what no result may depend on."""
    made = torch.empty(shape, dtype=dtype, device=like.device)
    return made.fill_(torch.nan if dtype.is_floating_point else WRONG_NUMBER)


def choose_tile(tile: int) -> Callable[[str, Shapes], Choice]:
    """Choose as the package does, but another tile for the solver in memory."""

    def choose_solver(name: str, sizes: Shapes) -> Choice:
        choice = choose(name, sizes)
        return choice._replace(tile=tile) if name == "gradients" else choice

    return choose_solver


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make kernels run on this machine, on fresh memory full of NaN; return the device."""
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        # The interpreter's time goes by operations, so here one tile holds a small head; other tiles have a test.
        monkeypatch.setattr(launch, "choose", choose_tile(64))
    monkeypatch.setattr(launch, "fresh", fresh_and_wrong)
    return DEVICE


@pytest.fixture(params=[16, 32])
def tile(request: pytest.FixtureRequest, kernels: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make the solver in memory take each of the smaller tiles."""
    monkeypatch.setattr(launch, "choose", choose_tile(request.param))
    return int(request.param)


@pytest.fixture(scope="session")
def bench() -> Iterator[SimpleNamespace]:
    """Import every module of the benchmark, which import one another from their own folder."""
    sys.path.insert(0, str(BENCH))
    try:
        yield SimpleNamespace(**{file.stem: importlib.import_module(file.stem) for file in BENCH.glob("*.py")})
    finally:
        sys.path.remove(str(BENCH))
