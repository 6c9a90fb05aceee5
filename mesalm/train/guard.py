"""Reject steps with non-finite values or loss spikes, and report where non-finite values arose."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.nn.utils import get_total_norm

from mesalm.model.operator_inputs import unchecked_values
from mesalm.train.sharded import local
from mesalm.wording import plural


class NonFiniteError(FloatingPointError):
    """A run cannot continue; the one-line message gives the step, what was not finite, where, and what to do."""


Verdict = Literal["accept", "skip", "rollback", "stop"]

SPIKE = 6.0
"""A loss this many standard deviations above the mean of the last accepted losses is a spike."""
WINDOW, FEWEST = 100, 20
"""The number of recent losses considered, and the minimum number needed."""


class Guard:
    """Reject steps whose loss is not finite or a spike, or whose gradient is not finite.

    The run stops after too many rejected steps. ``spikes`` says what a spike does: it is accepted, the step is skipped,
    the weights roll back to the last checkpoint, or the run stops. ``bound`` is the largest loss that is not a spike.
    It is updated only when losses are read, so that the device can reject the steps in between.

    All processes see the same loss and gradient, and a fault found in the weights of one is sent to all, so that
    they stop together.
    """

    def __init__(self, limit: int, spikes: Verdict = "accept") -> None:
        """Allow fewer than ``limit`` (at least 1) rejected steps in a row."""
        self.limit = limit
        self.skipped = 0
        self.in_row = 0
        self.spikes = spikes
        self.bound = math.inf
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def accepts(self, loss: float, norm: float) -> bool:
        """Return whether a step with this loss and gradient norm may update the weights, and count it if not."""
        if math.isfinite(loss) and math.isfinite(norm) and loss <= self.bound:
            self.in_row = 0
            if self.spikes != "accept":
                self._recent.append(loss)
            return True
        self.skipped += 1
        self.in_row += 1
        return False

    def renew_bound(self) -> None:
        """Update the bound from the losses accepted so far."""
        if len(self._recent) >= FEWEST:
            self.bound = statistics.fmean(self._recent) + SPIKE * statistics.pstdev(self._recent)

    def verdict(self, loss: float, step: int) -> Verdict:
        """Return the consequence of a rejected step. Raises NonFiniteError for a spike that stops the run."""
        if not loss > self.bound or not math.isfinite(loss):
            return "skip"
        if self.spikes == "stop":
            raise NonFiniteError(
                f"step {step}: loss {loss:.4g} is a spike, above {self.bound:.4g}; set train.spikes=skip or rollback, "
                f"or {WAY_ON}"
            )
        return self.spikes

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
        """Raise NonFiniteError if ``step`` exceeds the limit of rejected steps in a row.

        The model then runs the step's batches again, to find its first module with a non-finite output.
        """
        if self.in_row < self.limit:
            return
        place = _first(accelerator, _fault_in_outputs(accelerator, model, micro) or _fault_in_gradients(model))
        seen = f", now first in {place}" if place else ""
        what = "not finite" if self.bound == math.inf else "refused"
        steps = plural(self.in_row, "step")
        raise NonFiniteError(
            f"step {step}: loss or gradient were {what} in {steps} in a row{seen}; check the data, raise "
            f"train.max_skipped, or {WAY_ON}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and the last losses for a checkpoint."""
        return {"skipped": self.skipped, "in_row": self.in_row, "recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.skipped = int(state["skipped"])
        self.in_row = int(state["in_row"])
        self._recent.extend(state["recent"])
        self.renew_bound()


WAY_ON = "lower optim.learning_rate (under another name; init_from takes a checkpoint's weights)"


def _first(accelerator: Accelerator, mine: str | None) -> str | None:
    """Return the finding of the first process that has one."""
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
    # no name: clipping by a norm that is not finite has made all of them so
    return None if _first_non_finite(named) is None else "the backward pass"


@torch.no_grad()
def _fault_in_outputs(accelerator: Accelerator, model: nn.Module, micro: list[dict[str, Any]]) -> str | None:
    """Return the first module in a forward pass whose output is not finite."""
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
