"""A Llama or Qwen3 checkpoint held as a mesa model of softmax layers computes the same, against transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import SPECIAL, TINY
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mesalm.hub.carry_over import open_softmax_model, softmax_config

SIZES: dict[str, Any] = {
    "vocab_size": 258,
    **TINY,
    **SPECIAL,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
SCALED = {"rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 16}
ROPES: dict[str, dict[str, Any]] = {
    "theta": {"rope_type": "default", "rope_theta": 777.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "yarn": {"rope_type": "yarn", **SCALED},
    "llama3": {"rope_type": "llama3", **SCALED, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        **SCALED,
        "short_factor": [1.0, 1.5, 2.0, 2.5],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
    },
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama wide heads": ("llama", {"head_dim": 16, "hidden_act": "gelu"}),
    "qwen3": ("qwen3", {"head_dim": 16, "rms_norm_eps": 1e-5}),
    "qwen3 tied": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3 biases": ("qwen3", {"head_dim": 8, "attention_bias": True}),
    **{f"rope {name}": ("llama", {"rope_parameters": rope}) for name, rope in ROPES.items()},
    "qwen3 yarn": ("qwen3", {"head_dim": 8, "rope_parameters": ROPES["yarn"]}),
}


def random_model(style: str, **fields: Any) -> PreTrainedModel:
    """Return a random model of this style, none of its weights zero or one."""
    torch.manual_seed(5)
    config: Any = LlamaConfig(**SIZES | fields) if style == "llama" else Qwen3Config(**SIZES | fields)
    model = LlamaForCausalLM(config) if style == "llama" else Qwen3ForCausalLM(config)
    for name, parameter in model.named_parameters():
        # norms start at one and biases at zero, where leaving them behind would not show
        if "norm" in name or "bias" in name:
            parameter.data += torch.rand_like(parameter)
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_the_original(case: str, save_beside: Callable[..., str]) -> None:
    style, fields = CASES[case]
    theirs = random_model(style, **fields)
    ours = open_softmax_model(save_beside(theirs))
    assert ours.config.tie_word_embeddings == theirs.config.tie_word_embeddings
    ids = torch.randint(2, 258, (2, 40))
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    with torch.no_grad():
        expected, found = theirs(ids, attention_mask=mask).logits, ours(ids, attention_mask=mask).logits
        # the same operations in the same order: what differs is the rounding of float32 at most
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)
    settings = {"max_new_tokens": 5, "do_sample": False, "attention_mask": mask}
    assert torch.equal(ours.generate(ids, **settings), theirs.generate(ids, **settings))


def test_half_weights_are_opened_in_float32_and_remembered(save_beside: Callable[..., str]) -> None:
    ours = open_softmax_model(save_beside(random_model("llama").to(torch.bfloat16)))
    assert ours.dtype == torch.float32
    assert ours.config.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("style", "fields", "name"),
    [
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "use_sliding_window"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp"),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
    ],
)
def test_what_mesa_has_no_word_for_is_refused_by_name(style: str, fields: dict[str, Any], name: str) -> None:
    config = LlamaConfig(**SIZES | fields) if style == "llama" else Qwen3Config(**SIZES | fields)
    with pytest.raises(ValueError, match=f"somewhere: .*{name}"):
        softmax_config(config, "somewhere")


def test_other_styles_are_refused_in_one_line(save_beside: Callable[..., str]) -> None:
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=258, bos_token_id=1, eos_token_id=1)
    place = save_beside(GPT2LMHeadModel(config))
    with pytest.raises(ValueError, match=r"model_type is 'gpt2'; give a checkpoint of llama, qwen3 or a softmax model"):
        open_softmax_model(place)
