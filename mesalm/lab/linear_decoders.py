"""Linear probes of the residual stream, fitted by least squares and scored on new sequences."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RANK_CUTOFF = 1e-7
"""Singular values below this share of the largest count as zero, so that empty parts of tokens have no effect."""


class Score(NamedTuple):
    """Half the summed squared error of a decoder on held-out rows, and the same for predicting the mean."""

    error: float
    variance: float

    @property
    def r2(self) -> float:
        """Return the share of the variance explained."""
        return 1.0 - self.error / self.variance


def decode(fit: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Score:
    """Fit targets [N, D] by an affine map of features [N, E] on one set of rows, and score it on another."""
    features, targets = (_with_one(fit[0]), fit[1].double())
    solved = torch.linalg.pinv(features, rtol=RANK_CUTOFF) @ targets
    left = test[1].double() - _with_one(test[0]) @ solved
    spread = test[1].double() - targets.mean(dim=0)
    return Score(*(0.5 * float(errors.square().sum(dim=-1).mean()) for errors in (left, spread)))


def _with_one(features: Tensor) -> Tensor:
    features = features.double()
    return torch.cat((features, torch.ones_like(features[:, :1])), dim=1)
