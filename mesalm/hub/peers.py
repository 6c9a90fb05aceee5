"""Import and export of flash-linear-attention checkpoints of MesaNet and gated delta net."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from mesalm.hub.carry_over import load_whole
from mesalm.hub.new_folder import must_be_new, new_folder
from mesalm.hub.open_model import locate, open_model, open_tokenizer
from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.modeling_mesa import MesaForCausalLM
from mesalm.pretrained import asking_hub, load, opening

SETTINGS = {
    **{name: name for name in ("vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "conv_size")},
    **{name: name for name in ("max_position_embeddings", "initializer_range", "tie_word_embeddings", "use_cache")},
    **{name: name for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    "num_heads": "num_attention_heads",
    "norm_eps": "rms_norm_eps",
}
"""Fields that both configurations have, by the peer's name."""

USUAL: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "conv_size": 4,
    "max_position_embeddings": 2048,
    "use_cache": True,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "norm_eps": 1e-6,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "intermediate_size": None,
    "hidden_ratio": 4,
}
"""The peer's defaults, for fields missing from older files."""

ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("swish", "silu"),
    "use_short_conv": (True,),
    "attn": (None,),
    "attnres_block_size": (None,),
}
"""Fields and the values of them that a mesa model can represent, the peer's default first."""

NO_PART = (
    *("forget_bias", "ridge_init", "tolerance", "max_steps", "mesa_backend", "window", "qk_norm"),
    *("rope_parameters", "attention_dropout", "scale_embeddings", "tie_word_embeddings"),
)
"""Our fields that need no counterpart in the peer: initial values, solver, softmax, and those absorbed into weights."""

NAMES = (
    ("model.embeddings.", "model.embed_tokens."),
    (".attn_norm.", ".input_layernorm."),
    (".mlp_norm.", ".post_attention_layernorm."),
    (".attn.", ".mixer."),
    (".o_norm.", ".output_norm."),
    (".a_proj.", ".forget_proj."),
    (".b_proj.", ".input_proj."),
    (".g_proj.", ".gate_proj."),
    (".lambda_params", ".ridge_bias"),
)
"""Parts of weight names, the peer's and ours; the MLP's gate_proj has the same name in both."""


FILES = ["*.safetensors", GENERATION_CONFIG_NAME]
"""The files of a checkpoint that are read beside its configuration and tokenizer."""

EMBEDDING = "model.embeddings.weight"
"""The peer's name for the embedding, which every checkpoint contains."""


@dataclass(frozen=True)
class Peer:
    """An architecture of flash-linear-attention.

    architecture: its class; mixer: our mixer. settings, usual and only extend the tables above. unbiased: maps with a
    bias only in our models. negated: whether its forget gate is one minus a sigmoid, so that its map has the opposite
    sign. names: parts of weight names.
    """

    architecture: str
    mixer: str
    settings: dict[str, str] = field(default_factory=dict)
    usual: dict[str, Any] = field(default_factory=dict)
    only: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    unbiased: tuple[str, ...] = ()
    negated: bool = False
    names: tuple[tuple[str, str], ...] = NAMES


PEERS = {
    "mesa_net": Peer(
        "MesaNetForCausalLM",
        "mesa",
        {"lambda_lower_bound": "ridge_floor"},
        {"num_heads": 16, "head_dim": 128, "num_hidden_layers": 24, "lambda_lower_bound": 0.25},
        {"use_output_gate": (False,)},
    ),
    "gated_deltanet": Peer(
        "GatedDeltaNetForCausalLM",
        "delta",
        {},
        {"num_heads": 6, "head_dim": 256, "num_hidden_layers": 21, "expand_v": 2.0},
        {"use_gate": (True,), "allow_neg_eigval": (False,), "output_gate_activation": ("swish", "silu")},
        ("input_proj", "gate_proj"),
        negated=True,
        names=(*NAMES, (".A_log", ".rate_bias"), (".dt_bias", ".forget_proj.bias")),
    ),
}
"""Architectures by model type."""


def peer_settings(model: str) -> dict[str, Any] | None:
    """Return the configuration of `model` if its type is in `PEERS`; None for other types or an unreadable model."""
    place = locate(model)
    try:
        with asking_hub(place):
            settings: dict[str, Any] = PreTrainedConfig.get_config_dict(place)[0]
    except (OSError, ValueError):
        return None
    return settings if settings.get("model_type") in PEERS else None


def open_peer(model: str, settings: dict[str, Any]) -> MesaForCausalLM:
    """Return a checkpoint of flash-linear-attention, on the CPU in float32, as a mesa model with the same logits.

    Its generation settings are kept.

    Args:
        model: a folder or Hub name.
        settings: its configuration; see `peer_settings`.

    Raises:
        ValueError: a field value or a weight without a counterpart; the message names it.
    """
    place = locate(model)
    weights: dict[str, Tensor] = {}
    with opening(place, "weights", model):
        folder = Path(place if Path(place).is_dir() else snapshot_download(place, allow_patterns=FILES))
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
    if EMBEDDING not in weights:
        raise ValueError(f"{model}: no .safetensors file contains {EMBEDDING}; get the complete checkpoint")
    config = our_config(settings, model)
    ours = MesaForCausalLM(config)
    load_whole(ours, our_weights(weights, ours, PEERS[settings["model_type"]]), model)
    ours.config.dtype = weights[EMBEDDING].dtype
    if (folder / GENERATION_CONFIG_NAME).is_file():
        ours.generation_config = load(GenerationConfig, str(folder), "generation settings", name=model)
    return ours.eval()


def our_config(settings: dict[str, Any], model: str) -> MesaConfig:
    """Return the mesa configuration equivalent to the peer's; raise ValueError for a field it cannot represent."""
    peer = PEERS[settings["model_type"]]
    given = {**USUAL, **peer.usual, **settings}
    allowed = {**ONLY, **peer.only, "num_v_heads": (None, given["num_heads"])}
    for name, values in allowed.items():
        if given.get(name, values[0]) not in values:
            raise ValueError(f"{model}: {name} is {given[name]!r}, which a mesa model cannot represent")
    ours = {ours: given[theirs] for theirs, ours in {**SETTINGS, **peer.settings}.items()}
    width, size = given["hidden_size"], given["head_dim"]
    ours["intermediate_size"] = given["intermediate_size"] or 256 * -(
        -int(width * given["hidden_ratio"] * 2 / 3) // 256
    )
    if peer.mixer == "delta":
        # its queries are scaled by 1 / sqrt(K); the norm of the read-out cancels this except for its epsilon
        ours |= {"conv_values": True, "forget_rate": True, "read_norm_eps": given["norm_eps"] * size}
        ours["value_head_dim"] = int(size * given["expand_v"])
    ridge = {"ridge_init": ours["ridge_floor"] + 0.75} if "ridge_floor" in ours else {}
    try:
        return MesaConfig(mixers=peer.mixer, forget_cap=None, scale_embeddings=False, **ours, **ridge)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from None


def our_weights(weights: dict[str, Tensor], model: MesaForCausalLM, peer: Peer) -> dict[str, Tensor]:
    """Return the peer's weights in float32 under our names."""
    ours = {_renamed(name, peer.names): weight.float() for name, weight in weights.items()}
    if model.config.tie_word_embeddings:
        ours.setdefault("lm_head.weight", ours["model.embed_tokens.weight"])
    for number in range(model.config.num_hidden_layers):
        mixer = f"model.layers.{number}.mixer."
        parts = [ours.pop(f"{mixer}{part}_conv1d.weight", None) for part in "qkv"]
        taps = [part for part in parts if part is not None]
        if taps:  # missing weights are reported once all others have been renamed
            ours[mixer + "conv.weight"] = torch.cat(taps).squeeze(1).flip(-1)
        for name in peer.unbiased:
            if f"{mixer}{name}.weight" in ours:
                ours[f"{mixer}{name}.bias"] = torch.zeros(len(ours[f"{mixer}{name}.weight"]))
        _negate(ours, mixer, peer)
    return ours


def write_peer(model: str, folder: str | Path) -> Path:
    """Write a mesa or delta model as a checkpoint of flash-linear-attention to `folder`, with its tokenizer; return it.

    Raises:
        ValueError: the peer cannot represent the model (mixed or other mixers, or a field or bias, which is named), the
            model cannot be opened, or `folder` is not empty.
    """
    folder = Path(folder)
    must_be_new(folder, "convert")
    opened = open_model(model)
    mixers = set(getattr(opened.config, "layer_mixers", ()))
    kind = next((kind for kind, peer in PEERS.items() if mixers == {peer.mixer}), None)
    if kind is None or not isinstance(opened, MesaForCausalLM):
        known = " or ".join(peer.mixer for peer in PEERS.values())
        raise ValueError(
            f"{model}: flash-linear-attention's format needs a model of {known} layers only; give one of those"
        )
    settings = _their_settings(opened.config, kind, model)
    weights = _their_weights(opened, PEERS[kind], model)
    tokenizer = open_tokenizer(model)
    with new_folder(folder, "convert") as staged:
        (staged / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_file(weights, staged / "model.safetensors", metadata={"format": "pt"})
        opened.generation_config.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
    return folder


def _their_settings(config: MesaConfig, kind: str, model: str) -> dict[str, Any]:
    peer = PEERS[kind]
    settings = {theirs: getattr(config, ours) for theirs, ours in {**SETTINGS, **peer.settings}.items()}
    settings["conv_size"] = config.conv_size_of(peer.mixer)
    if not settings["conv_size"]:
        raise ValueError(f"{model}: conv_size is 0, but flash-linear-attention's {kind} always has a convolution")
    settings |= {name: values[0] for name, values in {**ONLY, **peer.only}.items()}
    settings |= {"model_type": kind, "architectures": [peer.architecture], "dtype": str(config.dtype).split(".")[-1]}
    settings["intermediate_size"] = config.intermediate_size
    settings["tie_word_embeddings"] = config.tie_word_embeddings and not config.scale_embeddings
    if "expand_v" in peer.usual:
        settings["expand_v"] = config.value_size / config.head_shape[2]
    held = our_config(settings, model)
    for name in MesaConfig.field_rules:
        mine, theirs = (
            (made.value_size if name == "value_head_dim" else getattr(made, name)) for made in (config, held)
        )
        if name not in (*NO_PART, "mixers", "conv_size") and mine != theirs:
            raise ValueError(f"{model}: {name} is {mine!r}, but flash-linear-attention's {kind} allows only {theirs!r}")
    return settings


def _their_weights(model: MesaForCausalLM, peer: Peer, name: str) -> dict[str, Tensor]:
    ours = dict(model.state_dict())
    config = model.config
    if config.scale_embeddings:
        ours["model.embed_tokens.weight"] = ours["model.embed_tokens.weight"] * config.hidden_size**0.5
    elif config.tie_word_embeddings:
        del ours["lm_head.weight"]
    for number in range(config.num_hidden_layers):
        mixer = f"model.layers.{number}.mixer."
        sizes = [len(ours[f"{mixer}{part}_proj.weight"]) for part in ("qkv" if config.conv_values else "qk")]
        for part, taps in zip("qkv", ours.pop(mixer + "conv.weight").split(sizes), strict=False):
            ours[f"{mixer}{part}_conv1d.weight"] = taps.flip(-1).unsqueeze(1).contiguous()
        for map_name in peer.unbiased:
            if ours.pop(f"{mixer}{map_name}.bias").any():
                raise ValueError(f"{name}: {mixer}{map_name} has a bias, but flash-linear-attention's has none")
        _negate(ours, mixer, peer)
    backwards = [(ours, theirs) for theirs, ours in reversed(peer.names)]
    return {_renamed(name, backwards): value for name, value in ours.items()}


def _negate(weights: dict[str, Tensor], mixer: str, peer: Peer) -> None:
    """Flip the sign of a layer's forget gate projection."""
    for part in ("weight", "bias") if peer.negated else ():
        name = f"{mixer}forget_proj.{part}"
        if name in weights:
            weights[name] = -weights[name]


def _renamed(name: str, parts: Iterable[tuple[str, str]]) -> str:
    for old, new in parts if ".mlp." not in name else ():
        name = name.replace(old, new)
    return name
