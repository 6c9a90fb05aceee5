"""Raw scores of one model on rows of a synthetic task.

Every score is a ratio of sums over rows, sum(numerator) / sum(denominator), so that resampling is by row, not by token.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class RowScores:
    """One statistic of each row: numerator and denominator [U][C], one column per entry of ``places``.

    label: the displayed name; better: "higher" or "lower"; places: positions or numbers of shots, one per
    column, empty for a statistic with one column; times: the rows' length in lengths of the task.
    """

    key: str
    label: str
    better: Literal["higher", "lower"]
    numerator: list[list[float]]
    denominator: list[list[float]]
    places: list[int] = field(default_factory=list)
    times: int = 1

    @property
    def value(self) -> float:
        """Return the statistic over all rows, averaged over its columns."""
        return float(np.mean(self.columns))

    @property
    def columns(self) -> np.ndarray:
        """Return the statistic over all rows for each column, float64 [C]."""
        return np.asarray(self.numerator).sum(0) / np.asarray(self.denominator).sum(0)


@dataclass(frozen=True)
class SyntheticScores:
    """The statistics of one model; the first is the main score."""

    measures: list[RowScores]

    @property
    def value(self) -> float:
        """Return the main score."""
        return self.measures[0].value

    @property
    def better(self) -> str:
        """Return whether a higher or a lower main score is better."""
        return self.measures[0].better

    def plain(self) -> dict[str, Any]:
        """Return plain lists, dicts and numbers."""
        return {"measures": [asdict(measure) for measure in self.measures]}

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> SyntheticScores:
        """Rebuild scores from `plain`."""
        return cls([RowScores(**measure) for measure in data["measures"]])
