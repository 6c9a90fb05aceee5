"""Where heads read from: by distance in the read-out, and by tap in the short convolution before it.

A head that binds neighbouring tokens pairs each token with its predecessor, which creates an in-context training set
of (token, next token) pairs (von Oswald et al. 2023, arXiv 2309.05858, section 5). A softmax head does so by attending
one token back; a mesa or linear head does so in its keys, whose convolution mixes in previous tokens while the value
remains that of the token itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mesalm.lab.inspection.capture import is_recurrent, mixers_of
from mesalm.model.mixers import MIXERS

LAGS = (0, 1, 2, 3, 8, 32)
"""The smallest distance in each bin; the last bin is unbounded."""
BINDS = 0.5
"""Minimum share at distance 1 for a head to count as binding neighbours."""


@dataclass(frozen=True)
class Reach:
    """Where one key head reads from.

    lags: shares of the read-out's |weights| by distance, late in the window, in the bins of `LAGS`. key_taps: shares of
    the |weights| in the convolution of the head's key channels by lag, None without a convolution.
    """

    layer: int
    head: int
    mixer: str
    lags: list[float]
    key_taps: list[float] | None

    @property
    def binds(self) -> bool:
        """Return whether the head pairs tokens with their predecessors, in its read-out or its key convolution."""
        in_keys = self.key_taps is not None and MIXERS[self.mixer].recurrent and self.key_taps[1] >= BINDS
        return self.lags[1] >= BINDS or in_keys


@dataclass
class ReachSamples:
    """The shares of one layer's key heads, `[S, G, L]` per window."""

    layer: int
    mixer: str
    key_taps: Tensor | None
    shares: list[Tensor] = field(default_factory=list)

    def reaches(self) -> list[Reach]:
        """Return where each key head reads from, averaged over the samples."""
        mean = torch.cat(self.shares).mean(0)
        taps = [None] * len(mean) if self.key_taps is None else self.key_taps.tolist()
        return [Reach(self.layer, head, self.mixer, shares, taps[head]) for head, shares in enumerate(mean.tolist())]


def lag_shares(weights: Tensor) -> Tensor:
    """Return the shares of |weights| `[..., t + 1]` of tokens 0 to t by distance from t: `[..., len(LAGS)]`.

    Rows of zeros give zeros.
    """
    size = weights.abs().flip(-1)  # distance 0 first
    length = size.shape[-1]
    ends = [*LAGS[1:], length]
    bins = [size[..., first : max(first, end)].sum(-1) for first, end in zip(LAGS, ends, strict=True)]
    shares = torch.stack(bins, -1)
    return shares / shares.sum(-1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)


def key_taps(mixer: Any) -> Tensor | None:
    """Return the shares of |weights| in the convolution of each key head by lag, `[G, size]`; None without one."""
    conv = getattr(mixer, "conv", None)
    if conv is None:
        return None
    heads, groups, size = mixer.heads, mixer.groups, mixer.head_dim
    # one convolution covers queries, keys and, if they are convolved, values
    keys = conv.weight.detach()[heads * size : (heads + groups) * size]
    weight = keys.cpu().double().abs().view(groups, size, -1).mean(1)
    return weight / weight.sum(-1, keepdim=True)


@contextmanager
def attention_watched(model: nn.Module, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within the context, call `see(layer, weights)` with the weights `[B, H, T, T]` of each softmax layer it runs.

    Only eager attention returns weights, so the model uses it for the time being.
    """
    mixers = [mixer for mixer in mixers_of(model) if not is_recurrent(mixer)]
    if not mixers:
        yield
        return
    any_model: Any = model
    usual = any_model.config._attn_implementation
    any_model.set_attn_implementation("eager")
    hooks = [mixer.register_forward_hook(lambda module, _, out: see(module.layer_idx, out[1])) for mixer in mixers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        any_model.set_attn_implementation(usual)


def attention_shares(weights: Tensor, groups: int, tokens: list[int]) -> Tensor:
    """Return the shares of attention weights `[H, T, T]` at some tokens by key head and distance: `[S, G, L]`."""
    rows = [lag_shares(weights[:, t, : t + 1].detach().cpu().double()) for t in tokens]
    return torch.stack(rows).unflatten(1, (groups, -1)).mean(2)
