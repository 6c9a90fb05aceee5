"""A running average of a model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mesalm.train.checkpoint import load_weights
from mesalm.train.sharded import local

FOLDER = "average"
"""The folder in a checkpoint that holds the averaged weights."""


class WeightAverage:
    """The exponential moving average of a model's weights over optimiser steps, starting after the first step.

    Each step moves the average by 1 - ``decay`` towards the weights, except those that are left out
    (`mesalm.train.step.update_where_finite`). ``model`` is a copy that holds the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._source, self._decay = model, decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._move)
        self._left_out: torch.Tensor | None = None
        self.model: Any = self._averaged.module.eval()

    def follow(self, optimiser: torch.optim.Optimizer) -> None:
        """Update the average after each step of an optimiser."""

        def update(*_: Any) -> None:
            self._left_out = getattr(optimiser, "found_inf", None)  # 1 or 0 on the device, where it is not yet known
            self._averaged.update_parameters(self._source)

        optimiser.register_step_post_hook(update)

    @torch.no_grad()
    def _move(self, averaged: Any, weights: Any, _: Any) -> None:
        if self._left_out is None:
            torch._foreach_lerp_(averaged, weights, 1.0 - self._decay)
            return
        share = (1.0 - self._decay) * (1.0 - self._left_out)
        for mean, weight in zip(averaged, weights, strict=True):
            local(mean).lerp_(local(weight), share.to(mean.dtype))

    def load(self, checkpoint: Path) -> None:
        """Load the average from a checkpoint."""
        load_weights(self.model, checkpoint / FOLDER)
        self._averaged.n_averaged.fill_(1)  # any number above 0: only the first update is special

    def prepare(self, accelerator: Accelerator) -> None:
        """Shard the average if accelerate shards the model. Must be called on all processes."""
        if accelerator.is_fsdp2:
            # there is no backward pass that would reshard the gathered weights
            fsdp2_prepare_model(accelerator, self.model).set_reshard_after_forward(True)
