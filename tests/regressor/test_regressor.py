"""The model of continuous tokens: what it reads, what it predicts, and that its blocks are the language model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import NARROW
from transformers import AutoModel

from mesalm import MesaConfig, MesaForCausalLM, MesaRegressor, RegressorConfig
from mesalm.data.synthetic.context_regression import ContextRegression
from mesalm.regressor.regressor_mesa import half_squared_error, sinusoids

CASES = [
    *[pytest.param({"mixers": name}, id=name) for name in ("linear", "mesa", "softmax")],
    pytest.param({"mixers": ["softmax", "mesa"], "num_hidden_layers": 2, "residual_clip": 1.0}, id="hybrid"),
    pytest.param({"mixers": "softmax", "block_mlps": True, "block_norms": True}, id="norms-and-mlp"),
    pytest.param({"mixers": "mesa", "tokens": "constructed", "positions": False}, id="constructed"),
    pytest.param({"mixers": "softmax", "learned_vectors": 6}, id="learned"),
]


def build(**changes: Any) -> MesaRegressor:
    torch.manual_seed(0)
    options = {"input_size": 4, **NARROW, "initializer_range": 0.3, "tolerance": 1e-6}
    return MesaRegressor(RegressorConfig(**{**options, **changes})).eval()


def vectors(batch: int = 3, length: int = 12) -> torch.Tensor:
    return torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
def test_no_vector_sees_a_later_one(case: dict[str, Any]) -> None:
    model, inputs = build(**case), vectors()
    changed = inputs.clone()
    changed[:, 9] += 1
    with torch.no_grad():
        before, after = model(inputs).predictions, model(changed).predictions
    torch.testing.assert_close(before[:, :9], after[:, :9], atol=1e-5, rtol=1e-5)
    assert ((before - after)[:, 9:].abs().amax((0, 2)) > 1e-4).all()


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_is_the_same(case: dict[str, Any], tmp_path: Path) -> None:
    model, inputs = build(**case), vectors()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, MesaRegressor)
    assert torch.equal(loaded(inputs).predictions, model(inputs).predictions)


@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_every_parameter(case: dict[str, Any]) -> None:
    model = build(**case)
    places = torch.arange(12).expand(3, 12) % 7 if model.learned is not None else None
    model(vectors(), targets=vectors().flip(1), places=places).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_one_mesa_layer_on_constructed_tokens_is_ridge_regression() -> None:
    model, inputs = build(mixers="mesa", tokens="constructed", positions=False, num_attention_heads=1), vectors()
    mixer, eye = model.layers[0].mixer, torch.eye(4)
    with torch.no_grad():
        for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.o_proj):
            projection.weight.zero_()
        mixer.q_proj.weight[:4, 8:12] = eye  # x_t
        mixer.k_proj.weight[:4, 12:16] = eye  # x_{t-1}
        mixer.v_proj.weight[:4, 8:12] = eye
        mixer.o_proj.weight[:4, :4] = eye
        predictions = model(inputs).predictions.double()
    past, known = inputs.double(), torch.cat((torch.zeros(3, 1, 4), inputs), dim=1).double()
    for t in range(12):
        # ridge as least squares with a row of sqrt(ridge) a dimension
        rows = torch.cat((known[:, : t + 1], torch.eye(4).expand(3, 4, 4)), dim=1)
        answers = torch.cat((past[:, : t + 1], torch.zeros(3, 4, 4)), dim=1)
        fitted = torch.linalg.lstsq(rows, answers).solution
        # float32 solves to a relative 1e-6
        torch.testing.assert_close(predictions[:, t], (past[:, t : t + 1] @ fitted)[:, 0], atol=2e-5, rtol=2e-5)


def test_constructed_tokens_hold_their_parts() -> None:
    inputs = vectors()
    empty, copied, current, previous = build(tokens="constructed", positions=False).embed(inputs).split(4, dim=-1)
    assert not empty.any()
    assert torch.equal(copied, inputs)
    assert torch.equal(current, inputs)
    assert not previous[:, 0].any()
    assert torch.equal(previous[:, 1:], inputs[:, :-1])
    without = build(tokens="constructed", positions=False, copy_slot=False).embed(inputs)
    assert not without[..., 4:8].any()
    assert torch.equal(without[..., 8:], torch.cat((current, previous), dim=-1))


def test_the_stream_is_bounded_and_returned_block_by_block() -> None:
    model, inputs = build(mixers="linear", num_hidden_layers=3, residual_clip=0.5, initializer_range=1.0), vectors()
    stream = model(inputs, output_hidden_states=True).hidden_states
    assert len(stream) == 4
    assert stream[0].abs().max() > 0.5
    assert all(state.abs().max() == 0.5 for state in stream[1:])
    torch.testing.assert_close(model.output_map(stream[-1]), model(inputs).predictions)


def test_positions_reach_queries_and_keys_of_the_first_layer_alone() -> None:
    model = build(mixers="softmax", num_hidden_layers=2)
    widths = [[mixer.q_proj.in_features, mixer.k_proj.in_features, mixer.v_proj.in_features] for mixer in mixers(model)]
    assert widths == [[32, 32, 16], [16, 16, 16]]
    same = torch.ones(1, 5, 4)
    assert build(mixers="softmax")(same).predictions.std(dim=1).max() < 1e-6  # equal values: positions change nothing
    assert build(mixers="linear")(same).predictions.std(dim=1).max() > 1e-3


def mixers(model: MesaRegressor) -> list[Any]:
    return [layer.mixer for layer in model.layers]


def test_sinusoids_have_the_published_wavelengths() -> None:
    table = sinusoids(7, 5, torch.device("cpu"))
    assert table.shape == (7, 5)
    torch.testing.assert_close(table[:, 0], torch.arange(7.0).sin())
    torch.testing.assert_close(table[:, 4], (torch.arange(7) / 10000 ** (1 / 3)).cos())


def test_both_ways_to_attend_agree() -> None:
    model, inputs = build(mixers="softmax"), vectors()
    fused = model(inputs).predictions
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(inputs).predictions, fused, atol=1e-5, rtol=1e-5)


def test_learned_vectors_stand_at_their_places() -> None:
    task = ContextRegression(size=4, pairs=3, separator=True, prefix=2)
    batch = task.draw(2, torch.Generator().manual_seed(0))
    model = build(mixers="softmax", learned_vectors=3)
    filled = batch["inputs"].clone()
    filled[:, 4::3] = model.learned[0].detach()
    filled[:, :2] = model.learned[1:].detach()
    plain = build(mixers="softmax")
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model(**batch).predictions, plain(filled).predictions)
    with pytest.raises(ValueError, match="learned_vectors"):
        plain(**batch)


def test_the_loss_is_half_the_summed_square() -> None:
    predictions, targets = vectors(), vectors().flip(0)
    expected = sum(
        0.5 * float((predictions[b, t, i] - targets[b, t, i]) ** 2)
        for b in range(3)
        for t in range(12)
        for i in range(4)
    )
    assert float(half_squared_error(predictions, targets)) == pytest.approx(expected / 36, rel=1e-5)
    weights = torch.zeros(3, 12)
    weights[:, 3] = 1.0
    alone = half_squared_error(predictions[:, 3:4], targets[:, 3:4])
    torch.testing.assert_close(half_squared_error(predictions, targets, weights), alone)


def test_blocks_are_the_language_models() -> None:
    options = {"num_hidden_layers": 2, "mixers": ["softmax", "mesa"], **NARROW}
    regressor = build(**options, positions=False)
    language = MesaForCausalLM(
        MesaConfig(
            vocab_size=8, num_attention_heads=4, block_norms=False, block_mlps=False, gates=False, conv_size=0,
            qk_l2_norm=False, read_norm=False, ridge_floor=0.0, ridge_per_channel=False, **options,
        )
    )  # fmt: skip
    blocks = {name for name in regressor.state_dict() if name.startswith("layers")}
    assert blocks == {name.removeprefix("model.") for name in language.state_dict() if ".layers." in name}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": "other"}, "tokens"),
        ({"tokens": "constructed", "positions": False, "input_size": 5}, "hidden_size"),
        ({"tokens": "constructed"}, "positions"),
        ({"residual_clip": 0.0}, "residual_clip"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        RegressorConfig(**{"input_size": 4, **NARROW, **options})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="shape"):
        build()(torch.zeros(1, 3, 5))
