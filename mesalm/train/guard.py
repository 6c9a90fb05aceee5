"""The guard that keeps a non-finite gradient out of the weights."""

from __future__ import annotations

import math


class NonFiniteGradientError(RuntimeError):
    """Report that too many steps in a row had a gradient that was not finite."""


class GradientGuard:
    """Count the steps whose gradient is not finite and stop the run after too many in a row."""

    def __init__(self, limit: int) -> None:
        """Allow fewer than ``limit`` skipped steps in a row."""
        if limit < 1:
            raise ValueError(f"limit: must be at least 1, not {limit}")
        self.limit = limit
        self.skipped = 0
        self.in_row = 0

    def accepts(self, norm: float) -> bool:
        """Return whether a step with this gradient norm may update the weights.

        Raises NonFiniteGradientError when this is the ``limit``-th refusal in a row.
        """
        if math.isfinite(norm):
            self.in_row = 0
            return True
        self.skipped += 1
        self.in_row += 1
        if self.in_row >= self.limit:
            raise NonFiniteGradientError(
                f"the gradient was not finite in {self.in_row} steps in a row; lower optim.learning_rate, "
                "check the data, or raise train.max_skipped"
            )
        return False

    def state_dict(self) -> dict[str, int]:
        """Return the counters for a checkpoint."""
        return {"skipped": self.skipped, "in_row": self.in_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up the counters of a checkpoint."""
        self.skipped = int(state["skipped"])
        self.in_row = int(state["in_row"])
