"""Say how fast a call could be on a machine at best: its products at peak, or its traffic at full bandwidth.

The traffic counted is what no method can avoid: every operand read once and the output written once, and backward the
operands and the upstream gradient read and a gradient an operand written. States, factors and solutions are left out,
since a method may keep or rebuild them. So a share of the roof says how far a variant is from the machine's limit for
the operations that it chose to make, not from the best of all methods.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from measure import interleave
from torch import Tensor

CPU_BYTES, CUDA_BYTES = 1 << 28, 1 << 30
"""Bytes copied to measure the bandwidth: far more than any cache holds."""


@dataclass(frozen=True)
class Roof:
    """A machine's limits: operations per second of one large product, and bytes per second of a copy."""

    flops_per_s: float
    bytes_per_s: float

    def floor(self, flops: float, traffic: float) -> float:
        """Return the least seconds that `flops` operations and `traffic` bytes take."""
        return max(flops / self.flops_per_s, traffic / self.bytes_per_s)


def copy_rate(device: str, quick: bool = False) -> float:
    """Measure the bandwidth of a device in bytes per second, read and written ones, by copying a large block."""
    size = 1 << 20 if quick else CUDA_BYTES if torch.device(device).type == "cuda" else CPU_BYTES
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    spread = interleave({"": lambda: target.copy_(source)}, 3 if quick else 10, 2, device)[""]
    return 2.0 * size / spread.least


def least_traffic(read: Iterable[Tensor], output: Tensor) -> tuple[float, float]:
    """Count the bytes that a forward pass and that both passes cannot avoid, for the operands `read` and the output."""
    operands = float(sum(x.nbytes for x in read))
    forward = operands + output.nbytes
    return forward, forward + 2.0 * operands + output.nbytes
