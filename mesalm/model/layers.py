"""Layers shared by all mixers that transformers does not provide."""

from __future__ import annotations

import torch
from torch import nn

from .chunk_states import compute_dtype, without_autocast


class ScaledEmbedding(nn.Embedding):
    """An embedding multiplied by `embed_scale`, so that the tied head has small weights and the residual stream large.

    Adapters that look up embeddings themselves read the attribute `embed_scale`.
    """

    def __init__(self, tokens: int, width: int, padding_id: int | None, scale: float):
        super().__init__(tokens, width, padding_id)
        self.embed_scale = scale

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, [..., width], of ids [...]."""
        return super().forward(input_ids) * self.embed_scale


class ResidualProjection(nn.Linear):
    """A linear map back into the residual stream; its initial weights are scaled down by the model's depth."""


class GateProjection(nn.Linear):
    """A linear map from tokens to gates, always in float32, or in float64 for float64 inputs.

    In bfloat16 a gate near 1 limits memory to 256 tokens, so neither autocast nor 16-bit weights apply here.

    Args:
        width: size of the input.
        gates: number of gates.
        start: the initial bias.
    """

    def __init__(self, width: int, gates: int, start: float = 0.0):
        super().__init__(width, gates, dtype=compute_dtype(torch.get_default_dtype()))
        self.start = start

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the gates before their activation, [..., gates], float32, or float64 for float64 inputs."""
        dtype = compute_dtype(inputs.dtype)
        with without_autocast(inputs.device):
            return nn.functional.linear(inputs.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class ShortConvolution(nn.Module):
    """A causal depthwise convolution followed by SiLU.

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
        """Return how many numbers a cache holds for this layer: the past inputs that the next output needs."""
        return self.weight.shape[0] * (self.size - 1)

    def forward(self, inputs: torch.Tensor, past: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
        """Return the convolved inputs, [B, T, D], in the inputs' dtype.

        Args:
            inputs: [B, T, D].
            past: the size - 1 inputs before these, [B, size - 1, D], oldest first.
            segments: each token's document, [B, T] integers, or [B, size - 1 + T] with those of past; the kernel does
                not cross documents. None: one document.
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
    """Return which tokens are in the same document as the token `lag` before them, [B, T] booleans."""
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
