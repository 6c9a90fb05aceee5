"""Cut the operands of mesa attention into problems, with the ridge scaled to the identity.

With L = diag(ridge), the system (H + L) x = q is (H' + I) x' = q' for k' = L^-1/2 k, q' = L^-1/2 q,
x = L^-1/2 x', and the read-out is unchanged, G' x = G'' x' with G'' = L^-1/2 G.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .chunk_states import (
    CHUNK,
    Decay,
    chunk_count,
    chunk_decay,
    repeat_heads,
    repeat_rows,
    scan_states,
    to_chunks,
)
from .mesa_cg import Systems
from .operator_records import Operands

SHORT = 32
"""Tokens in a chunk if keys have at most this many dimensions. A product with the start state is then cheap compared
with one over the chunk's tokens, and decay varies less over fewer tokens, so the shared factor needs fewer products."""
GROWTH = (1.25, 1 / 24)
"""Relative error of a solution with a gram state summed in float32, in rounding units of the state's Frobenius norm: a
constant, and a share per chunk in the sum. About the worst that equal keys caused (docs/solver.md)."""


def problem_length(key_size: int) -> int:
    """Return the chunk length for keys of `key_size` dimensions."""
    return SHORT if key_size <= SHORT else CHUNK


class Problems(NamedTuple):
    """The chunked operands and states of one call; shapes as in `chunk_states` and `mesa_cg`.

    key, gram, cross, last_gram and last_cross are scaled by the ridge; log_forget `[P, C]` is float64. initial
    `[B, G, K, K]`: the caller's gram state.
    """

    key: Tensor
    value: Tensor
    input_gate: Tensor
    log_forget: Tensor
    decay: Decay
    gram: Tensor
    cross: Tensor
    last_gram: Tensor
    last_cross: Tensor
    inverse_root: Tensor
    initial: Tensor

    def systems(self, rows: int) -> Systems:
        """Return the matrices of the problems, each with `rows` right-hand sides."""
        written = self.key * self.input_gate
        start = repeat_rows(self.decay.start, rows)
        return Systems(self.gram, self.key, written, self.decay.mask, start, self.inverse_root)

    def largest_eigenvalue(self) -> Tensor:
        """Return an upper bound on the eigenvalues of H_t + I over the tokens of each problem: `[P]`."""
        size = self.input_gate * self.key.square().sum(-1, keepdim=True)
        inside = torch.bmm(self.decay.mask, size).amax((1, 2))
        return 1.0 + inside + self._carried()

    def gram_error(self) -> Tensor:
        """Estimate the relative error of x that the rounding of H_t causes, per problem: `[P]`; 0 in float64.

        Only the sum over earlier chunks counts: errors of a chunk's own keys stay in the directions of keys.
        """
        unit = torch.finfo(self.gram.dtype).eps if self.gram.dtype == torch.float32 else 0.0
        whole = self.decay.whole
        chunks, _ = scan_states(torch.ones_like(whole), whole, whole.new_ones(*self.initial.shape[:2], 1, 1))
        return unit * self._carried() * (GROWTH[0] + GROWTH[1] * chunks.flatten())

    def fine_gram(self) -> Tensor:
        """Return `gram` `[P, K, K]` as it is when summed in float64."""
        keys, (_, G, K, _) = self.key.double(), self.initial.shape
        update = torch.bmm((keys * (self.input_gate * self.decay.end)).mT, keys)
        root = self.inverse_root.view(G, -1, K)[:, 0].double()
        symmetric = 0.5 * (self.initial + self.initial.mT).double() * (root.unsqueeze(-1) * root.unsqueeze(-2))
        return scan_states(update, self.decay.whole.double(), symmetric)[0]

    def _carried(self) -> Tensor:
        return self.decay.start.amax((1, 2)) * torch.linalg.vector_norm(self.gram.flatten(1), dim=1)

    def ridge_ratio(self) -> Tensor:
        """Return sqrt(largest ridge / smallest ridge) `[P]`, which bounds how much scaling changes relative errors."""
        return (self.inverse_root.amax(-1) / self.inverse_root.amin(-1)).squeeze(-1)


def cut_problems(operands: Operands, dtype: torch.dtype, chunk: int = CHUNK) -> Problems:
    """Cut key, value and gates into problems, scale them by the ridge and scan the states over the chunks."""
    B, T, G, _ = operands.key.shape
    root = operands.ridge.to(dtype).sqrt()  # [G, K]
    inverse_root = repeat_heads(1.0 / root, B, chunk_count(T, chunk)).unsqueeze(1)  # [P, 1, K]
    keys = to_chunks(operands.key, G, dtype, chunk).mul_(inverse_root)
    values = to_chunks(operands.value, G, dtype, chunk)
    gate = to_chunks(operands.input_gate.unsqueeze(-1), G, dtype, chunk)
    forget = to_chunks(operands.log_forget.unsqueeze(-1), G, torch.float64, chunk).squeeze(-1)
    decay = chunk_decay(forget, dtype)
    fading = (keys * (gate * decay.end)).mT
    row, column = root.unsqueeze(-1), root.unsqueeze(-2)
    symmetric = 0.5 * (operands.gram + operands.gram.mT).to(dtype) / (row * column)
    grams, last_gram = scan_states(torch.bmm(fading, keys), decay.whole, symmetric)
    crosses, last_cross = scan_states(torch.bmm(fading, values), decay.whole, operands.cross.to(dtype) / row)
    return Problems(
        keys,
        values,
        gate,
        forget,
        decay,
        grams,
        crosses,
        last_gram.mul_(row * column),
        last_cross.mul_(row),
        inverse_root,
        operands.gram,
    )
