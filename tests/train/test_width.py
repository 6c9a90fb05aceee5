"""Rates that carry over between widths: activations after a few steps, and which weights are scaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import SPECIAL

from mesalm import MesaConfig, MesaForCausalLM
from mesalm.train.optim import OptimSettings, build_optimiser, scale_first_weights
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe

WIDTHS = (32, 64, 128, 256)


def model_of(width: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    shape = {"intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": width // 16}
    return MesaForCausalLM(MesaConfig(vocab_size=64, hidden_size=width, **shape, **SPECIAL, **changes))


def sizes(width: int, base_width: int | None, name: str, **changes: Any) -> torch.Tensor:
    """Return the root mean square of the stream after each block and of the logits, after five steps."""
    model = model_of(width, **changes)
    if base_width is not None:
        scale_first_weights(model, base_width)
    optimiser = build_optimiser(model, OptimSettings(name=name, base_width=base_width))
    ids = torch.randint(2, 64, (4, 32), generator=torch.Generator().manual_seed(1))
    for group in optimiser.param_groups:
        group["lr"] = 0.01 * group.get("rate_scale", 1.0)
    for _ in range(5):
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True)
    return torch.stack([found.square().mean().sqrt() for found in (*output.hidden_states[:-1], output.logits)])


@pytest.mark.parametrize(
    ("name", "tied", "mixers"),
    [
        ("adamw", True, "softmax"),
        ("adamw", False, "mesa"),
        pytest.param("muon", False, "mesa", marks=pytest.mark.slow),  # a minute or two: it computes in bfloat16
    ],
)
def test_activations_stay_flat_over_widths(name: str, tied: bool, mixers: str) -> None:
    changes = {"mixers": mixers, "tie_word_embeddings": tied}
    flat = torch.stack([sizes(width, WIDTHS[0], name, **changes) for width in WIDTHS])
    assert ((flat / flat[0]).log().abs() < torch.tensor(1.5).log()).all(), flat
    grown = sizes(WIDTHS[-1], None, name, **changes) / flat[0]
    assert (grown > 2).any(), grown  # so the same measure sees it where nothing is scaled
    assert grown[-1] > 3


def test_nothing_is_scaled_at_the_base_width_nor_without_one() -> None:
    plain, scaled = model_of(32, mixers="softmax"), model_of(32, mixers="softmax")
    scale_first_weights(scaled, 32)
    assert all(torch.equal(*pair) for pair in zip(plain.parameters(), scaled.parameters(), strict=True))
    groups = build_optimiser(plain, OptimSettings()).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert not any("rate_scale" in group for group in groups)
    scaled_groups = build_optimiser(scaled, OptimSettings(base_width=32)).param_groups
    assert {group["rate_scale"] for group in scaled_groups} == {1.0}


@pytest.mark.parametrize(("name", "scale"), [("adamw", 0.25), ("muon", 0.5)])
def test_rate_and_decay_of_a_matrix_are_scaled_and_a_gain_keeps_its_rate(name: str, scale: float) -> None:
    model = model_of(64, mixers="mesa")
    optimiser = build_optimiser(model, OptimSettings(name=name, base_width=16))
    found = {id(weight): group for group in optimiser.param_groups for weight in group["params"]}
    assert len(found) == len(list(model.parameters()))
    block = model.model.layers[0]
    for weight, rate, decay in (
        (block.mlp.down_proj.weight, scale, 0.1 / scale),
        (block.mixer.q_proj.weight, scale, 0.1 / scale),
        (block.input_layernorm.weight, 1.0, 0.0),
        (model.model.embed_tokens.weight, 0.5, 0.0),
        (model.model.norm.weight, 0.5, 0.0),
    ):
        assert found[id(weight)]["rate_scale"] == rate
        assert found[id(weight)]["weight_decay"] == pytest.approx(decay)


def test_a_run_scales_rates_and_first_weights(load: Callable[..., Recipe]) -> None:
    run = pretrain(load("optim.base_width=4", "schedule.name=constant", "train.steps=1"), quiet=True)
    state = torch.load(run / "checkpoints/step-00000001/optimiser.pt", weights_only=True)
    assert {group["lr"] for group in state["param_groups"]} == {1e-3, 0.5e-3, 0.25e-3}
    gain = load_file(run / "final" / "model.safetensors")["model.norm.weight"]
    assert gain.mean() == pytest.approx(0.5, abs=2e-3)


def test_a_model_without_a_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim\.base_width: Linear lacks hidden_size"):
        build_optimiser(torch.nn.Linear(2, 2), OptimSettings(base_width=16))
