"""Inspect a trained model: run held-out text through it and measure the linear systems of its mesa layers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mesalm.files import write_text
from mesalm.hub.open_model import open_model, open_tokenizer, refuse_prefix, usable_device
from mesalm.lab.inspection.capture import Reading, is_recurrent, mixers_of, watched
from mesalm.lab.inspection.gate_statistics import LayerSamples, late_tokens
from mesalm.lab.inspection.held_out import Windows, cut_windows, held_out_text
from mesalm.lab.inspection.inspection import Inspection
from mesalm.lab.inspection.reach import ReachSamples, attention_shares, attention_watched, key_taps
from mesalm.lab.inspection.recorded import choose_heads, parse_heads, record_tensors, save_recorded
from mesalm.lab.inspection.tables import print_inspection
from mesalm.model.chunk_states import CHUNK
from mesalm.model.mixer_kalman import KalmanMixer
from mesalm.runs import resolve
from mesalm.wording import plural

LENGTH = 512
"""Default number of tokens per window if there is no run that determines it."""


def inspect_model(
    model: str,
    *,
    texts: Sequence[str] = (),
    tokens: int = 2048,
    length: int | None = None,
    device: str = "auto",
    out: Path | None = None,
    record: Path | None = None,
    record_heads: str | None = None,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Inspection:
    """Run held-out text through a model, print one row per layer and head, and write `inspect.json` and `inspect.svg`.

    Args:
        model: a run folder, a saved or published model's folder, one of a run's checkpoints, or a Hub name.
        texts: files of held-out text. None given: the validation split of the model's run.
        tokens: number of tokens to read, rounded down to whole windows.
        length: tokens per window, at least 64. None: the row length that the run was trained with, or else 512.
        device: "auto" is CUDA if available, else the CPU.
        out: the output folder. None: `reports/inspect-NAME`.
        record: a safetensors file to write the first window's operands to (`mesalm.lab.inspection.recorded`).
        record_heads: the key heads to record, such as "0.2,3.0". None: all.
        quiet: print nothing and show no progress.

    Raises:
        ValueError: the model cannot be opened or has no layer to inspect, there is not enough text, or an argument is
            out of range.
    """
    if record_heads is not None and record is None:
        raise ValueError("record-heads: needs a file to record to; add --record FILE")
    wanted = None if record_heads is None else parse_heads(record_heads)
    found = resolve(model)
    trained = found.run.sequence_length if found.run is not None else None
    length = _window_length(length if length is not None else (trained or LENGTH), tokens)
    where = str(usable_device(device))
    refuse_prefix(model)
    opened: Any = open_model(model, dtype=torch.float32, device=where, trust_remote_code=trust_remote_code)
    notes = _notes(opened, model)
    text = held_out_text(model, found.run.prepared if found.run is not None else None, texts)
    windows = cut_windows(text, open_tokenizer(model, trust_remote_code=trust_remote_code), length, tokens // length)
    if len(windows.tokens) < tokens // length:
        notes.append(f"the text has only {plural(len(windows.tokens), 'window')} of {length} tokens")
    kept: list[Reading] = []
    layers, reach = run_windows(opened, windows, kept if record is not None else None, quiet)
    inspection = Inspection(
        model=model,
        device=where,
        length=length,
        windows=len(windows.tokens),
        tolerance=getattr(opened.config, "tolerance", None),
        text={"from": text.description, "sources": text.sources, "documents": windows.documents},
        command=shlex.join(["mesalm", *sys.argv[1:]]),
        heads=[head for layer in layers for head in layer.numbers()],
        reach=[head for layer in reach for head in layer.reaches()],
        notes=notes,
    )
    if record is not None:
        _record(record, kept, wanted, inspection, bool(opened.config.qk_l2_norm))
    folder = out if out is not None else Path("reports") / f"inspect-{found.name}"
    write_inspection(inspection, folder)
    if not quiet:
        print_inspection(inspection)
        print(f"written: {folder / 'inspect.json'}, {folder / 'inspect.svg'}")
        if record is not None:
            print(f"recorded: {record}")
    return inspection


def run_windows(
    model: Any, windows: Windows, keep: list[Reading] | None, quiet: bool = False
) -> tuple[list[LayerSamples], list[ReachSamples]]:
    """Run each window through the model separately; `keep`, if given, receives the first window's mesa readings.

    Returns the samples of the recurrent layers and of the reach of all layers, in the order of the layers.
    """
    from datasets.utils import tqdm

    mixers = {mixer.layer_idx: mixer for mixer in mixers_of(model)}
    layers: dict[int, LayerSamples] = {}
    reach = {layer: ReachSamples(layer, mixer.name, key_taps(mixer)) for layer, mixer in mixers.items()}

    def see(reading: Reading) -> None:
        samples = layers.setdefault(reading.layer, LayerSamples(reading.layer, reading.mixer))
        if keep is not None and not samples.windows and reading.ridge is not None:
            keep.append(reading)
        samples.add(reading)
        reach[reading.layer].shares.append(samples.windows[-1]["lags"])

    def see_attention(layer: int, weights: Tensor) -> None:
        places = late_tokens(weights.shape[-1])
        reach[layer].shares.append(attention_shares(weights[0], mixers[layer].groups, places))

    with watched(model, see), attention_watched(model, see_attention), torch.no_grad():
        for tokens in tqdm(windows.tokens, desc="Inspecting", unit=" windows", disable=quiet or None):
            model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False, logits_to_keep=1)
    return [layers[layer] for layer in sorted(layers)], [reach[layer] for layer in sorted(reach)]


def write_inspection(inspection: Inspection, folder: Path) -> None:
    """Write `inspect.json` and `inspect.svg` to a folder, which is created if needed."""
    from mesalm.lab.inspection.gate_figure import draw_inspection

    title = f"{resolve(inspection.model).name}, {plural(inspection.windows, 'window')} of {inspection.length} tokens"
    write_text(folder / "inspect.json", inspection.to_json())
    write_text(folder / "inspect.svg", draw_inspection(inspection.heads, title))


def _window_length(length: int, tokens: int) -> int:
    """Return the length; raise ValueError if it is too short for an inspection or exceeds `tokens`."""
    if length < CHUNK:
        raise ValueError(f"length: {length} must be at least {CHUNK}, one chunk of the solver; add --length {CHUNK}")
    if tokens < length:
        raise ValueError(f"tokens: {tokens} is less than one window of {length}; raise it or lower --length")
    return length


def _notes(model: Any, name: str) -> list[str]:
    """Return notes on layers without recurrence or gates. Raises ValueError if there is nothing to inspect."""
    mixers = mixers_of(model)
    if not any(is_recurrent(mixer) for mixer in mixers):
        kind = ", ".join(sorted({mixer.name for mixer in mixers})) or type(model).__name__
        raise ValueError(f"{name}: has no mesa layer to inspect ({kind}); name a model with mesa or linear mixers")
    if any(mixer.name == KalmanMixer.name for mixer in mixers):
        raise ValueError(f"{name}: it has kalman layers, whose systems are not shown; name a model without them")
    notes = [
        f"layer {mixer.layer_idx} is {mixer.name}: it has no gates and no systems"
        for mixer in mixers
        if not is_recurrent(mixer)
    ]
    if not model.config.gates:
        notes.append("the model has no gates: gamma and beta are 1")
    return notes


def _record(
    path: Path, kept: list[Reading], wanted: list[tuple[int, int]] | None, inspection: Inspection, unit_norm: bool
) -> None:
    """Write the first window's operands for the chosen heads."""
    if not kept:
        raise ValueError("record: the model has no mesa layer, so there are no systems to record")
    heads = choose_heads(wanted, {reading.layer: reading.key.shape[2] for reading in kept})
    tensors = {}
    for reading in kept:
        if reading.layer in heads:
            tensors.update(record_tensors(reading, heads[reading.layer]))
    metadata = {
        "model": inspection.model,
        "tokens": inspection.length,
        "tolerance": inspection.tolerance,
        "heads": heads,
        "unit_norm": unit_norm,
        "text": {**inspection.text, "documents": inspection.text["documents"][:1]},
        "command": inspection.command,
    }
    save_recorded(path, tensors, metadata)
