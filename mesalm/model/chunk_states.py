"""Cut sequences into chunks and carry matrix states from chunk to chunk.

Every chunk-parallel path (mesa, gated linear attention) works on *problems*: one problem is one chunk of one
key head of one sequence. Problems are ordered by head first, `P = G * B * N`, because memory length differs
most between heads: neighbouring problems are then about equally hard to solve.

Inside a chunk the state after token t is

    S_t = start_t S_0 + sum_{s <= t} mask_ts (token s's contribution)

where `start_t` is the decay since the chunk began and `mask_ts` the decay from s to t.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 64
"""Tokens in a chunk; the chunk states take K * (K + V) / CHUNK numbers per token and key head."""
CACHED = 1 << 17
"""Numbers per operand in a block of problems on a CPU, so that intermediate results stay in the CPU's cache."""


class Decay(NamedTuple):
    """The forgetting inside each of P chunks of C tokens, as factors in [0, 1].

    mask `[P, C, C]` from token s (column) to token t (row), 0 above the diagonal; start `[P, C, 1]` from the
    chunk's beginning to after token t; end `[P, C, 1]` from token s to the chunk's end; whole `[P, 1, 1]`.
    """

    mask: Tensor
    start: Tensor
    end: Tensor
    whole: Tensor

    def take(self, block: slice) -> Decay:
        """Select problems."""
        return Decay(*(factor[block] for factor in self))


def cache_blocks(operand: Tensor) -> list[slice]:
    """Cut the P problems of `operand` `[P, rows, columns]` into blocks that fit a CPU's cache; one block on a GPU."""
    P, numbers = operand.shape[0], operand.shape[1] * operand.shape[2]
    size = max(1, CACHED // numbers) if operand.device.type == "cpu" else P
    return [slice(first, first + size) for first in range(0, P, size)]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of states and solves for inputs of `dtype`: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that disables autocast; the meta device has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def chunk_count(length: int, chunk: int = CHUNK) -> int:
    """Return the number of chunks of `chunk` tokens that cover `length` tokens."""
    return (length + chunk - 1) // chunk


def chunk_length(length: int, chunk: int = CHUNK) -> int:
    """Return the chunk length for `length` tokens: a sequence shorter than `chunk` is a single chunk."""
    return min(chunk, length)


def to_chunks(x: Tensor, groups: int, dtype: torch.dtype, chunk: int = CHUNK) -> Tensor:
    """Copy `[B, T, heads, D]` to problems `[P, R * C, D]`, with R = heads / groups and zeros for tokens past T.

    A problem's rows hold the R query heads of its key head one after the other. C is `chunk`, or T if that is less.
    """
    B, T, heads, D = x.shape
    N, C, R = chunk_count(T, chunk), chunk_length(T, chunk), heads // groups
    missing = N * C - T
    if missing:
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, missing))
    cut = x.reshape(B, N, C, groups, R, D).permute(3, 0, 1, 4, 2, 5)
    # Always a copy: callers scale the result in place.
    copied = cut.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return copied.view(groups * B * N, R * C, D)


def from_chunks(x: Tensor, batch: int, length: int, groups: int, dtype: torch.dtype, chunk: int = CHUNK) -> Tensor:
    """Undo `to_chunks`: problems `[P, R * C, D]` to a contiguous `[B, T, heads, D]` of `dtype`."""
    N, C, D = chunk_count(length, chunk), chunk_length(length, chunk), x.shape[-1]
    R = x.shape[-2] // C
    joined = x.reshape(groups, batch, N, R, C, D).permute(1, 2, 4, 0, 3, 5)
    joined = joined.reshape(batch, N * C, groups * R, D)[:, :length]
    return joined.to(dtype).contiguous()


def repeat_heads(x: Tensor, batch: int, chunks: int) -> Tensor:
    """Expand one value per key head `[G, ...]` to one value per problem `[P, ...]`."""
    return x.repeat_interleave(batch * chunks, dim=0)


def gate_floor(dtype: torch.dtype) -> float:
    """Return the log-decay below which a factor counts as zero.

    exp(-60) is 9e-27, far below what float32 can add to a token's own weight. Flushing it to zero keeps denormal
    numbers, which are a hundred times slower on CPUs, out of the matrix products.
    """
    return -700.0 if dtype == torch.float64 else -60.0


def is_restart(log_forget: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask of the gates whose factor counts as zero in `dtype`."""
    return log_forget < gate_floor(dtype)


def chunk_decay(log_forget: Tensor, dtype: torch.dtype) -> Decay:
    """Build the decay factors of chunks from log gates `[P, C]` (any value <= 0, -inf included).

    Gates are clamped just below `gate_floor`, where their factor is already zero. So sums stay finite and no
    infinities are subtracted. The sums are float64, because many large negative gates in a chunk would otherwise
    cost the small ones their digits.
    """
    floor = gate_floor(dtype)
    least = math.exp(floor)
    total = log_forget.to(torch.float64).clamp(min=floor - 1.0).cumsum(-1)
    P, C = total.shape
    future = torch.full((C, C), -torch.inf, dtype=dtype, device=total.device).triu(1)
    mask = torch.empty(P, C, C, dtype=dtype, device=total.device)
    last = total[:, -1:]

    def factor(log: Tensor) -> Tensor:
        # Half of the mask is -inf, and exp of an infinity is ten times slower on CPUs than exp of a finite number.
        kept = log.clamp_(min=floor - 1.0).exp_()
        return torch.nn.functional.threshold(kept, least, 0.0, inplace=True)

    for block in cache_blocks(mask):
        passed = total[block]
        factor(mask[block].copy_(passed.unsqueeze(-1) - passed.unsqueeze(-2)).add_(future))
    return Decay(
        mask,
        factor(total.to(dtype, copy=True)).unsqueeze(-1),
        factor((last - total).to(dtype)).unsqueeze(-1),
        factor(last.to(dtype, copy=True)).unsqueeze(-1),
    )


def scan_states(update: Tensor, whole: Tensor, initial: Tensor, *, backward: bool = False) -> tuple[Tensor, Tensor]:
    """Scan a state over the chunks: next = whole * state + update.

    update `[P, K, D]` and whole `[P, 1, 1]` by problem, initial `[B, G, K, D]`. Returns the state at every
    chunk's start `[P, K, D]` and after the last chunk `[B, G, K, D]`. With `backward` the scan carries the state's
    gradient from the last chunk to the first: `initial` is then the gradient of the final state, and the gradients at
    every chunk's end and of the initial state are returned.
    """
    B, G, K, D = initial.shape
    by_chunk = update.view(G, B, -1, K, D)
    factor = whole.view(G, B, -1, 1, 1)
    edges = torch.empty_like(by_chunk)
    state = initial.transpose(0, 1).to(update.dtype, memory_format=torch.contiguous_format, copy=True)
    chunks = range(by_chunk.shape[2])
    for n in reversed(chunks) if backward else chunks:
        edges[:, :, n] = state
        state = torch.addcmul(by_chunk[:, :, n], state, factor[:, :, n])
    return edges.view(-1, K, D), state.transpose(0, 1).contiguous()


def apply_mask(scores: Tensor, mask: Tensor) -> Tensor:
    """Multiply scores `[P, R * C, C]` in place by the mask `[P, C, C]` of their problem."""
    P, M, C = scores.shape
    if M == C:
        return scores.mul_(mask)
    scores.view(P, M // C, C, C).mul_(mask.unsqueeze(1))
    return scores


def repeat_rows(column: Tensor, rows: int) -> Tensor:
    """Repeat a column `[P, C, 1]` for the query heads of each problem: `[P, rows, 1]`."""
    copies = rows // column.shape[1]
    return column if copies == 1 else column.repeat(1, copies, 1)


def read_states(rows: Tensor, keys: Tensor, values: Tensor, starts: Tensor, decay: Decay) -> Tensor:
    """Compute `S_t' rows_t` for every row, where S_t starts the chunk at `starts` and each token adds keys_s values_s'.

    rows `[P, M, K]`, keys `[P, C, K]`, values `[P, C, D]`, starts `[P, K, D]`; returns `[P, M, D]`.
    """
    scores = apply_mask(torch.bmm(rows, keys.mT), decay.mask)
    carried = torch.bmm(rows * repeat_rows(decay.start, rows.shape[1]), starts)
    return carried.baddbmm_(scores, values)
