"""Context parallelism: each process reads one shard of every row and passes on what later shards need.

Recurrent mixers pass on a state [B, G, K, D] and a decay or matrix per key head, whatever the length; convolutions
their last inputs; softmax attention all its keys and values. All go through one exchange, `_Gather`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunk_states import compute_dtype, gate_floor, without_autocast


@dataclass(frozen=True)
class Shard:
    """The part of each row that process ``rank`` of ``size`` processes reads: ``length`` tokens.

    A method that exchanges tensors must be called on all processes of the group, in the same order; its gradients too.
    """

    group: Any
    rank: int
    size: int
    length: int

    @classmethod
    def of(cls, group: Any, whole: int) -> Shard:
        """Return this process's shard of rows of ``whole`` tokens.

        Raises:
            ValueError: this process is not in the group, or the rows do not divide evenly.
        """
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        if rank < 0:
            raise ValueError("context: this process is not in the group; pass a group that contains it")
        if whole == 0 or whole % size:
            raise ValueError(f"context: rows of {whole} tokens do not divide evenly over {size} processes; pad them")
        return cls(group, rank, size, whole // size)

    @property
    def begin(self) -> int:
        """Return the index in the row of the shard's first token."""
        return self.rank * self.length

    def cut(self, rows: Tensor, before: int = 0) -> Tensor:
        """Return this shard of [B, T, ...] with ``before`` extra tokens before it, -1 before the start of the row."""
        if before:
            filler = rows.new_full((rows.shape[0], before, *rows.shape[2:]), -1)
            rows = torch.cat((filler, rows), dim=1)
        return rows.narrow(1, self.begin, before + self.length)

    def last_before(self, inputs: Tensor, count: int) -> Tensor:
        """Return the ``count`` inputs before this shard, [B, count, D], with zeros before the start of the row."""
        tails = self._gather(inputs[:, -count:])
        empty = inputs.new_zeros(inputs.shape[0], count, inputs.shape[2])
        return torch.cat((empty, *tails), dim=1).narrow(1, self.rank * tails[0].shape[1], count)

    def all_until_here(self, inputs: Tensor) -> Tensor:
        """Gather [B, heads, length, D] from this and all earlier shards, as [B, heads, begin + length, D]."""
        return torch.cat(self._gather(inputs)[: self.rank + 1], dim=2)

    def state_before(self, own: Tensor, transition: Tensor) -> Tensor:
        """Return the state after all earlier shards, [B, G, K, D], float32 or better.

        The recurrence is linear, so each shard's final state from zero and its transition suffice.

        Args:
            own: the state after this shard's tokens, starting from zero, [B, G, K, D].
            transition: maps an earlier state over these tokens: a matrix, [B, G, K, K], or a factor, [B, G, 1, 1].
        """
        parts = self._gather(torch.cat((own.flatten(2), transition.flatten(2)), dim=-1))
        states = [torch.zeros_like(own)]
        for part in parts[:-1]:
            left, factor = (
                part[..., : own[0, 0].numel()].view_as(own),
                part[..., own[0, 0].numel() :].view_as(transition),
            )
            with without_autocast(own.device):
                carried = factor * states[-1] if factor.shape[-1] == 1 else factor @ states[-1]
            states.append(carried + left)
        # indexed from the stack, so that gradients of every process pass through the exchange
        return torch.stack(states)[self.rank]

    def _gather(self, own: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = _Gather.apply(own, self)
        return parts


def leave_behind(
    key: Tensor, written: Tensor, log_forget: Tensor | None, input_gate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the state after the tokens, starting from zero, [B, G, K, D], and the total decay, [B, G, 1, 1].

        S_T = sum_s (prod_{u > s} gamma_u) beta_s k_s w_s'      decay = prod_u gamma_u

    key [B, T, G, K]; written [B, T, G, D]: the vector w_s that each token writes with its key; gates [B, T, G] or None,
    as for the operators, clamped as in `chunk_states.chunk_decay`.
    """
    dtype = compute_dtype(key.dtype)
    floor = gate_floor(dtype)
    if log_forget is None:
        log_forget = key.new_zeros(key.shape[:3], dtype=dtype)

    def factor(log: Tensor) -> Tensor:
        return log.exp().masked_fill(log < floor, 0.0).to(dtype)

    with without_autocast(key.device):
        total = log_forget.to(torch.float64).clamp(min=floor - 1.0).cumsum(1)
        weight = factor(total[:, -1:] - total)
        if input_gate is not None:
            weight = weight * input_gate.to(dtype)
        state = torch.einsum("btgk,btgd->bgkd", key.to(dtype) * weight.unsqueeze(-1), written.to(dtype))
    return state, factor(total[:, -1])[..., None, None]


def share_of_loss(
    group: Any,
    labels: Tensor | None,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
) -> dict[str, Any]:
    """Return the keyword arguments of transformers' loss for this process's shard of rows with labels [B, T].

    The loss is then the shard's share of the loss of the rows, times the number of processes in the group.
    """
    if shift_labels is None:
        assert labels is not None
        shift_labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=ignore_index)
    if num_items_in_batch is None:
        num_items_in_batch = (shift_labels != ignore_index).sum()
    shard = Shard.of(group, shift_labels.shape[1])
    return {
        "shift_labels": shard.cut(shift_labels).contiguous(),
        "num_items_in_batch": num_items_in_batch / shard.size,
        "ignore_index": ignore_index,
    }


class _Gather(torch.autograd.Function):
    """All-gather of a tensor in rank order; the backward pass sums the gradients of each process's tensor."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, shard: Shard) -> tuple[Tensor, ...]:
        ctx.shard = shard
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(shard.size)]
        dist.all_gather(parts, own.contiguous(), group=shard.group)
        return tuple(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor, None]:
        total = torch.empty_like(upstreams[0], memory_format=torch.contiguous_format)
        dist.reduce_scatter(total, [upstream.contiguous() for upstream in upstreams], group=ctx.shard.group)
        return total, None
