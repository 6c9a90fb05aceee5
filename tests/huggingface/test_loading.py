"""Loading and changing a model: dtypes, device maps, vocabularies, attention back ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from transformers import AutoModel, AutoModelForCausalLM, StaticCache
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from mesalm import MesaForCausalLM
from mesalm.model.layers import GateProjection

Build = Callable[..., MesaForCausalLM]
Draw = Callable[..., torch.Tensor]
# bfloat16 keeps 8 bits; a dozen roundings a layer leave about a hundredth, which the solve can magnify
HALF = 5e-2


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def test_bfloat16_keeps_gates_and_ridge_in_float32(kind: str, build: Build, tokens: Draw, tmp_path: Path) -> None:
    model, ids = build(kind), tokens(2, 40)
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    exact = {name for name, parameter in half.named_parameters() if parameter.dtype == torch.float32}
    words = {"mesa": ("forget_proj", "input_proj", "ridge_bias"), "linear": ("forget_proj", "input_proj")}
    expected = {
        f"model.layers.{layer}.mixer.{word}"
        for layer, mixer in enumerate(model.config.layer_mixers)
        for word in words.get(mixer, ())
    }
    assert {name.removesuffix(".weight").removesuffix(".bias") for name in exact} == expected
    with torch.no_grad():
        assert distance(half(ids).logits, model(ids).logits) < HALF
        cached = half.generate(ids[:1], max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert cached.shape == (1, 45)


def test_a_new_model_of_bfloat16_keeps_gates_and_ridge_in_float32(kind: str, build: Build, tmp_path: Path) -> None:
    model = build(kind, forget_rate=True)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    made = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    dtypes = [{name: weight.dtype for name, weight in one.named_parameters()} for one in (made, loaded)]
    assert dtypes[0] == dtypes[1]


def test_quantisers_leave_gates_alone(build: Build) -> None:
    model = build(mixers=["mesa", "kalman"], forget_rate=True)
    skipped = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    gates = {name for name, module in model.named_modules() if isinstance(module, GateProjection)}
    # some ask by the name of a module, some by that of its weight
    for suffix in ("", ".weight"):
        left = {name for name in linear if not should_convert_module(name + suffix, skipped)}
        assert left - {"lm_head"} == gates


def test_a_forget_gate_near_one_survives_bfloat16(build: Build, tmp_path: Path) -> None:
    model = build("mesa", forget_cap=None)
    mixer = model.model.layers[0].mixer
    with torch.no_grad():
        mixer.forget_proj.bias.fill_(8.0)  # gamma = 0.99966, which bfloat16 rounds to 1
    model.save_pretrained(tmp_path)
    half = MesaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    log_forget, _ = half.model.layers[0].mixer._gates(torch.zeros(1, 1, 32, dtype=torch.bfloat16), None, None, None)
    torch.testing.assert_close(log_forget.exp(), torch.full((1, 1, 2), 0.99966), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("place", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_a_device_map_places_the_model(place: object, build: Build, tokens: Draw, tmp_path: Path) -> None:
    model, ids = build(), tokens(1, 8)
    model.save_pretrained(tmp_path)
    placed = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=place).eval()
    with torch.no_grad():
        assert torch.equal(placed(ids).logits, model(ids).logits)


def test_blocks_left_on_disk_are_read_when_needed(kind: str, build: Build, tokens: Draw, tmp_path: Path) -> None:
    model, ids = build(kind), tokens(1, 8)
    model.save_pretrained(tmp_path / "saved")
    places = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        "lm_head": "cpu",
    }
    if model.model.rotary_emb is not None:
        places["model.rotary_emb"] = "cpu"
    split = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", device_map=places, offload_folder=tmp_path / "offload"
    ).eval()
    assert next(split.model.layers[1].parameters()).device.type == "meta"
    found = split.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert torch.equal(found, model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False))


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_a_grown_vocabulary_is_learnt_and_survives_saving(tie: bool, build: Build, tmp_path: Path) -> None:
    model = build(tie_word_embeddings=tie)
    model.resize_token_embeddings(64, mean_resizing=False)
    ids = torch.tensor([[3, 62, 5, 63, 4]])
    model.train()(ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad[62].abs().sum() > 0
    assert model.get_output_embeddings().weight.grad[63].abs().sum() > 0
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.vocab_size == 64
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tie
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    model.resize_token_embeddings(40)
    assert model(torch.arange(40)[None]).logits.shape[-1] == 40


# flex_attention compiles its mask, and torch's compiler uses parts of torch that torch deprecates
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("implementation", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_back_ends_agree(implementation: str, build: Build, tokens: Draw, tmp_path: Path) -> None:
    model, ids = build(), tokens(2, 9)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    model.save_pretrained(tmp_path)
    other = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=implementation).eval()
    assert other.config._attn_implementation == implementation
    with torch.no_grad():
        found, expected = other(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)


def test_the_base_model_and_the_language_model_share_a_checkpoint(build: Build, tokens: Draw, tmp_path: Path) -> None:
    model, ids = build(), tokens(1, 6)
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(base(ids).last_hidden_state @ model.lm_head.weight.T, model(ids).logits)


@pytest.mark.parametrize(
    "kind", ["hybrid", *(pytest.param(x, marks=pytest.mark.slow) for x in ("mesa", "linear", "softmax"))]
)
def test_a_compiled_decoding_step_never_starts_anew(kind: str, build: Build, tokens: Draw) -> None:
    model, ids = build(kind), tokens(2, 12)
    cache = StaticCache(config=model.config, max_cache_len=16)
    graphs = torch._dynamo.testing.CompileCounterWithBackend("eager")
    with torch.no_grad():
        model(ids[:, :6], cache=cache, use_cache=True)
        torch._dynamo.reset()
        step = torch.compile(model, backend=graphs, fullgraph=True, dynamic=False)
        found = [
            step(
                ids[:, place : place + 1],
                cache=cache,
                use_cache=True,
                position_ids=torch.full((2, 1), place),
            ).logits
            for place in range(6, 12)
        ]
        expected = model(ids).logits[:, 6:]
    torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=2e-4, rtol=2e-4)
    assert graphs.frame_count == 1


def test_a_model_can_be_exported(kind: str, build: Build, tokens: Draw) -> None:
    model, ids = build(kind, tolerance=1e-4), tokens(2, 12)
    exported = torch.export.export(model, (ids,), {"use_cache": False}, strict=False).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(ids, use_cache=False).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
