"""Give tests the kernels, and the modules of the benchmark, a plain folder of programs.

Where there is no CUDA card the kernels run in Triton's interpreter. Triton decides that when it is imported, so it is
imported here, with the variable set; the variable itself is set in the tests of kernels only, for `supports` reads it.
"""

from __future__ import annotations

import importlib
import itertools
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
    from mesa_kernels import interpreter, launch, tuning


interpreter.mend()
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


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, int]], None]:
    """Give a function that writes a table with other tiles for some kernels, at all sizes, and has it read."""

    def write(tiles: dict[str, int]) -> None:
        device = torch.device(DEVICE)
        before = tuning.load_table(tuning.table_file(device))
        monkeypatch.setenv("MESALM_TUNED", str(tmp_path / "tuned"))
        made = {entry: tuning.Choice(tile, "", warps, stages) for entry, (tile, warps, stages) in before.items()}
        for name, tile in tiles.items():
            for size, half in itertools.product((16, 32, 64, 128, 256), (False, True)):
                sizes = launch.Sizes(1, 1, 1, 1, size, size, half, device)
                made[tuning.describe(name, sizes)] = tuning.choose(name, sizes)._replace(tile=tile)
        tuning.write_table(tuning.table_file(device), made, dict.fromkeys(made, 0.0))

    return write


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, tuned: Callable[[dict[str, int]], None]) -> Iterator[str]:
    """Make kernels run on this machine, on fresh memory full of NaN; return the device."""
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        # The interpreter's time goes by operations, so here one tile holds a small head; other tiles have a test.
        tuned({"gradients": 64})
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory: NaN, largest integers
    assert torch.empty(1).isnan()
    yield DEVICE
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[16, 32])
def tile(request: pytest.FixtureRequest, kernels: str, tuned: Callable[[dict[str, int]], None]) -> int:
    """Make the solver in memory take each of the smaller tiles."""
    tuned({"gradients": request.param})
    return int(request.param)


@pytest.fixture(scope="session")
def bench() -> Iterator[SimpleNamespace]:
    """Import every module of the benchmark, which import one another from their own folder."""
    sys.path.insert(0, str(BENCH))
    try:
        yield SimpleNamespace(**{file.stem: importlib.import_module(file.stem) for file in BENCH.glob("*.py")})
    finally:
        sys.path.remove(str(BENCH))
