"""The arithmetic of one optimiser step: batches, gradient, and what the processes must agree on."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import compile_regions
from torch import nn

from mesalm.model.operator_inputs import unchecked_values
from mesalm.train.interrupts import SIGNALS
from mesalm.train.randomness import preserved_randomness

Batch = dict[str, torch.Tensor]


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def backward(
    accelerator: Accelerator, model: Any, micro: list[Batch], count_items: Callable[[Batch], int] | None
) -> torch.Tensor:
    """Accumulate the gradient of one step; return this process's share of the loss, to be averaged over all."""
    weights = [1.0 / len(micro)] * len(micro)
    if count_items is not None:
        counts = [float(count_items(batch)) for batch in micro]
        total = torch.tensor(sum(counts), device=accelerator.device)
        mean = float(accelerator.reduce(total, "mean"))
        weights = [count / mean if mean > 0 else 0.0 for count in counts]
    loss = torch.zeros((), device=accelerator.device)
    for place, (batch, weight) in enumerate(zip(micro, weights, strict=True)):
        alone = place + 1 < len(micro)
        with accelerator.no_sync(model) if alone else nullcontext(), unchecked_values():
            part = model(**batch).loss * weight
            accelerator.backward(part)
        loss += part.detach()
    return loss


def gradient_norm(accelerator: Accelerator, model: nn.Module, clip: float | None) -> float:
    """Return the global norm of the gradient before it is clipped."""
    norm = accelerator.clip_grad_norm_(model.parameters(), math.inf if clip is None else clip)
    return float(norm)


def count_tokens(micro: list[Batch]) -> int:
    """Return the tokens of this process's part of a step; rows where a batch has no input_ids."""
    return sum(
        batch["input_ids"].numel() if "input_ids" in batch else len(next(iter(batch.values()))) for batch in micro
    )


def flops_per_token(model: nn.Module, micro: list[Batch]) -> float:
    """Return what the model says a token of this length costs, solver steps as last measured; 0 if it is silent."""
    count = getattr(model, "flops_per_token", None)
    if count is None or "input_ids" not in micro[0]:
        return 0.0
    return float(count(micro[0]["input_ids"].shape[-1]))


def agree(accelerator: Accelerator, loss: torch.Tensor, received: int | None) -> tuple[float, int | None]:
    """Average the loss over the processes, and stop on all of them when one of them was told to stop."""
    flags = [float(received == number) for number in SIGNALS]
    shared = torch.cat([loss.reshape(1), torch.tensor(flags, device=loss.device)])
    if accelerator.num_processes > 1:
        shared = accelerator.reduce(shared, "mean")
    value, *told = shared.tolist()
    return value, next((int(number) for number, flag in zip(SIGNALS, told, strict=True) if flag > 0), None)


def sample_solver(model: nn.Module, number: int) -> Any:
    """Have a layer of the model measure the next row it solves, for each ``number`` another; None if none solves."""
    choose = getattr(model, "sample_solver", None)
    return None if choose is None else choose(number)


def compiled(model: nn.Module, how: bool | Literal["blocks"]) -> Any:
    """Give the compiled form of a model, which shares its weights; False gives the model itself.

    "blocks" compiles each of its repeated blocks and the modules around them: blocks of one kind share one graph.
    """
    if how == "blocks":
        return compile_regions(model)
    return torch.compile(model) if how else model


def read_first_row(accelerator: Accelerator, model: nn.Module, batch: Batch) -> None:
    """Run the first row of a batch through a model as it is, where training runs a compiled form of it."""
    with preserved_randomness(), torch.no_grad(), accelerator.autocast(), unchecked_values():
        model(**{name: tensor[:1] for name, tensor in batch.items()})
