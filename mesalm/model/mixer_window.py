"""Softmax attention over a sliding window."""

from __future__ import annotations

from typing import Any

from .mixer_softmax import SoftmaxMixer


class WindowMixer(SoftmaxMixer):
    """Attend to the last `MesaConfig.window` tokens, the token itself among them.

    Source: Beltagy et al. 2020 (arXiv 2004.05150), with transformers' masks and caches. The window counts places in the
    row, so that padding between tokens takes up places too.
    """

    name = "window"
    attention = "sliding_attention"

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        self.window: int = config.window

    def state_numbers(self, length: int) -> int:
        """Return how many numbers a cache holds of one sequence after ``length`` tokens: the next token's window."""
        return super().state_numbers(min(length, self.window - 1))

    def flops(self, length: int) -> float:
        """Return the operations per token of one forward pass over `length` tokens: scores and read-out."""
        window = min(length, self.window)
        return super().flops(length) * (window / length) * (2.0 - window / length)
