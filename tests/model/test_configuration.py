"""The configuration: one line swaps the mixer, misuse is one clear line."""

from __future__ import annotations

import dataclasses
import json
import pydoc
import re
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_model
from transformers import AutoConfig

from mesalm import MesaConfig, RegressorConfig
from mesalm.model.cache_mesa import returned_cache
from mesalm.model.layers import dpfp


def test_one_line_swaps_every_layer() -> None:
    mesa, softmax = MesaConfig(mixers="mesa"), MesaConfig(mixers="softmax")
    changed = {key for key, value in mesa.to_dict().items() if softmax.to_dict()[key] != value}
    assert changed == {"mixers"}


def test_a_pattern_repeats_and_layer_types_follow() -> None:
    config = MesaConfig(num_hidden_layers=5, mixers=["mesa", "softmax"])
    assert config.layer_mixers == ["mesa", "softmax", "mesa", "softmax", "mesa"]
    assert config.layer_types == ["linear_attention", "full_attention"] * 2 + ["linear_attention"]
    assert MesaConfig(num_hidden_layers=2, mixers="softmax", conv_size=4).layer_types == ["hybrid", "hybrid"]


def test_the_configuration_survives_json(tmp_path: Path) -> None:
    config = MesaConfig(num_hidden_layers=4, mixers=["mesa", "linear"], num_key_value_heads=4, max_steps=9)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {key for key, value in config.to_dict().items() if loaded[key] != value} <= {"_name_or_path"}
    assert "layer_mixers" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mixers": "meas"}, "'meas' is not a mixer; choose from delta, kalman, linear, mesa, softmax, window"),
        ({"mixers": []}, "the list is empty"),
        ({"mixers": ["mesa"] * 3, "num_hidden_layers": 2}, "3 names for 2 layers"),
        ({"hidden_size": 100, "num_attention_heads": 3}, "not a multiple of num_attention_heads"),
        ({"num_attention_heads": 12, "num_key_value_heads": 5}, "does not divide"),
        ({"conv_size": 1}, "conv_size: 1"),
        ({"ridge_init": 0.1}, "ridge_init: 0.1 must be above ridge_floor"),
        ({"forget_cap": 1.5}, "forget_cap: 1.5"),
        ({"mixers": "softmax", "head_dim": 7}, "must be even"),
        ({"num_attention_heads": 0}, "num_attention_heads: 0 must be a whole number of at least 1"),
        ({"vocab_size": -3}, "vocab_size: -3 must be"),
        ({"intermediate_size": -4}, "intermediate_size: -4 must be"),
        ({"num_hidden_layers": True}, "num_hidden_layers: True must be a whole number"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers: 2.0 must be a whole number"),
        ({"hidden_size": "8"}, "hidden_size: '8' must be a whole number"),
        ({"gates": 1}, "gates: 1 must be True or False"),
        ({"mixers": None}, "mixers: None must be a name or a list"),
        ({"hidden_act": "foo"}, "hidden_act: 'foo' must be one of gelu"),
        ({"mesa_backend": "cuda"}, "mesa_backend: 'cuda' must be one of auto, exact, torch, triton"),
        ({"rms_norm_eps": -1}, "rms_norm_eps: -1 must be a number above 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: nan must be"),
        ({"attention_dropout": 2}, "attention_dropout: 2 must be a number of at least 0 and below 1"),
        ({"tolerance": 0}, "tolerance: 0 must be a number between 0 and 1"),
        ({"max_steps": 0}, "max_steps: 0 must be a whole number of at least 1, or None"),
        ({"eos_token_id": [1, "a"]}, "eos_token_id: [1, 'a'] must be a token id or a list of them"),
        ({"mixers": "softmax", "rope_parameters": {"rope_type": "foo"}}, "rope_type 'foo' is unknown; choose from"),
        ({"mixers": "softmax", "rope_parameters": {"rope_type": "yarn"}}, "rope_parameters: Missing required keys"),
        ({"mixers": "softmax", "rope_parameters": {"rope_theta": 0}}, "rope_theta 0 must be a number above 0"),
        (
            {"mixers": "window", "rope_parameters": {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor 0.5 must be 1",
        ),
    ],
)
def test_misuse_is_one_clear_line(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        MesaConfig(**options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(("mixers", "head_dim", *options))


def test_every_field_has_a_rule() -> None:
    for config in (MesaConfig, RegressorConfig):
        own = {name for kind in config.__mro__ if issubclass(kind, MesaConfig) for name in kind.__annotations__}
        assert own == set(config.field_rules)
        assert all(rule.meaning.endswith(".") for rule in config.field_rules.values())
        assert not [name for name, rule in config.field_rules.items() if rule.fault(getattr(config, name)) is not None]


@pytest.mark.parametrize("config", [MesaConfig, RegressorConfig])
def test_help_lists_every_field(config: type[MesaConfig]) -> None:
    page = " ".join(pydoc.plain(pydoc.render_doc(config)).replace("|", " ").split())
    for field in dataclasses.fields(config):
        if field.name in config.field_rules:
            meaning = config.field_rules[field.name].meaning.replace("|", " ")
            kind = str(field.type).replace("|", " ")
            entry = f"{field.name} ({kind}, default {field.default!r}): {meaning}"
            assert " ".join(entry.split()) in page, field.name


def test_the_start_is_as_described() -> None:
    mixer = tiny_model(num_hidden_layers=8, num_attention_heads=4, initializer_range=0.02).model.layers[3].mixer
    torch.testing.assert_close(mixer.ridge(), torch.ones(4, 8))
    torch.testing.assert_close(mixer.forget_proj.bias, torch.full((4,), 4.0))
    assert mixer.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert mixer.o_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert torch.equal(mixer.conv.weight[:, 0], torch.ones(64))


def test_forward_wants_ids_or_embeddings() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()


def test_softcap_bounds_the_logits() -> None:
    model = tiny_model(initializer_range=50.0, logit_softcap=3.0)
    assert model(torch.arange(8)[None]).logits.abs().max() <= 3.0
    assert model.config.final_logit_softcapping == model.config.logit_softcap  # by the name that TRL reads


@pytest.mark.parametrize("tie", [True, False])
def test_embeddings_enter_scaled_and_can_be_resized(tie: bool) -> None:
    ids = torch.arange(8)[None]
    for scaled, factor in ((True, 32**0.5), (False, 1.0)):
        model = tiny_model(vocab_size=16, scale_embeddings=scaled, tie_word_embeddings=tie)
        weights = model.get_input_embeddings().weight
        torch.testing.assert_close(model.model.embed_tokens(ids), weights[ids] * factor)
        before = model(ids).logits
        model.resize_token_embeddings(20)
        after = model(ids).logits
        assert after.shape[-1] == 20
        torch.testing.assert_close(after[..., :16], before)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie


def test_features_are_those_of_the_definition() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]])
    z = [1.0, 0.0, 3.0, 0.0, 2.0, 0.0]  # relu of [x, -x]
    wanted = [z[i] * z[(i - j) % 6] for j in (1, 2) for i in range(6)]
    assert dpfp(x, 2)[0].tolist() == wanted
    assert any(wanted)
    assert dpfp(x, 2)[1].tolist() == [0.0] * 12


def test_features_enlarge_keys_and_states_only() -> None:
    model = tiny_model(num_hidden_layers=1, dpfp=3)
    assert model.config.key_size == 2 * 3 * 16
    assert model.model.layers[0].mixer.ridge().shape == (2, 96)
    cache = returned_cache(model(torch.arange(5)[None], use_cache=True))
    assert cache.layers[0].recurrent_states[0].shape == (1, 2, 96, 96 + 16)
    with pytest.raises(ValueError, match="dpfp: 32 must be 0"):
        tiny_config(dpfp=32)
