"""The guard that keeps what is not finite out of weights and checkpoints, and says where it arose."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.nn.utils import get_total_norm

from mesalm.model.operator_inputs import unchecked_values
from mesalm.train.sharded import local


class NonFiniteError(FloatingPointError):
    """Report a run that cannot go on, in one line: the step, what was not finite and where, and what to do."""


class Guard:
    """Refuse steps whose loss or gradient is not finite, and stop the run where that does not help.

    All processes see the same loss and gradient, and what one of them finds in its weights is told to all, so that
    they stop together.
    """

    def __init__(self, limit: int) -> None:
        """Allow fewer than ``limit`` refused steps in a row."""
        if limit < 1:
            raise ValueError(f"limit: must be at least 1, not {limit}")
        self.limit = limit
        self.skipped = 0
        self.in_row = 0

    def accepts(self, loss: float, norm: float) -> bool:
        """Return whether a step with this loss and gradient norm may update the weights, and count it if not."""
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_row = 0
            return True
        self.skipped += 1
        self.in_row += 1
        return False

    def verify(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        step: int,
        way_on: str | None = None,
    ) -> None:
        """Raise NonFiniteError if a weight or the optimiser's state after ``step`` steps is not finite."""
        fault = _first(accelerator, _fault_in_state(model, optimiser))
        if fault is not None:
            when = f"after step {step}" if step else "before the first step"
            raise NonFiniteError(f"{when}: {fault} is not finite; {way_on or WAY_ON}")

    def judge(self, accelerator: Accelerator, model: nn.Module, micro: list[dict[str, Any]], step: int) -> None:
        """Raise NonFiniteError if ``step`` is one refused step in a row too many.

        The model then reads the step's batches once more, to see which part of it is the first that is not finite.
        """
        if self.in_row < self.limit:
            return
        place = _first(accelerator, _fault_in_outputs(accelerator, model, micro) or _fault_in_gradients(model))
        seen = f", now first in {place}" if place else ""
        raise NonFiniteError(
            f"step {step}: loss or gradient were not finite in {self.in_row} steps in a row{seen}; check the data, "
            f"raise train.max_skipped, or {WAY_ON}"
        )

    def state_dict(self) -> dict[str, int]:
        """Return the counters for a checkpoint."""
        return {"skipped": self.skipped, "in_row": self.in_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up the counters of a checkpoint."""
        self.skipped = int(state["skipped"])
        self.in_row = int(state["in_row"])


WAY_ON = "lower optim.learning_rate (under another name; init_from takes a checkpoint's weights)"


def _first(accelerator: Accelerator, mine: str | None) -> str | None:
    """Return what the first process with a finding has found."""
    found = gather_object([mine]) if accelerator.num_processes > 1 else [mine]
    return next((finding for finding in found if finding is not None), None)


def _fault_in_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> str | None:
    weights = model.state_dict()
    name = _first_non_finite(weights.items())
    if name is not None:
        return f"the weight {name}"
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = (
        (f"{key} of {names.get(id(parameter), 'a parameter')}", value)
        for parameter, state in optimiser.state.items()
        for key, value in state.items()
    )
    name = _first_non_finite(kept)
    return None if name is None else f"the optimiser's {name}"


def _fault_in_gradients(model: nn.Module) -> str | None:
    named = ((name, parameter.grad) for name, parameter in model.named_parameters())
    name = _first_non_finite(named)
    return None if name is None else f"the gradient of {name}"


@torch.no_grad()
def _fault_in_outputs(accelerator: Accelerator, model: nn.Module, micro: list[dict[str, Any]]) -> str | None:
    """Name the first module of a forward pass whose output is not finite."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if not found and isinstance(first, torch.Tensor) and _first_non_finite([(name, first)]):
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with accelerator.autocast(), unchecked_values():
            for batch in micro:
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return f"the output of {found[0]}" if found else None


@torch.no_grad()
def _first_non_finite(named: Iterable[tuple[str, Any]]) -> str | None:
    """Return the name of the first floating tensor that is not finite; None, after one reduction, if all are."""
    held = ((name, local(tensor.detach())) for name, tensor in named if isinstance(tensor, torch.Tensor))
    kept = [(name, tensor) for name, tensor in held if tensor.is_floating_point() and tensor.numel()]
    if not kept or math.isfinite(float(get_total_norm([tensor for _, tensor in kept], math.inf))):
        return None
    return next(name for name, tensor in kept if not bool(tensor.isfinite().all()))
