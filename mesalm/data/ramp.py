"""How many rows a step takes where the batch grows over the first rows of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RowRamp:
    """Steps of ``full`` rows; over a third each of the first ``over`` rows, of a quarter, a half and three quarters."""

    full: int
    over: int = 0

    def rows(self, done: int) -> int:
        """Return the rows of the step that begins after ``done`` rows."""
        return self.full if done >= self.over else self.full * (1 + 3 * done // self.over) // 4

    def total(self, steps: int) -> int:
        """Return the rows of the first ``steps`` steps together."""
        done, left = 0, steps
        while left and done < self.over:
            done, left = done + self.rows(done), left - 1
        return done + left * self.full

    def steps(self, rows: int) -> int:
        """Return how many steps take at least ``rows`` rows."""
        done = count = 0
        while done < min(rows, self.over):
            done, count = done + self.rows(done), count + 1
        return count + math.ceil(max(rows - done, 0) / self.full)
