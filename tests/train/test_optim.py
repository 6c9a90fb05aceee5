"""Which parameters decay, and the optimiser's settings."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from mesalm.train.optim import OptimSettings, build_optimiser, parameter_groups


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.map = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.ridge = nn.Parameter(torch.ones(2, 3))
        self.ridge._no_weight_decay = True
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)
        self.wide = nn.Module()
        self.wide.bias = nn.Parameter(torch.ones(2, 2))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def names(model: nn.Module, group: dict) -> set[str]:
    found = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in found}


def test_only_matrices_decay() -> None:
    model = Small()
    decayed, kept = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert names(model, decayed) == {"map.weight"}
    assert names(model, kept) == {
        "embed.weight", "map.bias", "norm.weight", "norm.bias", "ridge", "scale", "wide.bias",
    }  # fmt: skip
    assert len(decayed["params"]) + len(kept["params"]) == 8


def test_embeddings_decay_by_choice() -> None:
    model = Small()
    decayed, _ = parameter_groups(model, 0.1, decay_embeddings=True)
    assert names(model, decayed) == {"map.weight", "embed.weight"}


def test_optimiser_takes_the_settings() -> None:
    settings = OptimSettings(learning_rate=0.5, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    optimiser = build_optimiser(Small(), settings)
    for group, decay in zip(optimiser.param_groups, (0.3, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.8, 0.9), 1e-6)
        assert group["weight_decay"] == decay
        assert group["fused"]


def test_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimiser(nn.Linear(2, 2).requires_grad_(False), OptimSettings())


def test_muon_takes_the_matrices_of_linear_maps_and_adamw_the_rest() -> None:
    model = Small()
    settings = OptimSettings(name="muon", learning_rate=0.5, betas=(0.8, 0.9), momentum=0.7, weight_decay=0.3)
    optimiser = build_optimiser(model, settings)
    first, second = optimiser.param_groups
    assert names(model, first) == {"map.weight"}
    assert (first["lr"], first["momentum"], first["weight_decay"]) == (0.5, 0.7, 0.3)
    assert names(model, second) == {
        "embed.weight", "map.bias", "norm.weight", "norm.bias", "ridge", "scale", "wide.bias",
    }  # fmt: skip
    assert (second["lr"], second["betas"], second["weight_decay"]) == (0.5, (0.8, 0.9), 0.0)


def test_muon_makes_the_steps_of_its_two_parts() -> None:
    def trained(*make: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = Small()
        optimisers = [build(model) for build in make]
        for step in range(5):
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = 0.1 / (1 + step)
            (model.head(model.norm(model.map(model.embed.weight))).square().sum() * model.scale).backward()
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
        return [parameter.detach() for parameter in model.parameters()]

    def muon(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Muon([model.map.weight], weight_decay=0.3, adjust_lr_fn="match_rms_adamw")

    def adamw(model: nn.Module) -> torch.optim.Optimizer:
        rest = [weight for name, weight in model.named_parameters() if name != "map.weight" and weight.requires_grad]
        return torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    joined = trained(lambda model: build_optimiser(model, OptimSettings(name="muon", weight_decay=0.3)))
    apart = trained(muon, adamw)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(joined, apart, strict=True))


def test_muon_goes_on_from_its_state() -> None:
    def train(steps: int, state: Any = None, weights: Any = None) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Small()
        optimiser = build_optimiser(model, OptimSettings(name="muon", learning_rate=0.1))
        if state is not None:
            model.load_state_dict(weights)
            optimiser.load_state_dict(state)
        for _ in range(steps):
            model.head(model.norm(model.map(model.embed.weight))).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
        return model, optimiser

    whole, _ = train(5)
    model, optimiser = train(2)
    resumed, _ = train(3, deepcopy(optimiser.state_dict()), model.state_dict())
    for mine, wanted in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, wanted)


def test_muon_without_a_matrix_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="muon needs a trainable matrix"):
        build_optimiser(nn.LayerNorm(4), OptimSettings(name="muon"))
