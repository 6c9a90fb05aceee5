"""Load a Llama- or Qwen3-style checkpoint as a mesa model with softmax mixers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from transformers import AutoConfig, LlamaConfig, PreTrainedModel, Qwen3Config
from transformers.configuration_utils import PreTrainedConfig

from mesalm.hub.open_model import locate, open_model, refuse_prefix
from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.modeling_mesa import MesaForCausalLM
from mesalm.pretrained import load

CARRIED = tuple(name for name in MesaConfig.field_rules if name in {field.name for field in fields(LlamaConfig)})
"""Fields that Llama and mesa configurations share; they mean the same in both, and in Qwen3's."""

NEUTRAL: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": {"pretraining_tp": (1, None)},
    "qwen3": {
        "use_sliding_window": (False,),
        "sliding_window": (None,),
        "max_window_layers": (),  # has no effect without a window
        "layer_types": ("full_attention",),
    },
}
"""By model type, the fields that mesa does not have, with the values that have no effect; empty: any value. A field
in neither table must have its default value."""

STYLES: dict[str, type[PreTrainedConfig]] = {"llama": LlamaConfig, "qwen3": Qwen3Config}


def open_softmax_model(model: str) -> MesaForCausalLM:
    """Return MODEL, on the CPU in float32, as a mesa model that computes the same logits.

    Args:
        model: a folder, run folder or Hub name of a Llama, Qwen3 or mesa checkpoint; see `open_model.locate`.

    Raises:
        ValueError: nothing can be opened there, a model of another style, or one that mesa cannot represent.

    `config.dtype` is the dtype the checkpoint was saved in, and its generation settings are kept.
    """
    refuse_prefix(model)
    config = open_config(model)
    if isinstance(config, MesaConfig):
        ours: Any = open_model(model, dtype=torch.float32)
    else:
        mesa_config = softmax_config(config, model)
        theirs = open_model(model, dtype=torch.float32)
        ours = carry_weights(theirs, mesa_config)
        ours.generation_config = theirs.generation_config
    ours.config.dtype = config.dtype or torch.float32
    return ours


def open_config(model: str) -> PreTrainedConfig:
    """Return the configuration of MODEL; ValueError if its model type is not supported."""
    config: PreTrainedConfig = load(AutoConfig, locate(model), "model", name=model, trust_remote_code=False)
    if not isinstance(config, (MesaConfig, *STYLES.values())) or config.model_type not in ("mesa", *STYLES):
        known = ", ".join(STYLES)
        raise ValueError(
            f"{model}: model_type is {config.model_type!r}; give a checkpoint of {known} or a softmax model of mesalm"
        )
    return config


def softmax_config(config: PreTrainedConfig, model: str) -> MesaConfig:
    """Return the mesa configuration equivalent to a Llama or Qwen3 configuration.

    Raises:
        ValueError: the value of a field has no counterpart; the message names the field.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{model}: its weights are quantised; give the checkpoint in bfloat16, float16 or float32")
    style = config.model_type
    general = {field.name for field in fields(PreTrainedConfig)}
    usual = STYLES[style]()
    for field in fields(STYLES[style]):
        if field.name in CARRIED or field.name in general:
            continue
        value = getattr(config, field.name)
        harmless = NEUTRAL[style].get(field.name, (getattr(usual, field.name),))
        kinds = set(value) if isinstance(value, list) else {value}
        if harmless and not kinds <= set(harmless):
            raise ValueError(f"{model}: {field.name} is {value!r}, which a mesa model cannot represent")
    known = {name: getattr(config, name) for name in CARRIED if hasattr(config, name)}
    try:
        return MesaConfig(mixers="softmax", qk_norm=style == "qwen3", scale_embeddings=False, **known)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from None


def carry_weights(theirs: PreTrainedModel, config: MesaConfig) -> MesaForCausalLM:
    """Return a mesa model of this configuration with the weights of a Llama or Qwen3 model.

    Raises:
        ValueError: a weight without a counterpart on either side.
    """
    weights = {name.replace(".self_attn.", ".mixer."): value for name, value in theirs.state_dict().items()}
    ours = MesaForCausalLM(config)
    load_whole(ours, weights, str(theirs.name_or_path))
    return ours.eval()


def load_whole(ours: MesaForCausalLM, weights: dict[str, torch.Tensor], model: str) -> None:
    """Load weights into a mesa model; ValueError that names a weight of another shape or missing on either side."""
    for name, wanted in ours.state_dict().items():
        if name in weights and weights[name].shape != wanted.shape:
            found, asked = (" x ".join(map(str, made.shape)) for made in (weights[name], wanted))
            raise ValueError(f"{model}: the weights do not match config.json: {name} is {found}, not {asked}")
    loaded = ours.load_state_dict(weights, strict=False)
    odd = [*loaded.unexpected_keys, *loaded.missing_keys]
    if odd:
        raise ValueError(f"{model}: weight {odd[0]} has no counterpart")
