"""What the layers of a model measured in the last forward pass: solver steps, gates, and how well one was solved."""

from __future__ import annotations

import torch
from torch import nn

from .mixer_gated import GatedMixer
from .mixer_mesa import MesaMixer


class Measures(nn.Module):
    """A model that tells what its mixers measured."""

    def solver_steps(self) -> float | None:
        """Return the mean steps of the mesa solves in the last forward pass, None without a mesa layer."""
        steps = [module.solver_steps for module in self.modules() if isinstance(module, MesaMixer)]
        known = [step.float().mean() for step in steps if step is not None and step.numel()]
        return float(torch.stack(known).mean()) if known else None

    def forget_gates(self) -> tuple[float, float] | None:
        """Return the mean of the forget gates last sampled and the share that is saturated, None without gates."""
        samples = [module.gate_sample for module in self.modules() if isinstance(module, GatedMixer)]
        known = [sample for sample in samples if sample is not None]
        if not known:
            return None
        mean, saturated = torch.stack(known).mean(0).tolist()
        return mean, saturated

    def sample_solver(self, number: int) -> MesaMixer | None:
        """Let the mesa layer whose turn it is measure the next row it solves, and return it; None without one.

        Its `solver_sample` then holds the result. Layers and then key heads take turns by ``number``. All layers with
        gates measure those of the next row, for `forget_gates`. Nothing is measured where torch.compile runs a layer.
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
