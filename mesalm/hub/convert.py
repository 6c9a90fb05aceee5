"""Convert a softmax checkpoint into one with mesa layers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mesalm.hub.calibration_text import own_rows, text_rows
from mesalm.hub.carry_over import open_softmax_model
from mesalm.hub.new_folder import must_be_new, new_folder
from mesalm.hub.open_model import open_tokenizer
from mesalm.hub.peers import open_peer, peer_settings
from mesalm.hub.swap import swap_layers
from mesalm.model.mixer_softmax import SoftmaxMixer
from mesalm.model.mixers import MIXERS
from mesalm.model.modeling_mesa import MesaForCausalLM

RECORD = "conversion.json"
"""The file that records how a converted folder was made."""

SOFTMAX = SoftmaxMixer.name


def convert(
    model: str,
    folder: str | Path,
    *,
    layers: str = "all",
    mixer: str = "mesa",
    calibrate: Sequence[str] = (),
    tokens: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Path:
    """Replace some softmax layers of MODEL by mesa layers, write the result to `folder` and return that path.

    The new layers are fitted to the outputs of the old ones on the text of `calibrate` or, by default, on text sampled
    from the model (see `swap_layers`). The folder has weights in the checkpoint's own dtype (gates and ridge in
    float32), the tokenizer, and `conversion.json`; `init_from`, `from_pretrained` and `mesalm publish` accept it.

    Args:
        model: a folder, run folder or Hub name of a Llama or Qwen3 checkpoint, or of a mesa model with softmax layers;
            or of a MesaNet or gated delta net of flash-linear-attention, which is converted without swapping layers.
        folder: a path that does not exist yet, or an empty folder.
        layers: "all", "none", or layer numbers from 0, ranges and strides: "1,3", "0-5", "every-2".
        mixer: a mixer that can replace softmax (`converts` in the table of mixers).
        calibrate: text files to fit to, of the kinds that `mesalm prepare` reads.
        tokens: how many tokens to fit to. None: four per input feature of an output projection, at least 8192.
        seed: seed of the sampled text and of new weights.
        quiet: whether to hide progress bars.

    Raises:
        ValueError: the model cannot be converted, a layer does not exist or is not softmax, a file cannot be read or
            is too short, or `folder` is not empty.
    """
    folder = Path(folder)
    must_be_new(folder, "convert")
    known = [name for name, row in MIXERS.items() if row.converts]
    if mixer not in known:
        raise ValueError(
            f"mixer: {mixer!r} cannot replace softmax; choose from {', '.join(known)}, or your own (--code FILE)"
        )
    if tokens is not None and tokens < 1:
        raise ValueError(f"tokens: {tokens} must be at least 1")
    torch.manual_seed(seed)
    settings = peer_settings(model)
    opened = open_softmax_model(model) if settings is None else open_peer(model, settings)
    mixers = sorted(set(opened.config.layer_mixers))
    if settings is None and SOFTMAX not in mixers:
        raise ValueError(f"{model}: has no softmax layer to swap, only {', '.join(mixers)}; give a softmax model")
    tokenizer = open_tokenizer(model)
    chosen = [] if settings and layers == "all" else choose_layers(layers, opened.config.layer_mixers)
    if chosen and opened.config.value_size != opened.config.head_dim:
        raise ValueError(
            f"{model}: value_head_dim is {opened.config.value_size}; it must equal head_dim, as in softmax layers"
        )
    asked = {"layers": layers, "mixer": mixer, "calibrate": list(calibrate), "tokens": tokens, "seed": seed}
    converted, record = opened, {"source": _name(model), "mixer": mixer, "layers": chosen, "seed": seed, "asked": asked}
    if chosen:
        rows, source = _rows(opened, tokenizer, calibrate, tokens, quiet)
        record |= {"calibration": source, "tokens": rows.numel()}
        converted, swaps = swap_layers(opened, chosen, mixer, rows, quiet=quiet)
        record["swaps"] = [asdict(swap) for swap in swaps]
    with new_folder(folder, "convert") as staged:
        _save(converted, opened, staged)
        tokenizer.save_pretrained(staged)
        (staged / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder


def is_conversion(folder: Path, model: str, **asked: Any) -> bool:
    """Return whether a folder is the result of `convert` for MODEL with these arguments."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(record.get("source") == _name(model) and record.get("asked") == asked)


def choose_layers(text: str, mixers: Sequence[str]) -> list[int]:
    """Return the sorted layer numbers given by `text`.

    Args:
        text: see `convert`.
        mixers: the mixer of each layer of the model.

    Raises:
        ValueError: a word has none of these forms, or a layer does not exist or is not softmax.
    """
    count = len(mixers)
    chosen: set[int] = set()
    for word in text.replace(" ", "").split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        stride = re.fullmatch(r"every-([1-9]\d*)", word)
        if word == "none":
            continue
        if word == "all":
            named = [layer for layer in range(count) if mixers[layer] == SOFTMAX]
        elif stride:
            named = list(range(0, count, int(stride[1])))
        elif span:
            named = list(range(int(span[1]), int(span[2] or span[1]) + 1))
        else:
            named = []
        if not named:
            raise ValueError(f"layers: {word!r} names no layer; write all, none, 3, 1,3, 0-5 or every-2")
        chosen.update(named)
    for layer in sorted(chosen):
        if layer >= count:
            raise ValueError(f"layers: there is no layer {layer}; the model has layers 0 to {count - 1}")
        if mixers[layer] != SOFTMAX:
            raise ValueError(f"layers: layer {layer} is {mixers[layer]}; only softmax layers can be swapped")
    return sorted(chosen)


def _rows(
    model: MesaForCausalLM, tokenizer: PreTrainedTokenizerBase, files: Sequence[str], tokens: int | None, quiet: bool
) -> tuple[torch.Tensor, dict[str, Any]]:
    heads, _, size = model.config.head_shape
    length = min(512, model.config.max_position_embeddings)
    count = max(4, -(-(tokens or max(8192, 4 * heads * size)) // length))
    if files:
        return text_rows(files, tokenizer, count, length)
    return own_rows(model, count, length, quiet=quiet), {"name": "text of the model's own"}


def _save(model: MesaForCausalLM, opened: MesaForCausalLM, folder: Path) -> None:
    dtype = opened.config.dtype
    for name, parameter in model.named_parameters():
        if not any(part in name for part in model._keep_in_fp32_modules_strict or ()):
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    model.generation_config = opened.generation_config
    model.save_pretrained(folder)


def _name(model: str) -> str:
    """Return the name of the source: a Hub name, or the last part of a folder's path."""
    path = Path(model)
    return path.resolve().name if path.exists() else model
