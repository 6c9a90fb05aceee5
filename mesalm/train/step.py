"""The arithmetic of one optimiser step: batches, gradient, and what the processes must agree on."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from accelerate.utils import compile_regions
from torch import nn
from torch.distributed.tensor import DTensor

from mesalm.interrupts import SIGNALS
from mesalm.model.operator_inputs import unchecked_values
from mesalm.train.randomness import preserved_randomness

Batch = dict[str, torch.Tensor]


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def backward(
    accelerator: Accelerator, model: Any, micro: list[Batch], count_items: Callable[[Batch], int] | None
) -> torch.Tensor:
    """Accumulate the gradient of one step; return its loss, averaged over the processes, on the device."""
    weights = _weights(accelerator, micro, count_items)
    loss = torch.zeros((), device=accelerator.device)
    for place, (batch, weight) in enumerate(zip(micro, weights, strict=True)):
        alone = place + 1 < len(micro)
        with accelerator.no_sync(model) if alone else nullcontext(), unchecked_values():
            with accelerator.autocast():  # sharded, a model does not bring its own
                part = model(**batch).loss * weight
            accelerator.backward(part)
        loss += part.detach()
    if accelerator.num_processes > 1:
        loss = cast(torch.Tensor, accelerator.reduce(loss, "mean"))
    return loss


def _weights(
    accelerator: Accelerator, micro: list[Batch], count_items: Callable[[Batch], int] | None
) -> list[float] | list[torch.Tensor]:
    """Return the share of each micro-batch in the loss of a step."""
    if count_items is None:
        return [1.0 / len(micro)] * len(micro)
    counts = [float(count_items(batch)) for batch in micro]
    if accelerator.num_processes == 1:
        return [count / sum(counts) if sum(counts) > 0 else 0.0 for count in counts]
    total = torch.full((), sum(counts), device=accelerator.device)
    mean = cast(torch.Tensor, accelerator.reduce(total, "mean")).clamp(min=torch.finfo(total.dtype).tiny)
    return [count / mean for count in counts]


def clip_gradient(accelerator: Accelerator, model: nn.Module, clip: float | None) -> torch.Tensor:
    """Bound the global norm of the gradient; return what it was before, on its device."""
    norm = accelerator.clip_grad_norm_(model.parameters(), math.inf if clip is None else clip)
    return norm.full_tensor() if isinstance(norm, DTensor) else cast(torch.Tensor, norm)


def can_refuse(optimiser: torch.optim.Optimizer) -> bool:
    """Return whether `update_where_finite` works: torch's fused optimisers can leave out a step by themselves."""
    return getattr(optimiser, "_step_supports_amp_scaling", False)


def update_where_finite(
    wrapped: Any, optimiser: torch.optim.Optimizer, loss: torch.Tensor, norm: torch.Tensor, bound: float = math.inf
) -> None:
    """Step unless loss or norm is not finite or the loss exceeds ``bound``, without a device synchronisation.

    As with a gradient scaler, the fused kernel reads ``found_inf``, which torch's type does not declare; ``wrapped`` is
    accelerate's wrapper of the optimiser.
    """
    finite = loss.isfinite() & norm.isfinite() & (loss <= bound)
    optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined]
    try:
        wrapped.step()
    finally:
        del optimiser.found_inf  # type: ignore[attr-defined]


def count_tokens(micro: list[Batch]) -> int:
    """Return the tokens or vectors of this process's part of a step: each batch's rows times their length."""
    return sum(next(iter(batch.values())).shape[:2].numel() for batch in micro)


def flops_per_token(model: nn.Module | None, micro: list[Batch]) -> float:
    """Return the model's FLOPs per token at this length, with solver steps as last measured; 0 if it does not tell."""
    count = getattr(model, "flops_per_token", None)
    if model is None or count is None or "input_ids" not in micro[0]:
        return 0.0
    return float(count(micro[0]["input_ids"].shape[-1], measured_steps(model) or 0.0))


def measured_steps(model: nn.Module) -> float | None:
    """Return the mean solver steps of the last forward pass, None for a model that does not solve or does not tell."""
    found: float | None = getattr(model, "solver_steps", lambda: None)()
    return found


def read(
    accelerator: Accelerator, unread: list[tuple[torch.Tensor, torch.Tensor]], received: int | None
) -> tuple[list[tuple[float, float]], int | None]:
    """Read losses and norms from the device in one transfer; return them, and a signal that any process received.

    All processes must call this after the same step, since they act on the answer together.
    """
    flags = torch.tensor([float(received == number) for number in SIGNALS])
    if accelerator.num_processes > 1:
        flags = cast(torch.Tensor, accelerator.reduce(flags.to(accelerator.device), "mean")).cpu()
    heard = next((int(number) for number, flag in zip(SIGNALS, flags.tolist(), strict=True) if flag > 0), None)
    if not unread:
        return [], heard
    values = torch.stack([torch.stack((loss, norm.to(loss))) for loss, norm in unread])
    return [(loss, norm) for loss, norm in values.tolist()], heard


def sample_solver(model: nn.Module, number: int) -> Any:
    """Ask a layer, chosen by ``number``, to measure the next row it solves; return it, or None if none solves."""
    choose = getattr(model, "sample_solver", None)
    return None if choose is None else choose(number)


def is_sampled(model: nn.Module) -> bool:
    """Return whether layers of the model wait for a row to measure."""
    return any(getattr(module, "sample_gates", False) for module in model.modules())


def solver_fields(model: nn.Module, sampled: Any) -> dict[str, Any]:
    """Return journal fields on solver and gates: for all layers, and for the sampled layer."""
    mean, saturated = getattr(model, "forget_gates", lambda: None)() or (None, None)
    sample = None if sampled is None else sampled.solver_sample
    return {
        "solver_steps": measured_steps(model),
        "solver_layer": None if sample is None else sample.layer,
        "solver_head": None if sample is None else sample.head,
        "solver_misses": None if sample is None else sample.misses,
        "solver_residual": None if sample is None else sample.residual,
        "input_gate": None if sample is None else sample.input_gate,
        "forget_gate": None if sample is None else sample.forget_gate,
        "mean_forget_gate": mean,
        "saturated_forget_gates": saturated,
    }


def compiled(model: nn.Module, how: bool | Literal["blocks"], *, sharded: bool = False) -> Any:
    """Return the compiled form of a model, which shares its weights; False gives the model itself.

    "blocks" compiles each of its repeated blocks and the modules around them: blocks of one kind share one graph.
    sharded: FSDP attaches hooks that gather weights to the model's own modules, so the blocks are compiled in place,
    and nothing around them.
    """
    if sharded and how:
        for blocks in model.modules():
            if isinstance(blocks, nn.ModuleList) and len({type(block) for block in blocks}) == 1:
                for block in blocks:
                    block.forward = torch.compile(block.forward)
        return model
    if how == "blocks":
        return compile_regions(model)
    return torch.compile(model) if how else model


def uncompiled() -> Any:
    """Run modules compiled in place eagerly, for inputs of other shapes than in training."""
    return torch.compiler.set_stance("force_eager")


def read_first_row(accelerator: Accelerator, model: nn.Module, batch: Batch) -> None:
    """Run the first row of a batch through the uncompiled model, so that its layers measure it."""
    with preserved_randomness(), torch.no_grad(), accelerator.autocast(), unchecked_values(), uncompiled():
        model(**{name: tensor[:1] for name, tensor in batch.items()})
