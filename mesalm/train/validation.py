"""Validation while training: the mean loss over held-out rows, in nats per token and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from mesalm.data.stream import epoch_batches
from mesalm.model.operator_inputs import unchecked_values
from mesalm.train.sharded import is_sharded
from mesalm.train.step import moved


def mean_loss(model: nn.Module, rows: Any, micro_rows: int, accelerator: Accelerator, share: tuple[int, int]) -> float:
    """Return the mean loss in nats per token over all rows, each scored once by those of a share (`data_share`).

    The rows must be of one length, so that each counts alike.
    """
    total = torch.zeros(2, device=accelerator.device)
    left = math.ceil(math.ceil(len(rows) / share[1]) / micro_rows)
    for batch in epoch_batches(rows, micro_rows, *share):
        count = len(batch["input_ids"])
        with unchecked_values():  # a run that diverges has a loss that is not finite, and no error
            loss = model(**moved(batch, accelerator.device)).loss.float()
        total += torch.stack([loss * count, total.new_tensor(float(count))])
        left -= 1
    if is_sharded(model):  # its processes must run it equally often
        for batch in islice(epoch_batches(rows, 1), left):
            model(**moved(batch, accelerator.device))
    total = accelerator.reduce(total, "sum")
    return float(total[0] / total[1])


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Turn a loss in nats per token into bits per byte of text."""
    return loss / math.log(2) / bytes_per_token


def validation(
    rows: Any, micro_rows: int, bytes_per_token: float | None, accelerator: Accelerator, share: tuple[int, int]
) -> Callable[[nn.Module, int], Iterable[dict[str, Any]]]:
    """Return what `Probe` runs: one line with loss and, where the bytes are known, bits_per_byte."""

    def run(model: nn.Module, step: int) -> Iterable[dict[str, Any]]:
        loss = mean_loss(model, rows, micro_rows, accelerator, share)
        fields = {"loss": loss}
        if bytes_per_token is not None:
            fields["bits_per_byte"] = bits_per_byte(loss, bytes_per_token)
        return [fields]

    return run
