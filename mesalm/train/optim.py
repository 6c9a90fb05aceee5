"""Optimisers, their settings, parameter groups for weight decay, and learning rates that transfer across widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from mesalm.settings import Settings, known

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Device types on which torch has a fused AdamW."""


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimSettings(Settings):
    """The optimiser's settings."""

    name: Annotated[str, known(lambda: OPTIMISERS, "an optimiser")] = Field(
        default="adamw", description="Optimiser, a name in mesalm.train.optim.OPTIMISERS."
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="Peak learning rate, reached when warm-up ends.")
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.95), description="AdamW's decay rates of the running averages of gradient and squared gradient."
    )
    momentum: float = Field(default=0.95, ge=0, lt=1, description="Muon's momentum.")
    eps: float = Field(default=1e-8, gt=0, description="Epsilon in AdamW's denominator.")
    weight_decay: float = Field(
        default=0.1, ge=0, description="Decoupled weight decay of matrices; gains, biases and ridges never decay."
    )
    base_width: int | None = Field(
        default=None,
        gt=0,
        description="hidden_size for which learning_rate was tuned; muP then transfers it to other widths with "
        "the same head size. none: one rate for all weights.",
    )
    decay_embeddings: bool = Field(default=False, description="Whether weight decay also applies to embeddings.")


def adamw(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """Build AdamW for all parameters."""
    return _adamw(_groups(model, settings), settings)


def muon(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """Build Muon for the weight matrices of linear layers except the output head, and AdamW for all other parameters.

    Both use the same learning rate, since Muon's update is scaled to the root mean square of AdamW's (Jordan et al.
    2024; Liu et al. 2025, arXiv 2502.16982).
    """
    hidden = hidden_matrices(model)
    # at a fixed root mean square, the norm of an orthogonal update grows with the square root of the width
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
    """Return the groups restricted to the wanted parameters, without empty groups."""
    chosen = [{**group, "params": [weight for weight in group["params"] if wanted(weight)]} for group in groups]
    return [group for group in chosen if group["params"]]


def _adamw(groups: list[dict[str, Any]], settings: OptimSettings) -> torch.optim.Optimizer:
    """Build AdamW, fused if all parameters are on devices that support it."""
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
    """Split a model's trainable parameters into a group with weight decay and one without.

    Not decayed: parameters of at most one dimension (gains of norms, biases), those named ``bias``, those with the
    attribute ``_no_weight_decay = True`` (a soft prefix), and, unless ``decay_embeddings``, the weights of
    ``nn.Embedding`` (hence a tied head too). Empty groups are left out; each parameter appears once.
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
    """Build the optimiser given by the settings; the model must already be on its device."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model: has no trainable parameter; unfreeze at least one")
    return OPTIMISERS[settings.name](model, settings)


class JoinedOptimiser(torch.optim.Optimizer):
    """Several optimisers combined into one, which shares its groups and state with them."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        """Combine optimisers that have not made a step yet."""
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    # torch declares overloads of step for both kinds of closure
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step of every part; return what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def hidden_matrices(model: nn.Module) -> set[int]:
    """Return the ids of the weights of linear layers, without the output head and weights tied to embeddings."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    outer = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding) or module is head}
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - outer


@torch.no_grad()
def scale_first_weights(model: nn.Module, base_width: int) -> None:
    """Scale initial weights: hidden matrices by sqrt(base / width), others by the factor of their learning rate."""
    scale, outer = _scales(model, base_width)
    hidden = hidden_matrices(model)
    for parameter in model.parameters():
        parameter.mul_(scale**0.5 if id(parameter) in hidden else outer.get(id(parameter), 1.0))


def scaled_groups(
    groups: list[dict[str, Any]], model: nn.Module, base_width: int | None, power: float = 1.0
) -> list[dict[str, Any]]:
    """Split parameter groups by a factor on their learning rate, ``rate_scale``, so that rates transfer across widths.

    The factor of hidden matrices is (base / width)^power. Weight decay is divided by the factor, so that its effect per
    step is the same at all widths. Without ``base_width`` the groups are returned unchanged.

    This is maximal update parametrisation (Yang et al. 2022, arXiv 2203.03466, table 8). Sizes are assumed to grow with
    ``hidden_size``, except the head size. The multipliers of embeddings and logits are absorbed into their weights and
    the gain of the last norm, which Adam's updates allow, so that a saved model needs no extra factors.

    Raises ValueError for a model without ``hidden_size``, or without a norm before its head.
    """
    if base_width is None:
        return groups
    scale, outer = _scales(model, base_width)
    scales = dict.fromkeys(hidden_matrices(model), scale**power) | outer
    parted = []
    for group in groups:
        for factor in dict.fromkeys(scales.get(id(weight), 1.0) for weight in group["params"]):
            chosen = [weight for weight in group["params"] if scales.get(id(weight), 1.0) == factor]
            decay = group["weight_decay"] / factor
            parted.append({**group, "params": chosen, "rate_scale": factor, "weight_decay": decay})
    return parted


def _scales(model: Any, base_width: int) -> tuple[float, dict[int, float]]:
    """Return base / width, and the factors of embeddings and of the last norm's gain by the parameters' ids.

    Embeddings that the model multiplies by sqrt(width) get the inverse factor; so does a head tied to them.
    """
    config: Any = getattr(model, "config", None)
    norm = getattr(getattr(model, "model", None), "norm", None)
    gains = [] if norm is None else list(norm.parameters())
    if not gains or not hasattr(config, "hidden_size"):
        raise ValueError(f"optim.base_width: {type(model).__name__} lacks hidden_size or a last norm; leave it out")
    scale = base_width / config.hidden_size
    embedding = scale**0.5 if getattr(config, "scale_embeddings", False) else 1.0
    head = embedding if config.tie_word_embeddings else 1.0
    weight = model.get_input_embeddings().weight
    return scale, {id(weight): embedding} | {id(gain): scale / head for gain in gains}
