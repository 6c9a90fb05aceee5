"""What an inspection found."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from mesalm.lab.inspection.gate_statistics import FORGET_EDGES, INPUT_EDGES, HeadNumbers
from mesalm.lab.inspection.reach import LAGS, Reach


@dataclass(frozen=True)
class Inspection:
    """What was found: numbers per key head of the recurrent layers, the reach of every key head, and `notes`."""

    model: str
    device: str
    length: int
    windows: int
    tolerance: float | None
    text: dict[str, Any]
    command: str
    heads: list[HeadNumbers]
    reach: list[Reach]
    notes: list[str]

    def to_json(self) -> str:
        """Return everything as JSON, with the borders of the histograms' bins."""
        numbers = dataclasses.asdict(self)
        numbers["bins"] = {
            "minus_log_gamma": FORGET_EDGES.tolist(),
            "beta": INPUT_EDGES.tolist(),
            "lags": list(LAGS),
        }
        return json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
