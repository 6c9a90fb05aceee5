"""Swapping softmax layers for mesa layers keeps most of what they did, and everything else exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SPECIAL, TINY
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mesalm import MesaConfig, MesaForCausalLM
from mesalm.cli import main
from mesalm.hub.calibration_text import own_rows
from mesalm.hub.convert import choose_layers, convert
from mesalm.hub.moments import Moments, solve_held_out
from mesalm.hub.swap import swap_layers
from mesalm.model.mixers import MIXERS

Rows = Callable[[int, int], torch.Tensor]


def copying_loss(model: Any, rows: torch.Tensor) -> float:
    """Return the mean loss of the tokens that can be copied, in nats."""
    with torch.no_grad():
        logits = model(rows).logits[:, 16:-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 17:].flatten()))


def without(model: MesaForCausalLM, layers: list[int]) -> MesaForCausalLM:
    """Return a copy of a model whose named layers add nothing."""
    copy = MesaForCausalLM(model.config).eval()
    copy.load_state_dict(model.state_dict())
    for layer in layers:
        torch.nn.init.zeros_(copy.model.layers[layer].mixer.o_proj.weight)
    return copy


@pytest.mark.parametrize(("layers", "share"), [([0], 0.25), ([1], 0.25), ([0, 1], 0.05)])
@pytest.mark.parametrize("mixer", [name for name, row in MIXERS.items() if row.converts])
def test_a_swapped_layer_is_better_than_none(
    layers: list[int], share: float, mixer: str, copying_model: MesaForCausalLM, copying_rows: Rows
) -> None:
    fitted, unseen = copying_rows(64, 1001), copying_rows(64, 1002)
    swapped, swaps = swap_layers(copying_model, layers, mixer, fitted, quiet=True)
    assert swapped.config.layer_mixers == [mixer if layer in layers else "softmax" for layer in range(2)]
    assert all(0.1 < swap.explained <= 1 for swap in swaps)
    before, after = copying_loss(copying_model, unseen), copying_loss(swapped, unseen)
    removed = copying_loss(without(copying_model, layers), unseen)
    # How much of their worth is kept depends on what the layers did, and on the threads that trained this model: with
    # both swapped between an eighth and a half. Either share is 0.2 nats or more, far from the noise of 64 rows.
    assert after < removed - share * (removed - before)


def test_swapped_output_gates_are_open(copying_model: MesaForCausalLM, copying_rows: Rows) -> None:
    swapped, _ = swap_layers(copying_model, [0], "delta", copying_rows(8, 1001), quiet=True)
    mixer = swapped.model.layers[0].mixer
    gates = torch.nn.functional.silu(mixer.gate_proj(torch.randn(3, swapped.config.hidden_size)))
    torch.testing.assert_close(gates, torch.ones_like(gates))


def test_a_converted_model_goes_on_learning(copying_model: MesaForCausalLM, copying_rows: Rows) -> None:
    swapped, _ = swap_layers(copying_model, [0], "mesa", copying_rows(64, 1001), quiet=True)
    unseen = copying_rows(64, 1002)
    after = copying_loss(swapped, unseen)
    optimiser = torch.optim.AdamW(swapped.parameters(), lr=5e-3)
    for step in range(20):
        rows = copying_rows(32, 2000 + step)
        swapped(rows, labels=rows).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    # 20 steps bring it to the loss of guessing among the row's tokens; learning to copy anew takes hundreds
    assert copying_loss(swapped, unseen) < after - 0.1


def test_the_teacher_and_the_other_layers_stay_as_they_were(copying_model: MesaForCausalLM, copying_rows: Rows) -> None:
    before = {name: value.clone() for name, value in copying_model.state_dict().items()}
    swapped, _ = swap_layers(copying_model, [1], "mesa", copying_rows(8, 0), quiet=True)
    assert all(torch.equal(before[name], value) for name, value in copying_model.state_dict().items())
    assert copying_model.config.layer_mixers == ["softmax", "softmax"]
    after = swapped.state_dict()
    carried = set(before) - {"model.layers.1.mixer.o_proj.weight"}
    assert carried <= set(after)
    assert all(torch.equal(before[name], after[name]) for name in carried)
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("style", ["llama", "qwen3", "own"])
def test_converting_writes_a_folder_that_loads(style: str, tmp_path: Path, save_beside: Callable[..., str]) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": 258,
        **TINY,
        **SPECIAL,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "attention_bias": True,
    }
    models: dict[str, Callable[[], Any]] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**sizes)),
        "own": lambda: MesaForCausalLM(MesaConfig(**sizes, mixers=["softmax", "linear", "softmax"], conv_size=3)),
    }
    place = save_beside(models[style]().to(torch.bfloat16))
    (tmp_path / "text.txt").write_text("a line of text to fit to. " * 20)
    arguments = ["--layers", "0,2", "--calibrate", str(tmp_path / "text.txt"), "--tokens", "256"]
    assert main(["convert", place, str(tmp_path / "out"), *arguments]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model) is MesaForCausalLM
    assert model.config.layer_mixers == ["mesa", "linear" if style == "own" else "softmax", "mesa"]
    assert model.dtype == torch.bfloat16
    assert model.model.layers[0].mixer.ridge_bias.dtype == torch.float32
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["layers"] == [0, 2]
    assert record["calibration"]["files"][0]["name"] == "text.txt"
    inputs = AutoTokenizer.from_pretrained(tmp_path / "out")("abc", return_tensors="pt").input_ids
    assert model.generate(inputs, max_new_tokens=3, pad_token_id=0).shape[1] <= 6
    model.float()(inputs, labels=inputs).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_converting_no_layer_keeps_the_logits(tmp_path: Path, save_beside: Callable[..., str]) -> None:
    torch.manual_seed(2)
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=258, **TINY)).eval()
    out = convert(save_beside(theirs), tmp_path / "out", layers="none")
    ids = torch.randint(2, 258, (2, 20))
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(out)(ids).logits
        torch.testing.assert_close(found, theirs(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "layers"),
    [("all", [0, 1, 2, 3, 4]), ("none", []), ("1,3", [1, 3]), ("0-2,4", [0, 1, 2, 4]), ("every-2", [0, 2, 4])],
)
def test_layers_are_named_by_number_range_or_stride(text: str, layers: list[int]) -> None:
    assert choose_layers(text, ["softmax"] * 5) == layers


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("5", "there is no layer 5; the model has layers 0 to 4"),
        ("3-1", "'3-1' names no layer"),
        ("", "'' names no layer"),
        ("odd", "'odd' names no layer"),
        ("0,2", "layer 2 is mesa; only softmax"),
    ],
)
def test_layers_that_cannot_be_swapped_are_named(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        choose_layers(text, ["softmax", "softmax", "mesa", "softmax", "softmax"])


def test_a_model_without_text_writes_its_own(copying_model: MesaForCausalLM) -> None:
    torch.manual_seed(0)
    rows = own_rows(copying_model, 5, 24, quiet=True)
    assert rows.shape == (5, 24)
    assert (rows[:, 0] == 1).all()
    torch.manual_seed(0)
    assert torch.equal(rows, own_rows(copying_model, 5, 24, quiet=True))


def test_held_out_tokens_choose_how_much_to_shrink() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 3, dtype=torch.float64)
    features, fresh = torch.randn(400, 6, dtype=torch.float64), torch.randn(400, 6, dtype=torch.float64)
    found, share = solve_held_out(Moments.of(features, features @ weight), Moments.of(fresh, fresh @ weight))
    torch.testing.assert_close(found, weight, atol=1e-5, rtol=1e-5)
    assert share == pytest.approx(1.0)
    # the library's solver is the reference for the map without shrinkage
    targets = torch.randn(400, 3, dtype=torch.float64)
    least = torch.linalg.lstsq(features, targets).solution
    torch.testing.assert_close(Moments.of(features, targets).solve(0.0), least)
    error = (features @ least - targets).square().sum()
    torch.testing.assert_close(Moments.of(features, targets).error(least), error)
    # of noise nothing can be learnt, and the layer had better add nothing
    few = Moments.of(features[:8], targets[:8])
    none, share = solve_held_out(few, Moments.of(fresh, torch.randn(400, 3, dtype=torch.float64)))
    assert share < 0.05
    assert none.square().mean() < 0.1 * few.solve(0.0).square().mean()
