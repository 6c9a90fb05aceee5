"""A running average of a model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mesalm.train.checkpoint import load_weights

FOLDER = "average"
"""The folder in a checkpoint that holds the averaged weights."""


class WeightAverage:
    """The exponential moving average of a model's weights over optimiser steps, starting after the first step.

    Each step moves the average by 1 - ``decay`` towards the weights. ``model`` is a copy that holds the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._source = model
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.model: Any = self._averaged.module.eval()

    def follow(self, optimiser: torch.optim.Optimizer) -> None:
        """Update the average after each step of an optimiser."""
        optimiser.register_step_post_hook(lambda *_: self._averaged.update_parameters(self._source))

    def load(self, checkpoint: Path) -> None:
        """Load the average from a checkpoint."""
        load_weights(self.model, checkpoint / FOLDER)
        self._averaged.n_averaged.fill_(1)  # any number above 0: only the first update is special

    def prepare(self, accelerator: Accelerator) -> None:
        """Shard the average if accelerate shards the model. Must be called on all processes."""
        if accelerator.is_fsdp2:
            # there is no backward pass that would reshard the gathered weights
            fsdp2_prepare_model(accelerator, self.model).set_reshard_after_forward(True)
