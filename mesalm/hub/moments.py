"""Fit linear maps from features to targets, from moments accumulated batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHRINKAGE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidate ridges for a held-out fit, in units of the features' mean square."""


@dataclass(frozen=True)
class Moments:
    """Sums over tokens, float64: features with features [..., D, D], features with targets [..., D, E], and the squared
    length of the targets [...]."""

    square: Tensor
    cross: Tensor
    target: Tensor

    @classmethod
    def of(cls, features: Tensor, targets: Tensor) -> Moments:
        """Return the moments of features [N, ..., D] and targets [N, ..., E]."""
        features, targets = features.double().movedim(0, -2), targets.double().movedim(0, -2)
        return cls(features.mT @ features, features.mT @ targets, targets.square().sum((-2, -1)))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.square + other.square, self.cross + other.cross, self.target + other.target)

    def solve(self, shrinkage: float) -> Tensor:
        """Return the map [..., D, E] of least squared error plus `shrinkage` times its own square in feature units."""
        diagonal = self.square.diagonal(dim1=-2, dim2=-1)
        # features that are all zero leave nothing to solve for: the map is zero
        ridge = (shrinkage * diagonal.mean(-1)).clamp_min(1e-30)
        return torch.linalg.solve(self.square + torch.diag_embed(ridge.unsqueeze(-1).expand_as(diagonal)), self.cross)

    def error(self, weight: Tensor) -> Tensor:
        """Return the squared error [...] of a map [..., D, E]."""
        return self.target + (weight * (self.square @ weight - 2 * self.cross)).sum((-2, -1))


def solve_held_out(fit: Moments, check: Moments) -> tuple[Tensor, float]:
    """Return a map [D, E] and the share of the held-out targets' square that it explains.

    The ridge is the one of `SHRINKAGE` with the least error on `check`; the map is then fitted to both. If none of them
    is better there than the zero map, the zero map is returned with a share of 0.
    """
    errors = [float(check.error(fit.solve(shrinkage))) for shrinkage in SHRINKAGE]
    best = min(range(len(SHRINKAGE)), key=errors.__getitem__)
    total = float(check.target)
    if errors[best] >= total:
        return torch.zeros_like(fit.cross), 0.0
    return (fit + check).solve(SHRINKAGE[best]), 1.0 - errors[best] / total
