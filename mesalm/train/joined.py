"""One optimiser made of several, each over parameters of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


class JoinedOptimiser(torch.optim.Optimizer):
    """Several optimisers as one: it shares its groups and its state with them."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        """Join optimisers that have made no step yet."""
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state that `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    # torch overloads step for both kinds of closure
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step of every part; return what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def hidden_matrices(model: nn.Module) -> set[int]:
    """Return the ids of the weights of linear maps, the output head and what is tied to embeddings left out."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    outer = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding) or module is head}
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - outer
