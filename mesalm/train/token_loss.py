"""The training loss of a language model, computed without all logits in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class TokenLoss:
    """Next-token cross-entropy plus z-loss, in float32 (float64 for float64 logits).

    If a batch has more than ``logits`` logits, they are computed for some tokens at a time, and again in the backward
    pass. ``z_loss`` is the weight of the mean squared log of the softmax's normaliser (Chowdhery et al. 2022, arXiv
    2204.02311); it is omitted without gradients, so that validation measures cross-entropy.
    """

    logits: int
    z_loss: float = 0.0

    def __call__(
        self,
        head: Callable[[torch.Tensor], torch.Tensor],
        hidden: torch.Tensor,
        labels: torch.Tensor | None = None,
        vocab_size: int = 1,
        num_items_in_batch: torch.Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the mean over the scored tokens, a scalar in nats, or the sum over ``num_items_in_batch``.

        ``head`` maps hidden states [N, hidden] to logits [N, vocabulary]. ``labels`` [B, T] are shifted here;
        ``shift_labels`` are already shifted. Labels equal to ``ignore_index`` are not scored.
        """
        if shift_labels is None:
            assert labels is not None
            shift_labels = pad(labels, (0, 1), value=ignore_index)[..., 1:]
        targets = shift_labels.flatten()
        hidden = hidden.flatten(0, -2)
        z_loss = self.z_loss if torch.is_grad_enabled() else 0.0

        def part(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            logits = head(hidden)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")
            if z_loss:
                loss = loss + z_loss * (logits.logsumexp(-1).square() * (targets != ignore_index)).sum()
            return loss

        size = max(1, self.logits // vocab_size)
        if size >= len(targets):
            total = part(hidden, targets)
        else:
            pieces = zip(hidden.split(size), targets.split(size), strict=True)
            parts = [checkpoint(part, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
            total = torch.stack(parts).sum()
        return total / ((targets != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch)
