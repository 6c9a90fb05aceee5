"""Choose tiles, warps and the precision of products for every kernel."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol


class Choice(NamedTuple):
    """Hold the tile, the precision of products, and the compiler's options of one kernel."""

    tile: int
    dot: str
    options: dict[str, Any]


class Shapes(Protocol):
    """Say what a choice depends on: key and value size, and whether inputs are of 16 bits."""

    @property
    def K(self) -> int: ...  # noqa: N802
    @property
    def V(self) -> int: ...  # noqa: N802
    @property
    def half(self) -> bool: ...


TILES = {
    "gates": 64,
    "states": 64,
    "price": 32,
    "factor": 32,
    "half": 32,
    "series": 32,
    "gradients": 32,
    "read": 64,
    "pairs": 32,
    "tokens": 64,
}


def choose(name: str, sizes: Shapes) -> Choice:
    """Choose for the kernel `name`."""
    return Choice(TILES[name], "tf32x3", {"num_warps": 4})
