"""Choose tiles, warps and the precision of products for every kernel.

The defaults follow from compiler output (kernels/README.md). A table measured on a GPU is a data file named after the
GPU, in the folder $MESALM_TUNED or else in `tuned/`; its entries override the defaults.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .tiles import CHUNK

SCANS = frozenset({"gram", "cross", "gram adjoint", "cross adjoint"})
"""Kernels that multiply 16-bit inputs as bfloat16, split into as many parts as necessary (`states.multiply`)."""


def has_tile(name: str, sizes: Shapes) -> bool:
    """Return whether a kernel uses the tile of its choice; the others use whole rows or `tiles.NARROWEST` columns."""
    return name != "solve" and not (name == "tokens" and sizes.half)


class Choice(NamedTuple):
    """The tile of a kernel's loops, the precision of its products, its warps and the stages of its pipelines."""

    tile: int
    dot: str
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, Any]:
        """Return the options of a launch."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


class Sizes(NamedTuple):
    """The sizes of one call, and whether its inputs are of 16 bits."""

    B: int
    T: int
    H: int
    G: int
    K: int
    V: int
    half: bool
    device: torch.device

    @property
    def R(self) -> int:  # noqa: N802
        """Return the query heads per key head."""
        return self.H // self.G

    @property
    def on_chip(self) -> bool:
        """Return whether solves stay on chip: for 16-bit inputs whose vectors fit in registers."""
        return self.half and self.K <= 128

    @property
    def N(self) -> int:  # noqa: N802
        """Return the chunks of a sequence."""
        return (self.T + CHUNK - 1) // CHUNK

    @property
    def P(self) -> int:  # noqa: N802
        """Return the problems."""
        return self.B * self.G * self.N


class Kind(NamedTuple):
    """All that a choice depends on: key and value size, whether inputs are of 16 bits, and where they are."""

    K: int
    V: int
    half: bool
    device: torch.device


Shapes = Sizes | Kind


DEFAULTS = {
    # kernel: (largest size, tile, warps, stages), the first row of a size that holds K and V; of float32 always one
    # stage, as registers hold no more
    "gates": ((256, 64, 8, 1),),
    "gram": ((64, 64, 4, 3), (128, 64, 8, 3), (256, 64, 8, 2)),
    "cross": ((64, 64, 4, 3), (256, 64, 8, 3)),
    "cross adjoint": ((64, 64, 4, 3), (256, 64, 8, 3)),
    "gram adjoint": ((64, 64, 4, 1), (256, 64, 8, 1)),
    "solve": ((256, 64, 4, 1),),
    "gradients": ((256, 32, 4, 1),),
    "read": ((256, 32, 4, 1),),
    "tokens": ((256, 32, 4, 1),),
    "one step": ((64, 64, 4, 1), (128, 64, 8, 1), (256, 32, 8, 1)),
}
"""The defaults, used if no table was measured."""


def choose(name: str, sizes: Shapes) -> Choice:
    """Choose for the kernel `name`: from the card's table, or else the default."""
    return _choose(name, Kind(sizes.K, sizes.V, sizes.half, sizes.device), os.environ.get("MESALM_TUNED"))


@functools.cache
def _choose(name: str, kind: Kind, folder: str | None) -> Choice:
    """Choose, cached by kind of call and folder of tables, since finding the table takes as long as a launch."""
    size = max(kind.K, kind.V)
    tile, warps, stages = next(row[1:] for row in DEFAULTS[name] if size <= row[0])
    stages = stages if kind.half else 1
    table = load_table(table_file(kind.device))
    tile, warps, stages = table.get(describe(name, kind), (tile, warps, stages))
    return Choice(tile, "bfloat16" if kind.half and name in SCANS else "tf32x3", warps, stages)


def describe(name: str, sizes: Shapes) -> str:
    """Return the name of a table's entry: kernel, K and V rounded up to a power of two, and bits of the inputs."""
    return f"{name} {1 << (max(sizes.K, sizes.V, 16) - 1).bit_length()} {'16' if sizes.half else '32'} bits"


def table_file(device: torch.device) -> Path:
    """Return the path of the table of a GPU, or of the interpreter on a CPU."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    folder = Path(os.environ.get("MESALM_TUNED") or Path(__file__).parent / "tuned")
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"


@functools.cache
def load_table(file: Path) -> dict[str, tuple[int, int, int]]:
    """Load a table: entry to (tile, warps, stages); empty where none was measured."""
    if not file.exists():
        return {}
    read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {entry: (row["tile"], row["warps"], row["stages"]) for entry, row in read["entries"].items()}


def write_table(file: Path, entries: dict[str, Choice], seconds: dict[str, float]) -> None:
    """Write measured entries, merged into the existing table."""
    before = json.loads(file.read_text(encoding="utf-8"))["entries"] if file.exists() else {}
    rows = {
        entry: {"tile": x.tile, "warps": x.warps, "stages": x.stages, "seconds": seconds[entry]}
        for entry, x in entries.items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    table = {"card": file.stem, "entries": dict(sorted((before | rows).items()))}
    file.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    load_table.cache_clear()
    _choose.cache_clear()
