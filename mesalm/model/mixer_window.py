"""Softmax attention over a sliding window."""

from __future__ import annotations

from typing import Any

from .mixer_softmax import SoftmaxMixer


class WindowMixer(SoftmaxMixer):
    """Softmax attention to the last `MesaConfig.window` tokens, including the token itself.

    Source: Beltagy et al. 2020 (arXiv 2004.05150), with transformers' masks and caches. The window counts positions in
    the row, so padding between tokens counts too.
    """

    name = "window"
    attention = "sliding_attention"

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        self.window: int = config.window

    def state_numbers(self, length: int) -> int:
        """Return how many numbers a cache holds per sequence after ``length`` tokens: the next token's window."""
        return super().state_numbers(min(length, self.window - 1))

    def flops(self, length: int, solver_steps: float = 0.0) -> float:
        """Return the FLOPs per token of a forward pass over `length` tokens: scores and read-out."""
        window = min(length, self.window)
        return super().flops(length) * (window / length) * (2.0 - window / length)
