"""Layers that every mixer shares and transformers does not have."""

from __future__ import annotations

import torch
from torch import nn

from .chunk_states import compute_dtype, without_autocast


class ScaledEmbedding(nn.Embedding):
    """An embedding multiplied by `embed_scale`, so that a small tied head and a large residual stream agree.

    Adapters that look up tokens themselves read the factor by this name.
    """

    def __init__(self, tokens: int, width: int, padding_id: int | None, scale: float):
        super().__init__(tokens, width, padding_id)
        self.embed_scale = scale

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, [..., width], of ids [...]."""
        return super().forward(input_ids) * self.embed_scale


class ResidualProjection(nn.Linear):
    """A map back into the residual stream; its initial weights shrink with the model's depth."""


class GateProjection(nn.Linear):
    """A map from tokens to gates in float32, whatever dtype the model has; in float64 if it has that.

    In bfloat16 a gate near 1 has a memory of at most 256 tokens, so neither autocast nor half weights may touch it.

    Args:
        width: size of a token.
        gates: number of gates.
        start: the initial bias.
    """

    def __init__(self, width: int, gates: int, start: float = 0.0):
        super().__init__(width, gates, dtype=compute_dtype(torch.get_default_dtype()))
        self.start = start

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the gates before their activation, [..., gates] float32, or float64 of such inputs."""
        dtype = compute_dtype(inputs.dtype)
        with without_autocast(inputs.device):
            return nn.functional.linear(inputs.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class ShortConvolution(nn.Module):
    """A causal convolution of each channel with its last few values, then SiLU.

    y_t = silu(sum_j weight[:, j] x_{t-j}), j = 0 .. size - 1, where x before the start of a document is 0.

    Args:
        channels: number of channels D.
        size: width of the kernel, at least 2.

    The weights are [D, size], lag 0 first.
    """

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.zeros(channels, size))

    @property
    def state_numbers(self) -> int:
        """Return how many numbers a cache holds for it: the inputs that its next output needs."""
        return self.weight.shape[0] * (self.size - 1)

    def forward(self, inputs: torch.Tensor, past: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
        """Return the convolved inputs, [B, T, D], in the inputs' dtype.

        Args:
            inputs: [B, T, D].
            past: the size - 1 inputs before these, [B, size - 1, D], oldest first.
            segments: the document each token belongs to, [B, T] integers, or those of past and inputs; taps do not
                reach across. None: one.
        """
        length = inputs.shape[1]
        weight = self.weight.to(inputs.dtype)
        extended = torch.cat((past, inputs), dim=1)
        outputs = inputs * weight[:, 0]
        for lag in range(1, self.size):
            shifted = extended[:, self.size - 1 - lag : self.size - 1 - lag + length]
            if segments is not None:
                shifted = shifted * same_segment(segments, lag)[:, -length:].unsqueeze(-1)
            outputs = torch.addcmul(outputs, shifted, weight[:, lag])
        return nn.functional.silu(outputs)


def same_segment(segments: torch.Tensor, lag: int) -> torch.Tensor:
    """Return which tokens share their document with the token `lag` before them, [B, T] booleans."""
    same = torch.zeros_like(segments, dtype=torch.bool)
    same[:, lag:] = segments[:, lag:] == segments[:, :-lag]
    return same


def dpfp(inputs: torch.Tensor, order: int) -> torch.Tensor:
    """Map [..., D] to the features [..., 2 order D] of the deterministic parameter-free projection.

    With z = relu([x, -x]) of 2 D entries, feature (j, i) is z_i z_{i - j}, indices cyclic, j = 1 .. order (Schlag et
    al. 2021, arXiv 2102.11174, section 5.3). Features are not negative, and zeros give zeros.
    """
    both = torch.cat((inputs, -inputs), dim=-1).relu()
    return torch.cat([both * both.roll(shift, dims=-1) for shift in range(1, order + 1)], dim=-1)
