"""Estimates, before any claim is run, of the trainings that claims need, their time and memory.

Experiments are run on untrained nets and few sequences, which records the trainings they would need. Then some steps
of each kind of training are timed.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mesalm.data.stream import Batch
from mesalm.data.synthetic.drawn_stream import drawn_batch
from mesalm.data.synthetic.vector_task import VectorTask
from mesalm.lab.workbench import NetRecipe, Workbench, fixed, learner_of
from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.modeling_mesa import MesaForCausalLM
from mesalm.regressor.regressor_mesa import MesaRegressor
from mesalm.runs import RunFiles, complete_checkpoints, step_of
from mesalm.train.activations import counted_storages
from mesalm.train.optim import OptimSettings, build_optimiser
from mesalm.train.progress import clock_text
from mesalm.train.randomness import preserved_randomness
from mesalm.train.recipe import Recipe
from mesalm.train.speeds import device_name

ROWS = 16
"""Maximum number of sequences per batch of an experiment during planning."""
LARGEST_PROBE = 2e10
"""Operations per step above which fewer sequences, and if needed shorter ones, are timed."""
PIECE = 300
"""Seconds per piece of work that ends with a checkpoint."""


@dataclass(frozen=True)
class Training:
    """One training: its folder, total and remaining steps, the batch size, and how to make learner and batches."""

    folder: Path
    kind: str
    steps: int
    left: int
    between: int
    rows: int
    length: int
    optim: OptimSettings
    learner: Callable[[], nn.Module]
    batch: Callable[[int, int], Batch]


@dataclass(frozen=True)
class Cost:
    """The cost of one step of a kind of training: seconds, operations, and peak memory in bytes."""

    seconds: float
    work: float
    memory: float


@dataclass(frozen=True)
class PlanningBench(Workbench):
    """A workbench that records trainings instead of running them."""

    found: dict[Path, Training] = field(default_factory=dict)

    def net(self, recipe: NetRecipe) -> MesaRegressor:
        """Return the untrained net, and record its training and those of its bases."""
        if recipe.base is not None:
            self.net(recipe.base)
        self.found[self.folder(recipe)] = net_training(recipe, self.folder(recipe), self.device)
        return fixed(recipe.build_net(), self.device)

    def stages(self, recipe: NetRecipe) -> list[tuple[int, MesaRegressor]]:
        """Return the untrained net as the only stage."""
        return [(recipe.steps, self.net(recipe))]

    def batch(self, task: VectorTask, rows: int, step: int = 0) -> Batch:
        """Draw at most `ROWS` sequences."""
        return super().batch(task, min(rows, ROWS), step)

    def text_losses(self, recipe: Recipe, rows: int, split: str = "valid") -> Tensor:
        """Return random losses, and record the training of a language model."""
        self.found[recipe.folder] = text_training(recipe, self.device)
        return torch.rand(recipe.data.sequence_length - 1, dtype=torch.float64)


def net_training(recipe: NetRecipe, folder: Path, device: str) -> Training:
    """Return the training of an experiment's net; steps already in its folder do not count as left."""
    kept = recipe.model_dump(exclude={"seed", "steps", "optim", "schedule", "base", "fresh"})

    def learner() -> nn.Module:
        base = None if recipe.base is None else fixed(recipe.base.build_net(), device)
        return learner_of(recipe, base)[1].to(device)

    def batch(rows: int, length: int) -> Batch:
        return drawn_batch(recipe.task, rows, recipe.seed, device=device)

    return Training(
        folder,
        repr((kept, recipe.outside())) + str(recipe.base is None),
        recipe.steps,
        _left(folder, recipe.steps),
        recipe.checkpoint_every,
        recipe.batch,
        recipe.task.sequence_length,
        recipe.optim,
        learner,
        batch,
    )


def text_training(recipe: Recipe, device: str) -> Training:
    """Return the training of a language model, timed on random tokens without reading text."""
    words, length = recipe.data.vocab_size, recipe.data.sequence_length

    def learner() -> nn.Module:
        model: Any = MesaForCausalLM(MesaConfig(**{"vocab_size": words, **copy.deepcopy(recipe.model)}))
        return cast(nn.Module, model.to(device))

    def batch(rows: int, shorter: int) -> Batch:
        ids = torch.randint(words, (rows, shorter), device=device)
        return {"input_ids": ids, "labels": ids}

    return Training(
        recipe.folder,
        repr((recipe.model, words, length, recipe.train.batch_rows)),
        recipe.steps,
        _left(recipe.folder, recipe.steps),
        recipe.checkpoint.every,
        recipe.train.batch_rows,
        length,
        recipe.optim,
        learner,
        batch,
    )


def _left(folder: Path, steps: int) -> int:
    """Return the number of steps that a training still needs."""
    files = RunFiles(folder)
    if files.final.is_dir():
        return 0
    done = [step_of(each) or 0 for each in complete_checkpoints(files.checkpoints)]
    return steps - max(done, default=0)


def operations(learner: Any, length: int) -> float:
    """Return the operations per token of a training step: those of all weights, and further ones of the mixers.

    Frozen weights take part only in the forward pass, a third of the work. Solver steps are not counted.
    """
    if hasattr(learner, "flops_per_token"):
        return float(learner.flops_per_token(length))
    total = 0.0
    for module in learner.modules():
        own = list(module.parameters(recurse=False))
        passes = 3.0 if any(weight.requires_grad for weight in module.parameters()) else 1.0
        total += passes * 2.0 * sum(weight.numel() for weight in own)
        if hasattr(module, "flops"):
            total += passes * module.flops(length)
    return total


def measure(training: Training, seconds: float = 0.2, largest: float = LARGEST_PROBE) -> Cost:
    """Run steps of a training for ``seconds``, at least three, and return the cost of one.

    If a step has more than `largest` operations, only a part of it is run, and time and memory are extrapolated.
    """
    learner = training.learner()
    rows, length = training.rows, training.length
    work = operations(learner, length) * rows * length
    if work > largest:
        rows = max(1, int(rows * largest / work))
        if operations(learner, length) * rows * length > 2 * largest:
            length = max(32, int(length * largest / (operations(learner, length) * rows * length)))
    batch = training.batch(rows, length)
    optimiser = build_optimiser(learner, training.optim)
    kept = _kept_bytes(learner, batch)
    clock = _clock(next(iter(batch.values())).device)
    times = [clock()]
    while len(times) < 5 or times[-1] - times[1] < seconds:  # the first is a warm-up
        learner(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        times.append(clock())
    made = operations(learner, length) * rows * length
    taken = statistics.median(after - before for before, after in pairwise(times[1:]))
    # weights, gradients and the two moments of AdamW
    weights = sum((16.0 if each.requires_grad else 4.0) * each.numel() for each in learner.parameters())
    return Cost(taken * work / made, work, weights + kept * work / made)


def _clock(device: torch.device) -> Callable[[], float]:
    """Return a clock in seconds: wall-clock time on a GPU, and on a CPU the process's CPU time per thread."""
    if device.type == "cpu":
        return lambda: time.process_time() / torch.get_num_threads()

    def passed() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return passed


def _kept_bytes(learner: nn.Module, batch: Batch) -> float:
    """Return the bytes that autograd saves in a forward pass, without the weights, once per storage."""
    kept: list[int] = []
    with counted_storages(lambda tensor: kept.append(tensor.untyped_storage().nbytes()), learner.parameters()):
        learner(**batch).loss.backward()
    learner.zero_grad(set_to_none=True)
    return float(sum(kept))


@dataclass(frozen=True)
class ClaimPlan:
    """The trainings that claims need, by claim, and the cost of one step of each kind."""

    claims: Mapping[str, Mapping[Path, Training]]
    costs: Mapping[str, Cost]
    device: str

    def seconds(self, trainings: Mapping[Path, Training]) -> float:
        """Return the time that trainings still need."""
        return sum(each.left * self.costs[each.kind].seconds for each in trainings.values())

    def order(self) -> list[str]:
        """Return the claims in greedy order: next is always the cheapest, given the nets of those before."""
        left, made, order = list(self.claims), set[Path](), list[str]()
        while left:
            new = {name: {path: each for path, each in self.claims[name].items() if path not in made} for name in left}
            costs = {name: self.seconds(trainings) for name, trainings in new.items()}
            name = min(costs, key=costs.__getitem__)
            left.remove(name)
            made |= self.claims[name].keys()
            order.append(name)
        return order

    def lines(self) -> list[str]:
        """Return the plan as text: one line per claim, in the order of `order`, then totals and assumptions."""
        wide = max(len(name) for name in self.claims)
        lines = [f"{'claim':{wide}}  trainings  steps left      time     so far    memory"]
        so_far: dict[Path, Training] = {}
        for name in self.order():
            new = {path: each for path, each in self.claims[name].items() if path not in so_far}
            so_far |= new
            steps, most = sum(each.left for each in new.values()), self._memory(self.claims[name])
            lines.append(
                f"{name:{wide}}  {len(new):9d}  {steps:10,}  {clock_text(self.seconds(new)):>8}  "
                f"{clock_text(self.seconds(so_far)):>9}  {most:>8}"
            )
        total = self.seconds(so_far)
        work = sum(each.left * self.costs[each.kind].work for each in so_far.values())
        longest = max((each.between * self.costs[each.kind].seconds for each in so_far.values()), default=0.0)
        return [
            *lines,
            f"in all: {clock_text(total)} of training on {self.device}, {work:.3g} operations, "
            f"{-(-total // PIECE):.0f} pieces of {PIECE} s; a checkpoint at least every {longest:.0f} s",
            "order: claims decided soonest come first, as with --cheapest-first; a net that several claims need counts "
            "for the first of them",
            f"assumed: nets train as fast as a few steps timed now (in part, for steps of over {LARGEST_PROBE:.0e} "
            "operations); memory counts weights, gradients, optimiser and activations; the machine does nothing else; "
            "tests after training are not counted",
        ]

    def _memory(self, trainings: Mapping[Path, Training]) -> str:
        most = max((self.costs[each.kind].memory for each in trainings.values()), default=0.0)
        return f"{most / 1e6:,.0f} MB" if most else "-"


Planned = tuple[str, Callable[[Workbench, dict[str, Any]], Any], dict[str, Any]]
"""A claim's name, experiment and sizes."""


def plan_experiments(wanted: Sequence[Planned], seeds: Sequence[int], nets: Path, device: str) -> ClaimPlan:
    """Return what experiments need with all seeds; the paper's experiments without ``steps`` need no training."""
    claims: dict[str, dict[Path, Training]] = {}
    costs: dict[str, Cost] = {}
    with preserved_randomness():
        for name, experiment, sizes in tqdm(wanted, desc="Finding nets", unit=" claims", leave=False, disable=None):
            found: dict[Path, Training] = {}
            claims[name] = found
            idle = "steps" not in sizes and experiment.__module__.startswith("mesalm.")
            for seed in () if idle else seeds:
                experiment(PlanningBench(seed, nets, device, quiet=True, found=found), dict(sizes))
        kinds = {each.kind: each for found in claims.values() for each in found.values()}
        for kind, each in tqdm(kinds.items(), desc="Timing steps", unit=" nets", leave=False, disable=None):
            costs[kind] = measure(each)
    return ClaimPlan(claims, costs, device_name(torch.device(device)))
