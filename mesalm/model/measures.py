"""Measurements of a model's layers in the last forward pass: solver steps, gates and accuracy of one solve."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .mixer_gated import GatedMixer
from .mixer_mesa import MesaMixer


def _mean(values: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean of tensors of equal shape, which layers may have on different devices."""
    return torch.stack([value.to(values[0].device) for value in values]).mean(0)


class Measures(nn.Module):
    """Mixin for models that reports what their mixers measured, and the size of their states."""

    def state_numbers(self, length: int) -> int:
        """Return how many numbers a cache holds per sequence after ``length`` tokens."""
        mixers: list[Any] = [block.mixer for block in self.modules() if hasattr(block, "mixer")]
        return sum(mixer.state_numbers(length) for mixer in mixers)

    def solver_steps(self) -> float | None:
        """Return the mean number of solver steps in the last forward pass, None without mesa layers."""
        steps = [module.solver_steps for module in self.modules() if isinstance(module, MesaMixer)]
        known = [step.float().mean() for step in steps if step is not None and step.numel()]
        return _mean(known).item() if known else None

    def forget_gates(self) -> tuple[float, float] | None:
        """Return the mean and the saturated share of the forget gates last sampled, None without gates."""
        samples = [module.gate_sample for module in self.modules() if isinstance(module, GatedMixer)]
        known = [sample for sample in samples if sample is not None]
        if not known:
            return None
        mean, saturated = _mean(known).tolist()
        return mean, saturated

    def sample_solver(self, number: int) -> MesaMixer | None:
        """Ask one mesa layer to measure how well it solves its next row, and return the layer; None without one.

        The result is then in the layer's `solver_sample`. ``number`` cycles through layers first, then key heads. All
        layers with gates also sample them on the next row, for `forget_gates`. Compiled layers measure nothing.
        """
        for module in self.modules():
            if isinstance(module, GatedMixer):
                module.sample_gates, module.gate_sample = True, None
        mixers = [module for module in self.modules() if isinstance(module, MesaMixer)]
        if not mixers:
            return None
        turn, place = divmod(number, len(mixers))
        chosen = mixers[place]
        chosen.sample_head, chosen.solver_sample = turn % chosen.groups, None
        return chosen
