"""Sum the log gates of every chunk, and choose the reference decays of the shared factor (docs/solver.md)."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import locate


@triton.jit
def gate_kernel(
    log_forget,  # [B, T, G]
    high,  # [P, C] float32: the sum of log gates up to a token
    low,  # [P, C] float32: what float32 leaves of it
    log_ratio,  # [P, C] float32: log r_t, with r about the middle of each stretch between restarts
    stretch,  # [P, C] int32: restarts so far in the chunk
    start,  # [P] float32: log g*, the reference decay of the first stretch
    reach,  # [P] float32: the largest |log r_t|
    T,
    G,
    N,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
):
    """One program a problem; everything in float64 until it is stored."""
    p = tl.program_id(0).to(tl.int64)
    b, g, first, left = locate(p, T, G, N, C)
    t = tl.arange(0, C)
    log = tl.load(log_forget + (b * T + first + t) * G + g, mask=t < left, other=0.0).to(tl.float64)
    restart = log < FLOOR
    # Gates are clamped just under the floor, where their factor is zero already, so that no infinity is subtracted.
    total = tl.cumsum(tl.where(restart, FLOOR - 1.0, log), 0)
    whole = total.to(tl.float32)
    tl.store(high + p * C + t, whole)
    tl.store(low + p * C + t, (total - whole.to(tl.float64)).to(tl.float32))
    mild = tl.cumsum(tl.where(restart, 0.0, log), 0)
    number = tl.cumsum(restart.to(tl.int32), 0)
    # The sums fall, so a stretch begins at its largest and ends at its smallest.
    same = number[:, None] == number[None, :]
    largest = tl.max(tl.where(same, mild[None, :], -1e30), 1)
    least = tl.min(tl.where(same, mild[None, :], 1e30), 1)
    middle = 0.5 * (largest + least)
    ratio = (middle - mild).to(tl.float32)
    tl.store(log_ratio + p * C + t, ratio)
    tl.store(stretch + p * C + t, number)
    tl.store(start + p, tl.sum(tl.where(t == 0, middle, 0.0), 0).to(tl.float32))
    tl.store(reach + p, tl.max(tl.abs(ratio), 0))
