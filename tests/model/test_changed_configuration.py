"""A configuration changed after it was made, loaded or saved: what follows from its fields follows anew."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import LinearAttentionLayer

from mesalm import MesaConfig, MesaForCausalLM


@pytest.mark.parametrize(
    ("first", "changes"),
    [
        ({}, {"num_hidden_layers": 2}),
        ({}, {"num_hidden_layers": 6}),
        ({}, {"mixers": "softmax"}),
        ({"mixers": ["mesa", "softmax"]}, {"mixers": "linear"}),
        ({"mixers": ["mesa", "softmax"]}, {"conv_size": 4}),
        ({}, {"hidden_size": 64}),
        ({}, {"num_attention_heads": 4}),
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, {"num_attention_heads": 2, "mixers": "softmax"}),
    ],
)
def test_a_changed_configuration_is_one_made_anew(first: dict, changes: dict, tmp_path: Path) -> None:
    expected = tiny_config(**{**first, **changes})
    tiny_config(**first).save_pretrained(tmp_path)
    assigned = AutoConfig.from_pretrained(tmp_path)
    for name, value in changes.items():
        setattr(assigned, name, value)
    updated = copy.deepcopy(AutoConfig.from_pretrained(tmp_path))
    updated.update(changes)
    loaded = AutoConfig.from_pretrained(tmp_path, **changes)
    for config in (assigned, updated, loaded, pickle.loads(pickle.dumps(assigned))):
        assert config.layer_types == expected.layer_types
        assert config.head_shape == expected.head_shape
        assert (config.num_key_value_heads, config.head_dim) == (expected.num_key_value_heads, expected.head_dim)
        recurrent = [isinstance(layer, LinearAttentionLayer) for layer in DynamicCache(config=config).layers]
        assert recurrent == [kind != "full_attention" for kind in expected.layer_types]
    torch.manual_seed(0)
    model, ids = AutoModelForCausalLM.from_config(assigned).eval(), torch.arange(5)[None]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


def test_sizes_that_were_given_stay() -> None:
    config = tiny_config(head_dim=4, num_key_value_heads=1)
    config.hidden_size, config.num_attention_heads = 64, 8
    assert config.head_shape == (8, 1, 4)


def test_saved_sizes_are_numbers(tmp_path: Path) -> None:
    # other libraries read them from the file or from to_dict
    config = tiny_config()
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for fields in (saved, config.to_dict()):
        assert (fields["num_key_value_heads"], fields["head_dim"]) == (2, 16)
    again = AutoConfig.from_pretrained(tmp_path)
    again.update(config.to_dict())
    assert again.to_dict() == config.to_dict()


def test_layer_types_of_saved_files_are_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_config(num_hidden_layers=4, mixers=["mesa", "softmax"]).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    kinds = ["linear_attention", "full_attention"] * 2
    file.write_text(json.dumps({**fields, "layer_types": kinds}))  # as earlier versions wrote it
    assert AutoConfig.from_pretrained(tmp_path).layer_types == kinds
    assert not caplog.records
    file.write_text(json.dumps({**fields, "layer_types": ["linear_attention"] * 4}))
    assert AutoConfig.from_pretrained(tmp_path).layer_types == kinds
    assert [record.getMessage() for record in caplog.records] == [
        f"layer_types: it follows from mixers and conv_size; {['linear_attention'] * 4} is ignored"
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixers": "nonsense"}, "mixers: 'nonsense' is not a mixer; choose from delta, kalman, linear"),
        ({"num_attention_heads": 0}, r"num_attention_heads: 0 must be a whole number of at least 1"),
        ({"num_attention_heads": 3}, r"head_dim: hidden_size 32 is not a multiple of num_attention_heads 3"),
        ({"ridge_floor": 2.0}, r"ridge_init: 1.0 must be above ridge_floor 2.0"),
    ],
)
def test_a_change_for_the_worse_is_one_line(changes: dict, words: str, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)

    def assign() -> MesaConfig:
        config = AutoConfig.from_pretrained(tmp_path)
        config.update(changes)
        return config

    for build in (
        lambda: MesaForCausalLM(assign()),
        lambda: assign().save_pretrained(tmp_path / "again"),
        lambda: AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path, **changes)),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            build()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "again").exists()


def test_a_misspelt_field_is_refused(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    for build in (
        lambda: tiny_config(mixer="softmax"),
        lambda: AutoConfig.from_pretrained(tmp_path, mixer="softmax"),
        lambda: AutoModelForCausalLM.from_pretrained(tmp_path, mixer="softmax"),
    ):
        with pytest.raises(ValueError, match=r"^mixer: MesaConfig has no such field; did you mean 'mixers'\?$"):
            build()
    with pytest.raises(ValueError, match=r"^layer_mixers: MesaConfig has no such field$"):
        tiny_config(layer_mixers=["mesa"])


def test_what_is_assigned_can_be_loaded_again(tmp_path: Path) -> None:
    config = tiny_config()
    with pytest.raises(ValueError, match=r"^mixer: MesaConfig has no such field; did you mean 'mixers'\?$"):
        config.mixer = "softmax"
    for name in (
        "norm_eps",
        "batch_norm_eps",
        "num_dense_layers",
        "moe_layer_start_index",
    ):  # as transformers' tests do
        setattr(config, name, 1.0)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).norm_eps == 1.0


def test_keys_of_the_library_pass_and_strange_ones_are_told(caplog: pytest.LogCaptureFixture) -> None:
    stored = {
        "architectures": ["MesaForCausalLM"],
        "attn_implementation": "sdpa",
        "auto_map": {"AutoConfig": "configuration_mesa.MesaConfig"},
        "do_sample": False,
        "dtype": "float32",
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "max_length": 20,
        "model_type": "mesa",
        "_name_or_path": "folder",
        "num_labels": 3,
        "output_attentions": False,
        "problem_type": "regression",
        "quantization_config": {"bits": 4},
        "rope_theta": 500.0,
        "temperature": 1.0,
        "top_k": 50,
        "torch_dtype": "float32",
        "transformers_version": "5.17.0",
    }
    tiny_config(**stored)
    assert not caplog.records
    assert tiny_config(layers=6).layers == 6
    assert [record.getMessage() for record in caplog.records] == [
        "layers: MesaConfig has no such field; it is saved but has no effect"
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_rotary_settings_belong_to_softmax() -> None:
    given = {"rope_theta": 500.0}
    assert tiny_config(mixers="softmax", rope_parameters=given).rope_parameters["rope_type"] == "default"
    assert given == {"rope_theta": 500.0}
    assert tiny_config(head_dim=7).head_dim == 7  # odd heads cannot be rotated, and mesa does not


def test_a_rotary_base_beside_the_parameters_is_taken(tmp_path: Path) -> None:
    config = tiny_config(mixers="softmax", rope_theta=500.0)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500.0}
    rate = tiny_model(mixers="softmax", rope_theta=500.0).model.rotary_emb.inv_freq[1]
    assert float(rate) == pytest.approx(500.0 ** -(2 / 16))
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 500.0
    with pytest.raises(ValueError, match=r"^rope_theta: .*; give rope_parameters instead$"):
        AutoConfig.from_pretrained(tmp_path, rope_theta=700.0)
