"""Files with operands of trained models, written by `mesalm inspect --record`, read by tests and benchmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mesalm.files import readable, writing
from mesalm.lab.inspection.capture import Reading

HALF = ("query", "key", "value")
"""Operands stored in float16; gates and ridge are float32, since gates near 1 need the precision."""
ENTRY = "mesa operands"
"""The key of the only metadata entry, which is JSON."""
NAMES = (*HALF, "log_forget", "input_gate", "ridge")


def parse_heads(text: str) -> list[tuple[int, int]]:
    """Parse key heads such as "0.2,3.0" (layer 0 head 2, layer 3 head 0). Raises ValueError for anything else."""
    try:
        pairs = [tuple(int(number) for number in word.split(".")) for word in text.split(",")]
        return sorted({(layer, head) for layer, head in pairs})
    except ValueError:
        raise ValueError(f"record-heads: {text!r} must be LAYER.HEAD,LAYER.HEAD such as 0.2,3.0") from None


def choose_heads(wanted: Sequence[tuple[int, int]] | None, groups: Mapping[int, int]) -> dict[int, list[int]]:
    """Return the key heads to record by layer; `groups` maps each mesa layer to its number of key heads.

    Raises:
        ValueError: a head does not exist or is not in a mesa layer.
    """
    if wanted is None:
        return {layer: list(range(count)) for layer, count in groups.items()}
    chosen: dict[int, list[int]] = {}
    for layer, head in wanted:
        if not 0 <= head < groups.get(layer, 0):
            known = ", ".join(f"{layer}.0 to {layer}.{count - 1}" for layer, count in groups.items())
            raise ValueError(f"record-heads: {layer}.{head} is not a head of a mesa layer; choose from {known}")
        chosen.setdefault(layer, []).append(head)
    return chosen


def record_tensors(reading: Reading, heads: Sequence[int]) -> dict[str, Tensor]:
    """Return the tensors of one mesa layer in their stored form, for the given key heads and their query heads.

    Names are `layer.{i}.query [1, T, H, K]` and so on, in the order of `mesa_attention`. Raises ValueError for values
    beyond the range of float16.
    """
    if reading.ridge is None:
        raise ValueError(f"layer {reading.layer} is {reading.mixer!r} and has no systems; record only mesa layers")
    index = torch.tensor(list(heads), device=reading.key.device)
    by_group = reading.query.unflatten(2, (reading.key.shape[2], -1))
    tensors = {
        "query": by_group.index_select(2, index).flatten(2, 3),
        **{name: getattr(reading, name).index_select(2, index) for name in NAMES[1:5]},
        "ridge": reading.ridge.index_select(0, index),
    }
    result = {}
    for name, tensor in tensors.items():
        stored = tensor.detach().to(torch.float16 if name in HALF else torch.float32).cpu().contiguous()
        if name in HALF and not bool(stored.isfinite().all()):
            raise ValueError(f"layer {reading.layer}: {name} is too large for float16; record other heads")
        result[f"layer.{reading.layer}.{name}"] = stored
    return result


def save_recorded(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write recorded operands and their metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a single entry: the order of several is arbitrary, and the same command must always write the same file
    with writing(path):
        save_file(dict(tensors), path, metadata={ENTRY: json.dumps(metadata)})
        readable(path)


def load_recorded(path: str | Path) -> list[dict[str, Tensor]]:
    """Load recorded operands, one dictionary per layer, ready for `mesa_attention(**operands)`.

    All float32: query `[1, T, H, K]`, key and value `[1, T, G, K]`, log_forget and input_gate `[1, T, G]`, ridge
    `[G, K]`. If the model scales queries and keys to unit length, they are rescaled, to undo float16 rounding.

    Raises:
        ValueError: the file is no record of operands.
    """
    metadata = recorded_metadata(path)
    layers: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            _, layer, operand = name.split(".")
            layers.setdefault(int(layer), {})[operand] = file.get_tensor(name).float()
    for operands in layers.values():
        if metadata["unit_norm"]:
            for name in ("query", "key"):
                operands[name] = torch.nn.functional.normalize(operands[name], dim=-1, eps=1e-6)
    return [{name: layers[layer][name] for name in NAMES} for layer in sorted(layers)]


def recorded_metadata(path: str | Path) -> dict[str, Any]:
    """Return the file's metadata: model, tokens, tolerance, heads by layer, text, command, unit_norm.

    Raises:
        ValueError: the file is no record of operands.
    """
    with safe_open(path, framework="pt") as file:
        written = (file.metadata() or {}).get(ENTRY)
    if written is None:
        raise ValueError(f"{path}: holds no recorded operands; write it with `mesalm inspect MODEL --record FILE`")
    loaded: dict[str, Any] = json.loads(written)
    return loaded
