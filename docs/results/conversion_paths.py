"""Train a converted model on in several ways, and print its held-out loss after each share of the original's tokens.

python docs/results/conversion_paths.py RUN --mixer mesa --shares 0.005 0.02 0.2 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mesalm.hub.carry_over import open_softmax_model
from mesalm.hub.convert import convert
from mesalm.runs import RunRecord
from mesalm.train import training
from mesalm.train.distil import Distillation
from mesalm.train.loop import Outcome
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe

PATHS = ("text", "logits", "streams", "streams, logits")
"""The losses of one run, or of two that share the tokens."""


@dataclass(frozen=True)
class StreamDistillation(Distillation):
    """Distillation of what each block leaves in the residual stream: the mean of the squares that are missed."""

    def __call__(self, model: nn.Module, *arguments: Any, **options: Any) -> Outcome:
        """Train as `training.run` does, with all blocks' outputs recorded."""

        def recorded(_: nn.Module, arguments: Any, batch: dict[str, Any]) -> Any:
            return arguments, {**batch, "output_hidden_states": True}

        hook = model.register_forward_pre_hook(recorded, with_kwargs=True)
        try:
            return super().__call__(model, *arguments, **options)
        finally:
            hook.remove()

    def loss(self, batch: dict[str, Any], outputs: Any) -> torch.Tensor:
        """Return the mean over blocks of the squared error as a share of the square."""
        with torch.no_grad():
            read = {name: batch[name] for name in ("input_ids", "position_ids")}
            wanted = self.teacher(**read, output_hidden_states=True).hidden_states[1:]
        found = outputs.hidden_states[1:]
        shares = [(x - y).square().mean() / y.square().mean() for x, y in zip(found, wanted, strict=True)]
        return torch.stack(shares).mean()


def recipe_of(original: Recipe, start: Path, name: str, tokens: int, seed: int, rate: float) -> Recipe:
    """Return the original's recipe for a share of its tokens, from other weights."""
    plain = original.plain()
    plain |= {"name": name, "seed": seed, "init_from": str(start), "model": {}}
    plain["train"] |= {"tokens": tokens, "steps": None}
    plain["optim"]["learning_rate"] = rate
    plain["data"]["tokenizer"] = str(start)
    plain["validate"]["every"] = 0
    return Recipe.build(plain)


def ways(path: str, teacher: nn.Module) -> list[Callable[..., Outcome]]:
    """Return how each of a path's runs is trained."""
    kinds = {"text": training.run, "logits": Distillation(teacher), "streams": StreamDistillation(teacher)}
    return [kinds[word] for word in path.split(", ")]


def held_out(run: Path) -> float:
    """Return the last held-out loss of a run, in nats per token."""
    return float([event for event in RunRecord(run).events if event["event"] == "valid"][-1]["loss"])


def follow(original: Recipe, start: Path, path: str, tokens: int, seed: int, rate: float, teacher: nn.Module) -> float:
    """Train along one path, or read what was trained; return the held-out loss at its end."""
    todo, converted = ways(path, teacher), start.name
    for place, train in enumerate(todo):
        name = f"{converted}-{path.replace(', ', '-')}-{tokens}-{rate:g}-s{seed}-{place}"
        run = pretrain(recipe_of(original, start, name, tokens // len(todo), seed, rate), quiet=True, train=train)
        start = run / "final"
    return held_out(run)


def main() -> None:
    """Print a line for each share, path and seed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("run", type=Path)
    options.add_argument("--mixer", default="mesa")
    options.add_argument("--layers", default="all")
    options.add_argument("--shares", nargs="+", type=float, default=[0.005, 0.02, 0.2])
    options.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS)
    options.add_argument("--rates", nargs="+", type=float, default=[1e-3])
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    given = options.parse_args()
    original = Recipe.build(RunRecord(given.run).start["recipe"])
    start = Path(original.output_dir) / f"converted-{given.mixer}-{given.layers}"
    if not start.exists():
        convert(str(given.run), start, layers=given.layers, mixer=given.mixer)
    teacher = open_softmax_model(str(given.run))
    print(f"original: {held_out(given.run):.3f}", flush=True)
    for seed in given.seeds:
        for share in given.shares:
            for path in given.paths:
                for rate in given.rates:
                    tokens = int(share * original.planned_tokens)
                    loss = follow(original, start, path, tokens, seed, rate, teacher)
                    print(f"| {given.mixer} | {share:.1%} | {path} | {rate:g} | {seed} | {loss:.3f} |", flush=True)


if __name__ == "__main__":
    main()
