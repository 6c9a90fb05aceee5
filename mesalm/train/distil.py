"""Training towards the next-token distributions of another model, such as the original of a converted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import kl_div

from mesalm.model.modeling_mesa import MesaForCausalLM
from mesalm.settings import SettingsError
from mesalm.train import training
from mesalm.train.loop import Outcome
from mesalm.train.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Distillation:
    """A replacement for `training.run` that trains with a knowledge distillation loss.

    The loss is the mean over scored tokens of KL(teacher || model) in nats, at temperature 1 (Hinton et al. 2015,
    arXiv 1503.02531). Validation still measures the loss on the text. ``teacher`` is called with input_ids and
    position_ids [B, T], without a cache, and returns logits over the same vocabulary. Each process holds a full copy.
    """

    teacher: nn.Module

    def __call__(self, model: nn.Module, *arguments: Any, **options: Any) -> Outcome:
        """Train; arguments and result are those of `training.run`."""
        self.teacher.requires_grad_(False).eval().to(options["accelerator"].device)
        if isinstance(model, MesaForCausalLM):
            model.token_loss = None  # the distillation loss needs all logits
        hook = model.register_forward_hook(self._replace_loss, with_kwargs=True)
        try:
            return training.run(model, *arguments, **options, teacher=self.teacher)
        finally:
            hook.remove()

    def _replace_loss(self, model: nn.Module, _: Any, batch: dict[str, Any], outputs: Any) -> None:
        if model.training and batch.get("labels") is not None:
            outputs.loss = self.loss(batch, outputs)

    def loss(self, batch: dict[str, Any], outputs: Any) -> torch.Tensor:
        """Return the loss, a scalar, of the model's outputs on a batch of packed rows."""
        with torch.no_grad():
            read = {name: batch[name] for name in ("input_ids", "position_ids")}
            wanted = self.teacher(**read, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        found = outputs.logits[:, :-1].float().log_softmax(-1)
        scored = batch["labels"][:, 1:] != -100
        return kl_div(found, wanted, log_target=True, reduction="none").sum(-1)[scored].mean()


def recovery_recipe(name_or_path: str, overrides: Sequence[str], start: Path) -> Recipe:
    """Return the recipe that continues to train a converted model, as run ``<folder's name>-recovered``.

    Arms, name, tokenizer and fields of ``model`` of the recipe are ignored; ``overrides`` are as in `load_recipe`.

    Raises SettingsError for a recipe with initial weights, or with settings that distillation does not support.
    """
    recipe = load_recipe(name_or_path, overrides)
    for key, given in (
        ("init_from", recipe.init_from),
        ("parallelism.context", recipe.parallelism.context > 1),
        ("train.z_loss", recipe.train.z_loss),
    ):
        if given:
            raise SettingsError(f"{key}: is not supported with --recover; leave it out")
    plain = recipe.plain()
    plain |= {"name": f"{start.resolve().name}-recovered", "init_from": str(start), "model": {}, "arms": {}}
    plain["data"]["tokenizer"] = str(start)
    return Recipe.build(plain)
