"""Base class of tasks on vectors: settings that draw a batch from a generator, on the generator's device."""

from __future__ import annotations

import torch
from pydantic import Field

from mesalm.data.stream import Batch
from mesalm.settings import Settings


class VectorTask(Settings):
    """A task whose tokens are vectors; subclasses define ``name``, `draw` and the length.

    A batch of B sequences holds

    - ``inputs``, float32 [B, T, input_size]: the tokens;
    - ``targets``, float32 [B, T, input_size]: the prediction target at each token, given the tokens up to it;
    - ``weights``, float32 [B, T], if positions are not scored equally: the weight of each position's error;
    - ``places``, int64 [B, T], if some tokens are learned by the model: 0 for a token given in ``inputs``, j > 0 for
      learned vector j, where ``inputs`` holds zeros.
    """

    size: int = Field(default=10, ge=1, description="Entries of a token.")
    noise: float = Field(default=0.01, ge=0, description="Standard deviation of the noise, per entry.")

    @property
    def input_size(self) -> int:
        """Return the number of entries of a token."""
        return self.size

    @property
    def sequence_length(self) -> int:
        """Return the number of tokens T per sequence."""
        raise NotImplementedError

    @property
    def learned_vectors(self) -> int:
        """Return the number of learned vectors used in the sequences."""
        return 0

    def draw(self, rows: int, generator: torch.Generator) -> Batch:
        """Draw a batch of ``rows`` sequences on the generator's device."""
        raise NotImplementedError


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> torch.Tensor:
    """Draw from [-bound, bound], float32 of the given shape."""
    return (2.0 * torch.rand(shape, generator=generator, device=generator.device) - 1.0) * bound


def normal(shape: tuple[int, ...], deviation: float, generator: torch.Generator) -> torch.Tensor:
    """Draw from N(0, deviation^2), float32 of the given shape; deviation 0 gives zeros but uses the generator."""
    return torch.randn(shape, generator=generator, device=generator.device) * deviation


def orthogonal(rows: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw orthogonal matrices from the Haar measure, float32 [rows, size, size].

    The Q of a Gaussian matrix is Haar distributed only once R's diagonal is made positive (Mezzadri 2007,
    arXiv math-ph/0609050).
    """
    q, r = torch.linalg.qr(normal((rows, size, size), 1.0, generator))
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
