"""The results of an inspection."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from mesalm.lab.inspection.gate_statistics import FORGET_EDGES, INPUT_EDGES, HeadNumbers
from mesalm.lab.inspection.reach import LAGS, Reach


@dataclass(frozen=True)
class Inspection:
    """The results: numbers for each key head of the recurrent layers, the reach of every key head, and `notes`."""

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
        """Return everything as JSON, including the bin edges of the histograms."""
        numbers = dataclasses.asdict(self)
        numbers["bins"] = {
            "minus_log_gamma": FORGET_EDGES.tolist(),
            "beta": INPUT_EDGES.tolist(),
            "lags": list(LAGS),
        }
        return json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
