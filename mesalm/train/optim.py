"""Optimisers by name with their settings, and which parameters decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import nn

from mesalm.settings import Settings, known
from mesalm.train.joined import JoinedOptimiser, hidden_matrices
from mesalm.train.width import scaled_groups

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Device types on which torch has a fused AdamW."""


class OptimSettings(Settings):
    """The optimiser's settings."""

    name: Annotated[str, known(lambda: OPTIMISERS, "an optimiser")] = Field(
        default="adamw", description="Optimiser, by its name in mesalm.train.optim.OPTIMISERS."
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="Peak learning rate, reached when warm-up ends.")
    betas: tuple[float, float] = Field(
        default=(0.9, 0.95), description="AdamW's decay of the running means of the gradient and of its square."
    )
    momentum: float = Field(default=0.95, ge=0, lt=1, description="Muon's decay of the running mean of the gradient.")
    eps: float = Field(default=1e-8, gt=0, description="Guard added to AdamW's denominator.")
    weight_decay: float = Field(
        default=0.1, ge=0, description="Decoupled weight decay of matrices; gains, biases and ridges never decay."
    )
    base_width: int | None = Field(
        default=None,
        gt=0,
        description="hidden_size for which learning_rate was chosen; it then carries over to other widths with "
        "heads of the same size (muP). none: one rate for all weights.",
    )
    decay_embeddings: bool = Field(default=False, description="Whether weight decay acts on embeddings too.")

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"both must be at least 0 and below 1, not {list(betas)}")
        return betas


def adamw(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """Build AdamW for all parameters."""
    return _adamw(_groups(model, settings), settings)


def muon(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """Build Muon for the matrices of linear maps but the output head, and AdamW for all other parameters.

    Both take the same learning rate: Muon's update is scaled to the root mean square of AdamW's (Jordan et al. 2024;
    Liu et al. 2025, arXiv 2502.16982).
    """
    hidden = hidden_matrices(model)
    # an orthogonal update of the same root mean square has a norm that grows with the square root of the width
    groups = _groups(model, settings, power=0.5)
    matrices = _narrowed(groups, lambda weight: id(weight) in hidden)
    others = _narrowed(groups, lambda weight: id(weight) not in hidden)
    if not matrices:
        raise ValueError("optim.name: muon needs a trainable matrix of a linear map; use adamw")
    first = torch.optim.Muon(
        matrices, lr=settings.learning_rate, momentum=settings.momentum, adjust_lr_fn="match_rms_adamw"
    )
    return JoinedOptimiser([first, *([_adamw(others, settings)] if others else [])])


def _groups(model: nn.Module, settings: OptimSettings, power: float = 1.0) -> list[dict[str, Any]]:
    groups = parameter_groups(model, settings.weight_decay, settings.decay_embeddings)
    return scaled_groups(groups, model, settings.base_width, power)


def _narrowed(groups: list[dict[str, Any]], wanted: Callable[[nn.Parameter], bool]) -> list[dict[str, Any]]:
    """Return the groups with the wanted parameters alone, empty ones left out."""
    chosen = [{**group, "params": [weight for weight in group["params"] if wanted(weight)]} for group in groups]
    return [group for group in chosen if group["params"]]


def _adamw(groups: list[dict[str, Any]], settings: OptimSettings) -> torch.optim.Optimizer:
    """Build AdamW, in its fused form where every parameter's device has one."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        fused=devices <= set(FUSED_DEVICES),
    )


OPTIMISERS: dict[str, Callable[[nn.Module, OptimSettings], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "muon": muon,
}
"""Name -> function(model, settings) -> optimiser."""


def parameter_groups(model: nn.Module, weight_decay: float, decay_embeddings: bool = False) -> list[dict[str, Any]]:
    """Part a model's trainable parameters into a group that decays and one that does not.

    Not decayed: parameters of one dimension or none (gains of norms, biases), those named ``bias``, those that
    bear the attribute ``_no_weight_decay = True`` (a soft prefix), and, unless ``decay_embeddings``, the weights of
    ``nn.Embedding`` (so a tied head does not decay either). Empty groups are left out; each parameter stands once.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = (
            parameter.ndim < 2
            or name.rpartition(".")[2] == "bias"
            or getattr(parameter, "_no_weight_decay", False)
            or (id(parameter) in embeddings and not decay_embeddings)
        )
        (kept if spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimiser(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """Build the optimiser that the settings name for a model that is on its device already."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model: has no trainable parameter; unfreeze at least one")
    return OPTIMISERS[settings.name](model, settings)
