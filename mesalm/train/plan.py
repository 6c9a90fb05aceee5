"""Estimate what a run will need before it starts: memory, operations and time, with the source of each number."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from mesalm.data.bpe import load_tokenizer, vocabulary_size
from mesalm.data.prepare import already_prepared
from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.modeling_mesa import MesaForCausalLM
from mesalm.runs import step_of
from mesalm.settings import one_of
from mesalm.train.activations import activation_bytes
from mesalm.train.initial import earlier_config
from mesalm.train.optim import build_optimiser
from mesalm.train.progress import clock_text
from mesalm.train.randomness import preserved_randomness
from mesalm.train.recipe import Recipe
from mesalm.train.speeds import CARDS, Assumptions, Rate, calculated_rate, earlier_rate, local_device, probed_rate
from mesalm.wording import plural


def outline(config: PreTrainedConfig, *, card: bool = False) -> PreTrainedModel:
    """Return a model on the meta device; with ``card``, its operations are counted as on a GPU."""
    if card and getattr(config, "mesa_backend", None) == "auto":
        config = copy.deepcopy(config)
        config.mesa_backend = "triton"  # auto cannot select it, since the meta device is no GPU
    with torch.device("meta"), preserved_randomness():
        return AutoModelForCausalLM.from_config(config)


def optimiser_bytes(recipe: Recipe, model: PreTrainedModel) -> int:
    """Return the bytes of the optimiser's state for the weights of an outline."""
    optimiser = build_optimiser(model, recipe.optim)
    for weight in model.parameters():
        weight.grad = torch.empty_like(weight)
    optimiser.step()
    states = [value for state in optimiser.state.values() for value in state.values()]
    return sum(value.nbytes for value in states if isinstance(value, torch.Tensor) and value.ndim)


def work(model: Any, length: int, solver_steps: float) -> dict[str, float]:
    """Return the operations per token of a training step, of the linear layers and of each mixer."""
    if not isinstance(model, MesaForCausalLM):
        return {"maps": 6.0 * model.num_parameters()}
    found: dict[str, float] = defaultdict(float)
    for layer in model.model.layers:
        found[layer.mixer.name] += 3.0 * layer.mixer.flops(length, solver_steps)
    return {"maps": model.flops_per_token(length, solver_steps) - sum(found.values()), **found}


@dataclass(frozen=True)
class Plan:
    """The estimate for a run: bytes per process, operations per token, tokens per second and remaining seconds.

    ``begun`` is the step of the checkpoint from which the run continues, 0 without one; ``scored`` the rows of a
    validation.
    """

    recipe: Recipe
    parameters: int
    rows: int | None
    hardware: str | None
    memory: dict[str, float]
    peak: float
    flops: dict[str, float]
    checkpoint: float
    rate: Rate | None
    assumed: dict[str, float]
    begun: int
    scored: int

    @property
    def seconds(self) -> float | None:
        """Return the time of the remaining steps, with validations and checkpoints; None if the speed is unknown."""
        if self.rate is None:
            return None
        recipe, length = self.recipe, self.recipe.data.sequence_length
        left = recipe.planned_tokens - recipe.ramp.total(self.begun) * length
        # a forward pass is a third of the work
        scored = self._times(recipe.validate.every) * self.scored * length / 3
        written = self._times(recipe.checkpoint.every) * self.checkpoint / self.assumed["disk"]
        return (left + scored) / self.rate.tokens_per_second + written

    def _times(self, every: int) -> int:
        """Return how often something happens that is due every ``every`` steps (0: never) and at the end."""
        return 1 + ((self.recipe.steps - 1) // every - self.begun // every if every else 0)

    def lines(self) -> list[str]:
        """Return the plan in five lines."""
        recipe, train = self.recipe, self.recipe.train
        row = f"of {plural(recipe.data.sequence_length, 'token')}"
        batch = f"{plural(recipe.steps, 'step')} of {plural(train.batch_rows, 'row')} {row}"
        epochs = "streamed" if recipe.data.stream else "epochs unknown until the data are prepared"
        if self.rows is not None:
            epochs = f"{recipe.ramp.total(recipe.steps) / self.rows:.4g} epochs of {self.rows:,} rows"
        parts = ", ".join(f"{part} {_short(size)}B" for part, size in self.memory.items())
        room = CARDS[self.hardware].memory if self.hardware else None
        fits = "" if room is None else f"; {'fits' if self.peak < room else 'DOES NOT FIT'} in {_short(room)}B"
        work = ", ".join(f"{part} {_short(count)}" for part, count in self.flops.items())
        time = "time: unknown without an earlier run of this shape or --plan --probe"
        if self.rate is not None and self.seconds is not None:
            left = f" for the last {plural(recipe.steps - self.begun, 'step')}" if self.begun else ""
            speed = f"{self.rate.tokens_per_second:,.0f} tokens/s"
            time = f"time: {clock_text(self.seconds)}{left} at {speed}, {self.rate.source}"
        total = sum(self.flops.values())
        return [
            f"{recipe.name}: {self.parameters:,} parameters, {batch}, {recipe.planned_tokens:,} in all, {epochs}",
            f"memory: {_short(self.peak)}B per process at its peak: {parts}{fits}",
            f"work: {_short(total)}FLOP per token: {work}; {total * recipe.planned_tokens:.3g} in all",
            f"{time}; a checkpoint takes {_short(self.checkpoint)}B",
            "assumed: " + ", ".join(f"{name} {value:g}" for name, value in self.assumed.items()),
        ]


def make_plan(
    recipe: Recipe,
    config: PreTrainedConfig,
    assumptions: Assumptions | None = None,
    *,
    rows: int | None = None,
    valid_rows: int | None = None,
    rate: Rate | None = None,
    processes: int = 1,
    hardware: str | None = None,
    sharded: bool = False,
    begun: int = 0,
    teacher: PreTrainedModel | None = None,
) -> Plan:
    """Return the plan of a run, on this machine at a measured ``rate``, or on ``processes`` GPUs of type ``hardware``.

    ``rows``: the number of prepared rows; ``valid_rows``: those for validation; ``begun``: steps already made. With
    ``sharded`` the processes shard weights, gradients and optimiser (FSDP2), otherwise each holds all of them (DDP);
    groups of ``parallelism.context`` processes share rows; each has a whole ``teacher``, of which the weights and a
    forward pass are counted. Raises SettingsError if the batch does not divide among the processes.
    """
    if hardware is not None:
        one_of(hardware, CARDS, "a card in the table")
    assumptions = assumptions or Assumptions()
    train, length = recipe.train, recipe.data.sequence_length
    context = min(recipe.parallelism.context, processes)
    readers = processes // context
    micro_rows = recipe.micro_rows(processes)
    micro_batches = train.batch_rows // (readers * micro_rows)
    card = hardware is not None or local_device(recipe).startswith("cuda")
    model, bf16 = outline(config, card=card), train.precision == "bf16"
    solver_steps = assumptions.solver_steps
    if rate is not None and rate.solver_steps is not None:
        solver_steps = rate.solver_steps
    flops = work(model, length, solver_steps)
    weights, kept = 4.0 * model.num_parameters(), float(optimiser_bytes(recipe, model))
    share = processes if sharded else 1
    memory = {"weights": weights / share, "gradients": weights / share, "optimiser": kept / share}
    if train.average is not None:
        memory["average"] = weights / share
    if processes > 1:
        table = weights * config.vocab_size * config.hidden_size / model.num_parameters()
        layers = getattr(config, "num_hidden_layers", 1)
        memory["exchange"] = 2 * table + 3 * (weights - table) / layers if sharded else weights
    if teacher is not None:
        memory["teacher"] = float(sum(weight.nbytes for weight in teacher.parameters()))
        flops["teacher"] = sum(work(teacher, length, solver_steps).values()) / 3  # the forward pass
    peak = sum(memory.values())
    if isinstance(config, MesaConfig):
        recompute = train.gradient_checkpointing
        part = length // context
        active = activation_bytes(
            config,
            micro_rows,
            part,
            bf16=bf16,
            recompute=recompute,
            copies=not sharded,
            logits=train.logits_at_once,
        )
        memory["activations"] = active
        # with several micro-batches gradients and activations exist together, with one the activations go first
        peak += active if micro_batches > 1 else max(0.0, active - memory["gradients"])
    assumed = assumptions.model_dump(include={"disk"})
    if "mesa" in flops:
        assumed["solver_steps"] = round(solver_steps, 1)
    if hardware is not None:
        assumed |= assumptions.model_dump(include={"maps", "link", "overlap", "machine"})
        assumed |= {
            f"mixers.{name}": assumptions.mixers.get(name, assumptions.maps) for name in flops if name != "maps"
        }
        assumed["network"] = assumptions.network or CARDS[hardware].network
        rate = calculated_rate(
            flops if not train.gradient_checkpointing else {part: 4 / 3 * count for part, count in flops.items()},
            hardware=hardware,
            processes=processes,
            tokens=train.batch_rows * length // processes,
            update=3 * memory["weights"] + 2 * memory["optimiser"],
            exchange=_exchanged(processes, weights, micro_batches, sharded),
            assumptions=assumptions,
        )
    return Plan(
        recipe=recipe,
        parameters=model.num_parameters(),
        rows=rows,
        hardware=hardware,
        memory=memory,
        peak=peak,
        flops=flops,
        checkpoint=weights + kept + memory.get("average", 0.0) * share,
        rate=rate,
        assumed=assumed,
        begun=begun,
        scored=_scored(recipe, valid_rows) * (1 if train.average is None else 2),
    )


def _scored(recipe: Recipe, there: int | None) -> int:
    """Return the rows of a validation out of those available: all if the recipe says 0."""
    wanted = recipe.validate.rows
    return wanted if there is None else min(wanted or there, there)


def _exchanged(processes: int, weights: float, micro_batches: int, sharded: bool) -> float:
    """Return the bytes that a process sends in a step, assuming ring algorithms.

    DDP all-reduces the gradients once per step. FSDP2 all-gathers the weights twice per micro-batch, for the forward
    and the backward pass, and reduce-scatters the gradients. Both send float32 whatever the precision of the products.
    """
    ring = (processes - 1) / processes
    return ring * (3 * micro_batches if sharded else 2) * weights


def _short(number: float) -> str:
    """Return a number with three digits and an SI prefix."""
    for power, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            return f"{number / power:.3g} {letter}"
    return f"{number:.3g} "


def plan_recipe(
    recipe: Recipe,
    assumptions: Assumptions | None = None,
    *,
    cards: int = 1,
    hardware: str | None = None,
    sharded: bool = False,
    probe: bool = False,
) -> Plan:
    """Return the plan of a recipe without running it: for this machine, or for GPUs that need not be present.

    Nothing is downloaded except the tokenizer in ``data.tokenizer``, and only if ``model.vocab_size`` is not
    given. With ``probe`` the speed is measured here if no earlier run of the same shape gives it.
    """
    prepared = already_prepared(recipe.data)
    if recipe.init_from is None:
        words = _vocabulary(recipe) if prepared is None else prepared.vocab_size
        fields = {"vocab_size": words, "max_position_embeddings": max(recipe.data.sequence_length, 2048)}
        config: PreTrainedConfig = MesaConfig(**{**fields, **copy.deepcopy(recipe.model)})
    else:
        config = earlier_config(recipe)
    rows = None if prepared is None else prepared.rows("train")
    rate = None
    if hardware is None:
        rate = earlier_rate(recipe, local_device(recipe), 1)
        if rate is None and probe:
            rate = probed_rate(recipe, config, rows)
    return make_plan(
        recipe,
        config,
        assumptions,
        rows=None if rows is None or recipe.data.stream else len(rows),  # those of a streamed corpus are a sample
        valid_rows=None if prepared is None else len(prepared.rows("valid")),
        rate=rate,
        processes=cards,
        hardware=hardware,
        sharded=sharded,
        begun=0 if recipe.branch_from is None else step_of(Path(recipe.branch_from)) or 0,
    )


def _vocabulary(recipe: Recipe) -> int:
    """Return the vocabulary size of data that are not prepared yet."""
    if recipe.data.tokenizer in ("train", "none"):
        return recipe.data.vocab_size
    return int(recipe.model.get("vocab_size") or vocabulary_size(load_tokenizer(recipe.data.tokenizer)))
