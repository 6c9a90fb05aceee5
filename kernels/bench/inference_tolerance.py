"""Measure what the solver's tolerance adds to the rounding of a model that reads and writes in 16 bits.

    python kernels/bench/inference_tolerance.py runs/context-cpu-mesa --recorded tests/data/recorded_long.safetensors

A text is read in rows, whole (prefill) and its last tokens one at a time from a cache (decode), with float32, bfloat16
and float16 weights. Errors are of logits, relative, against the same weights in float64, solved to 1e-10. What float32
shows is the solver's error; where 16 bits show more, that is their rounding. Milliseconds are of this process. The
operator alone reads recorded operands, rounded to 16 bits; gates and ridge stay in float32, as models keep them.
"""

from __future__ import annotations

import argparse
import inspect
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mesalm.hub.open_model import open_model, open_tokenizer
from mesalm.lab.inspection.recorded import load_recorded
from mesalm.model.operator_mesa import mesa_attention

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCES = (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1)


class Reading(NamedTuple):
    """Logits of a text read whole and token by token, tokens written, and products per solve and seconds when whole."""

    whole: Tensor
    decoded: Tensor
    written: Tensor
    steps: float
    seconds: float


@torch.no_grad()
def read(model: Any, ids: Tensor, tolerance: float, decoded: int) -> Reading:
    """Read rows of tokens, the last `decoded` of them also one at a time, and write as many after their half."""
    model.config.tolerance = tolerance
    seconds = []
    for _ in range(3):
        start = time.process_time()
        whole = model(ids).logits.double()
        seconds.append(time.process_time() - start)
    steps = model.solver_steps()
    cache = model(ids[:, :-decoded], use_cache=True).cache
    logits = []
    for place in range(ids.shape[1] - decoded, ids.shape[1]):
        logits.append(model(ids[:, place : place + 1], cache=cache, use_cache=True).logits.double())
    half = ids.shape[1] // 2
    written = model.generate(
        ids[:, :half], attention_mask=torch.ones_like(ids[:, :half]), max_new_tokens=decoded, do_sample=False
    )
    return Reading(whole, torch.cat(logits, 1), written[:, half:], steps, min(seconds))


def loss(logits: Tensor, ids: Tensor) -> float:
    """Return the mean loss per token."""
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))


def error(got: Tensor, wanted: Tensor) -> float:
    """Return |got - wanted| / |wanted|, wanted less each token's mean."""
    return float((got - wanted).norm() / (wanted - wanted.mean(-1, keepdim=True)).norm())


def agreement(one: Tensor, other: Tensor) -> float:
    """Return the share of written tokens before the first that differs."""
    count = min(one.shape[1], other.shape[1])
    return float((one[:, :count] == other[:, :count]).long().cumprod(-1).double().mean())


@torch.no_grad()
def operator_errors(layers: list[dict[str, Tensor]], dtype: torch.dtype, tolerance: float) -> list[float]:
    """Return the relative error of each layer's output, against unrounded operands in float64; the worst head's."""
    errors = []
    for layer in layers:
        exact = mesa_attention(**{name: x.double() for name, x in layer.items()}, tolerance=1e-10)
        wanted = {name: dtype if name in ("query", "key", "value") else torch.float32 for name in layer}
        rounded = {name: x.to(wanted[name]) for name, x in layer.items()}
        difference = mesa_attention(**rounded, tolerance=tolerance).double() - exact
        errors.append(float((difference.norm(dim=(1, 3)) / exact.norm(dim=(1, 3))).max()))
    return errors


def main() -> None:
    """Read a text with all dtypes and tolerances and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("model", help="a trained model with mesa layers and a tokenizer")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--length", type=int, default=256, help="of a row")
    parser.add_argument("--decoded", type=int, default=64, help="tokens of each row that are read one at a time")
    parser.add_argument("--recorded", type=Path, nargs="*", default=[], help="files of operands that a model recorded")
    options = parser.parse_args()
    for file in options.recorded:
        layers = load_recorded(file)
        print(f"| weights | tolerance | outputs of {file.stem} |\n|---|---|---|")
        for dtype in DTYPES:
            for tolerance in TOLERANCES:
                errors = operator_errors(layers, dtype, tolerance)
                cells = [str(dtype).removeprefix("torch."), f"{tolerance:g}", f"{min(errors):.1e} to {max(errors):.1e}"]
                print("| " + " | ".join(cells) + " |", flush=True)
    ids = open_tokenizer(options.model)(inspect.getsource(argparse))["input_ids"][: options.tokens]
    rows = torch.tensor(ids).view(-1, options.length)
    exact = read(open_model(options.model, dtype=torch.float64), rows, 1e-10, options.decoded)
    truth = loss(exact.whole, rows)
    print(f"loss {truth:.5f}")
    print("| weights | tolerance | prefill | decode | loss, less float64's | written alike | products | ms |")
    print("|---" * 8 + "|")
    for dtype in DTYPES:
        model = open_model(options.model, dtype=dtype)
        for tolerance in TOLERANCES:
            reading = read(model, rows, tolerance, options.decoded)
            cells = [
                str(dtype).removeprefix("torch."),
                f"{tolerance:g}",
                f"{error(reading.whole, exact.whole):.2e}",
                f"{error(reading.decoded, exact.whole[:, -options.decoded :]):.2e}",
                f"{loss(reading.whole, rows) - truth:+.1e}",
                f"{agreement(reading.written, exact.written):.0%}",
                f"{reading.steps:.1f}",
                f"{1000 * reading.seconds:.0f}",
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
