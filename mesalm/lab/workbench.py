"""The nets of experiments: trained once, stored under a hash of their recipe and shared between claims."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor, nn

from mesalm.data.prepared import Prepared
from mesalm.data.stream import Batch, epoch_batches
from mesalm.data.synthetic.drawn_stream import DrawnStream, StepPosition, drawn_batch
from mesalm.data.synthetic.vector_task import VectorTask
from mesalm.files import whole_folder, write_text
from mesalm.journal import Journal
from mesalm.locks import locked
from mesalm.model.modeling_mesa import MesaForCausalLM
from mesalm.regressor.configuration_regressor import RegressorConfig
from mesalm.regressor.regressor_mesa import MesaRegressor, RegressionOutput
from mesalm.runs import RunFiles, RunRecord, complete_checkpoints, step_of
from mesalm.settings import LARGEST_SEED, Settings, SettingsError
from mesalm.train import training
from mesalm.train.checkpoint import load_weights, save_weights
from mesalm.train.launch import make_accelerator
from mesalm.train.loop import Outcome
from mesalm.train.optim import OptimSettings
from mesalm.train.pretrain import pretrain
from mesalm.train.progress import Display
from mesalm.train.randomness import preserved_randomness, seed_everything
from mesalm.train.recipe import Recipe
from mesalm.train.schedule import ScheduleSettings
from mesalm.train.sections import CheckpointSettings

STAGES = 10
"""Number of evenly spaced checkpoints kept per training, for claims about its course."""


def regressor(**fields: Any) -> MesaRegressor:
    """Make the default net of recipes, from settings of RegressorConfig."""
    return MesaRegressor(RegressorConfig(**fields))


class NetRecipe(Settings):
    """The recipe of one net: its architecture, its training data and its training."""

    task: SerializeAsAny[VectorTask] = Field(description="The task that sequences are drawn from.")
    net: Callable[..., nn.Module] = Field(
        default=regressor, exclude=True, description="Makes the net from input_size and the model's settings."
    )
    model: dict[str, Any] = Field(description="Settings of the net; input_size is the task's.")
    steps: int = Field(ge=1, description="Optimiser steps.")
    batch: int = Field(ge=1, description="Sequences per step.")
    optim: OptimSettings = Field(description="Optimiser.")
    schedule: ScheduleSettings = Field(description="Learning-rate schedule.")
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED, description="Seed of weights and sequences.")
    base: NetRecipe | None = Field(
        default=None, description="A net whose weights are copied and frozen; further learned vectors are trained."
    )
    imitates: int | None = Field(
        default=None,
        ge=0,
        description="Index of a layer trained to imitate the base's; the rest is frozen.",
    )
    fresh: bool = Field(
        default=False,
        exclude_if=lambda fresh: not fresh,  # so that the keys of recipes without it do not change
        description="Whether that layer starts from random weights instead of the base's.",
    )

    @property
    def checkpoint_every(self) -> int:
        """Return the number of steps between checkpoints."""
        return max(self.steps // STAGES, 1)

    def build_net(self) -> Any:
        """Make the net with fresh weights."""
        return self.net(input_size=self.task.input_size, **self.model)

    def key(self) -> str:
        """Return the name of the net's folder: a hash of all that determines its weights, external files included."""
        content = json.dumps(self.model_dump(), sort_keys=True) + "".join(self.outside())
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def outside(self) -> list[str]:
        """Return name and source of a task and net defined outside mesalm, then those of the base.

        Raises SettingsError for an unnamed net, such as a lambda, which could not be distinguished from another.
        """
        found = []
        for part in (type(self.task), self.net):
            name = getattr(part, "__qualname__", "<object>")
            if part.__module__.startswith("mesalm."):
                continue
            if "<" in name:
                raise SettingsError(f"net: {name} cannot be told from another; make it a named class or function")
            found += [name, Path(inspect.getsourcefile(part) or "").read_text("utf-8")]
        return found + (self.base.outside() if self.base else [])


def net_recipe(
    task: VectorTask,
    sizes: dict[str, Any],
    seed: int,
    model: dict[str, Any],
    *,
    weight_decay: float = 0.05,
    cosine: bool = False,
    **fields: Any,
) -> NetRecipe:
    """Make a recipe from an experiment's sizes, which must include ``steps``, ``batch`` and ``learning_rate``.

    Without ``cosine``, the rate is constant after ``warmup`` steps, if the sizes include them. ``fields`` are further
    fields of the recipe.

    AdamW is set up as in the authors' code, but we clip the gradient to global norm 1, and they clip each entry.
    """
    schedule = (
        {"name": "cosine", "warmup_fraction": 0.1}
        if cosine
        else {"name": "constant", "warmup_steps": sizes.get("warmup", 0)}
    )
    optim = {
        "learning_rate": sizes["learning_rate"],
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": weight_decay,
    }
    own = {"task": task, "model": model, "seed": seed, "steps": sizes["steps"], "batch": sizes["batch"]}
    return NetRecipe.build({**own, "optim": optim, "schedule": schedule, **fields})


@dataclass(frozen=True)
class Workbench:
    """Seed, device and nets of experiments; nets are stored under ``cache`` and trained by ``train``."""

    seed: int
    cache: Path
    device: str = "cpu"
    quiet: bool = False
    train: Callable[..., Outcome] = training.run

    def net(self, recipe: NetRecipe) -> MesaRegressor:
        """Return the trained net of a recipe, a regressor unless it says otherwise, in eval mode; train it if needed.

        An interrupted training resumes from its newest checkpoint. After Ctrl-C or SIGTERM, writes a checkpoint and
        raises Interrupted.
        """
        folder = self.folder(recipe)
        files = RunFiles(folder)
        if not files.final.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            display = Display(folder.name[:6], recipe.steps, enabled=not self.quiet)
            waiting = locked(
                folder / "lock", lambda holder: display.say(f"waiting for {holder}, which is training this net")
            )
            with waiting, preserved_randomness():
                if not files.final.is_dir():
                    self._train(recipe, files)
        return self._opened(recipe, files.final)

    def stages(self, recipe: NetRecipe) -> list[tuple[int, MesaRegressor]]:
        """Return the net after evenly spaced numbers of training steps; the last is the trained net."""
        self.net(recipe)
        folders = complete_checkpoints(RunFiles(self.folder(recipe)).checkpoints)
        return [(step_of(folder) or 0, self._opened(recipe, folder)) for folder in folders]

    def folder(self, recipe: NetRecipe) -> Path:
        """Return the folder of a recipe's net, whether or not it exists."""
        return self.cache / recipe.key()

    def batch(self, task: VectorTask, rows: int, step: int = 0) -> Batch:
        """Draw sequences that are not used in training, different for each ``step``."""
        return drawn_batch(task, rows, self.seed, step=step, device=self.device)

    def text_losses(self, recipe: Recipe, rows: int, split: str = "valid") -> Tensor:
        """Train a language model, or load it if trained, and return its mean loss at each position over ``rows`` evenly
        spaced held-out rows, [T - 1] nats, float64."""
        run = RunRecord(pretrain(recipe, quiet=self.quiet))
        model = fixed(MesaForCausalLM.from_pretrained(run.final), self.device)
        held_out = Prepared(run.start["prepared"]).rows(split)
        chosen = held_out.select(np.linspace(0, len(held_out) - 1, min(rows, len(held_out)), dtype=int))
        sums, counts = torch.zeros(2, recipe.data.sequence_length - 1, dtype=torch.float64)
        for batch in epoch_batches(chosen, 32):
            labels = batch.pop("labels")[:, 1:]
            logits = model(**{name: part.to(self.device) for name, part in batch.items()}).logits[:, :-1].float().cpu()
            sums += nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").double().sum(0)
            counts += (labels >= 0).sum(0)
        return sums / counts

    def _opened(self, recipe: NetRecipe, folder: Path) -> MesaRegressor:
        # without from_pretrained, which would show a progress bar for each of many tiny files
        net = recipe.build_net()
        load_weights(net, folder)
        return fixed(net, self.device)

    def _train(self, recipe: NetRecipe, files: RunFiles) -> None:
        base = None if recipe.base is None else self.net(recipe.base)
        seed_everything(recipe.seed)
        net, learner = learner_of(recipe, base)
        accelerator = make_accelerator(device="cpu" if self.device == "cpu" else "auto", precision="fp32")
        learner.to(accelerator.device)
        mixers = recipe.model.get("mixers", type(net).__name__)
        form = mixers if isinstance(mixers, str) else "+".join(dict.fromkeys(mixers))
        name = f"{form} {files.path.name[:6]}"
        write_text(files.path / "recipe.json", json.dumps(recipe.model_dump(), indent=1))
        with Journal(files.journal) as journal:
            self.train(
                learner,
                DrawnStream(recipe.task, StepPosition(recipe.seed), recipe.batch, device=accelerator.device),
                training.RunSettings(
                    steps=recipe.steps,
                    optim=recipe.optim,
                    schedule=recipe.schedule,
                    checkpoint=CheckpointSettings(every=recipe.checkpoint_every, keep=STAGES + 1),
                    log_every=max(recipe.steps // 100, 1),
                ),
                files,
                journal,
                accelerator=accelerator,
                display=Display(name, recipe.steps, enabled=not self.quiet),
                start={},
            )
        with whole_folder(files.final) as partial:
            save_weights(net, partial)


class Imitation(nn.Module):
    """One layer of a net, trained to reproduce the output of the base's layer on the base's residual stream.

    For nets whose blocks consist only of a mixer: no norm, no MLP, no clipping.
    """

    def __init__(self, net: MesaRegressor, base: MesaRegressor, layer: int) -> None:
        super().__init__()
        self.mixer: Any = net.layers[layer].mixer
        self.mixer.requires_grad_(True)
        self.base = until(base, layer)

    def forward(self, inputs: torch.Tensor, **kwargs: torch.Tensor) -> RegressionOutput:
        """Return the mean squared error of the layer's output for inputs [B, T, D]."""
        with torch.no_grad():
            *_, before, after = self.base(inputs, output_hidden_states=True).hidden_states
        mixed, _ = self.mixer(before)
        return RegressionOutput(loss=(mixed - (after - before)).square().mean(), predictions=mixed)


def until(net: MesaRegressor, layer: int) -> MesaRegressor:
    """Return a net with the same weights that ends after the given layer, counted from 0."""
    shorter = copy.copy(net)
    shorter._modules = dict(net._modules)  # a shallow copy shares this dictionary
    shorter.layers = net.layers[: layer + 1]
    return shorter


def learner_of(recipe: NetRecipe, base: MesaRegressor | None) -> tuple[Any, nn.Module]:
    """Return a recipe's net, initialised at random or from its base, and the module to train: the net or an imitation.

    Raises SettingsError for a layer that imitates without a base.
    """
    net = recipe.build_net()
    if base is not None:
        _take_over(net, base, f"layers.{recipe.imitates}." if recipe.fresh else None)
    if recipe.imitates is None:
        return net, net
    if base is None:
        raise SettingsError("imitates: needs a base, whose layer it imitates")
    return net, Imitation(net, base, recipe.imitates)


def fixed(net: Any, device: torch.device | str) -> MesaRegressor:
    """Return a net on a device in evaluation mode, with frozen weights."""
    return net.to(device).eval().requires_grad_(False)


def _take_over(net: MesaRegressor, base: MesaRegressor, without: str | None) -> None:
    """Copy the weights of another net and freeze them; only additional learned vectors remain trainable.

    Weights whose name begins with ``without`` keep their random values.
    """
    own = net.state_dict()
    for name, tensor in base.state_dict().items():
        if without is None or not name.startswith(without):
            own[name][: len(tensor)] = tensor.cpu()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name == "learned")
    if net.learned is not None and base.learned is not None:
        count = len(base.learned)
        net.learned.register_hook(lambda gradient: torch.cat((torch.zeros_like(gradient[:count]), gradient[count:])))
