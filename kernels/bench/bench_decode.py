"""Time the writing of single tokens after contexts of growing length: mesa beside its softmax baseline.

    python kernels/bench/bench_decode.py                             # contexts 128, 1,024, 4,096 and 16,384
    python kernels/bench/bench_decode.py --device cuda --dtype bfloat16 --batch 1 8 64 --context 1024 16384

A context of random tokens fills the cache; then single tokens go through the model as `generate` sends them, the models
turn by turn. Prints one table, and appends one JSON line per model and context to --out. See README.md.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import records
import torch
from cases import BASELINE, DTYPES, MODEL_SIZES, add_model_arguments, build_model
from measure import Spread, interleave, ratio, time_once

from mesalm import MesaForCausalLM, mesa_attention
from mesalm.model.cache_mesa import returned_cache

CLOCKS = {"wall": time.perf_counter, "processor": time.thread_time}
PREFILL = 2048
"""Tokens of the context that go through a model at once, so that long contexts need little memory."""


@dataclass
class Writer:
    """A model that has read a context, and its cache: what it costs to go on by single tokens."""

    model: MesaForCausalLM
    token: torch.Tensor
    cache: Any = None

    def read(self, tokens: torch.Tensor, at_once: int = PREFILL) -> None:
        """Read a context `[B, T]` into a fresh cache."""
        self.cache = None
        for piece in tokens.split(at_once, dim=1):
            self._advance(piece)

    def write(self) -> None:
        """Write one token, the likeliest."""
        self._advance(self.token)

    @torch.inference_mode()
    def _advance(self, tokens: torch.Tensor) -> None:
        result = self.model(input_ids=tokens, cache=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = returned_cache(result)
        self.token = result.logits[:, -1:].argmax(-1)

    def cache_bytes(self) -> int:
        """Count the bytes of all tensors in the cache."""
        return sum(tensor.nbytes for layer in self.cache.layers for tensor in _tensors(vars(layer)))


def _tensors(held: object) -> list[torch.Tensor]:
    """List the tensors in what a cache's layer holds."""
    if isinstance(held, torch.Tensor):
        return [held]
    if isinstance(held, dict):
        held = list(held.values())
    return [tensor for part in held for tensor in _tensors(part)] if isinstance(held, (list, tuple)) else []


def parse(words: list[str] | None) -> argparse.Namespace:
    """Read the command line; --quick is small sizes and few repeats, unless they are given too."""
    parser = records.make_parser(__doc__)
    parser.add_argument("--context", type=int, nargs="+", help="tokens before (default: 128 1024 4096 16384)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="sequences written at once (default: 1)")
    add_model_arguments(parser)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the model's weights")
    parser.add_argument("--repeats", type=int, help="tokens measured (default: 64)")
    parser.add_argument("--warmup", type=int, default=4, help="tokens before them")
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall", help="processor: seconds of one thread, on a busy CPU"
    )
    usual = {**MODEL_SIZES, "context": ([128, 1024, 4096, 16384], [32, 64]), "repeats": (64, 2)}
    arguments = records.read_arguments(parser, words, usual)
    if min(*arguments.context, *arguments.batch, arguments.repeats) < 1:
        parser.error("--context, --batch and --repeats must be at least 1")
    return arguments


def build(arguments: argparse.Namespace, mixer: str) -> Writer:
    """Build a model with one mixer."""
    model = build_model(arguments, mixer, max(arguments.context) + arguments.repeats + arguments.warmup)
    if DTYPES[arguments.dtype] != torch.float32:
        # as from_pretrained does: gates and ridge stay float32
        spared = model._keep_in_fp32_modules_strict or ()
        for name, parameter in model.named_parameters():
            if not any(part in name for part in spared):
                parameter.data = parameter.data.to(DTYPES[arguments.dtype])
    return Writer(model.to(arguments.device).eval(), torch.empty(0))


def name_backend(arguments: argparse.Namespace) -> str:
    """Name the back end that solves a single token of the mesa model."""
    shape = (1, 1, arguments.heads, arguments.width // arguments.heads)
    token = torch.zeros(shape, device=arguments.device, dtype=DTYPES[arguments.dtype])
    with torch.inference_mode():
        report = mesa_attention(token, token, token, return_report="steps")[1]
    backend: str = report.backend
    return backend


@dataclass(frozen=True)
class Measured:
    """What was measured of one model after one context: a token, the context's reading, the cache."""

    token: Spread
    read_s: float
    cache_bytes: int


def measure_context(
    writers: dict[str, Writer], context: int, batch: int, arguments: argparse.Namespace
) -> dict[str, Measured]:
    """Let all models read a context one after the other, then write tokens turn by turn."""
    generator = torch.Generator().manual_seed(arguments.seed)
    tokens = torch.randint(arguments.vocabulary, (batch, context), generator=generator)
    tokens = tokens.to(arguments.device)
    clock = CLOCKS[arguments.clock]
    reading = {
        name: time_once(lambda w=writer: w.read(tokens), arguments.device, clock) for name, writer in writers.items()
    }
    sizes = {name: writer.cache_bytes() for name, writer in writers.items()}
    writing = interleave(
        {name: writer.write for name, writer in writers.items()},
        arguments.repeats,
        arguments.warmup,
        arguments.device,
        clock,
    )
    return {name: Measured(writing[name], reading[name], sizes[name]) for name in writers}


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure, print and write all contexts; return the JSON lines."""
    shared = records.describe_run("bench_decode", arguments)
    writers = {mixer: build(arguments, mixer) for mixer in arguments.mixers}
    backend = name_backend(arguments)
    lines = []
    for batch, context in itertools.product(arguments.batch, arguments.context):
        measured = measure_context(writers, context, batch, arguments)
        baseline = measured.get(BASELINE)
        for name, timing in measured.items():
            line: dict[str, Any] = {
                **shared,
                "context": context,
                "batch": batch,
                "variant": name,
                "backend": backend if name == "mesa" else None,
                "token_s": asdict(timing.token),
                "tokens_per_s": batch / timing.token.median,
                "time_over_softmax": ratio(timing.token, baseline.token if baseline else None),
                "read_s": timing.read_s,
                "cache_bytes": timing.cache_bytes,
            }
            lines.append(line)
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "model, batch\nx context": lambda line: f"{line['variant']}, {line['batch']} x {line['context']}",
        "a step\nms": lambda line: records.milliseconds(line["token_s"]),
        "tokens\na second": lambda line: records.number(line["tokens_per_s"]),
        "times\nsoftmax": lambda line: records.number(line["time_over_softmax"]),
        "cache\nMiB": lambda line: records.number(line["cache_bytes"], 2.0**-20),
        "reading the\ncontext, s": lambda line: records.number(line["read_s"]),
    }
    records.show_lines("decoding", columns, lines)
    if arguments.out is not None:
        records.append_lines(arguments.out, lines)
    return lines


def main(words: list[str] | None = None) -> int:
    """Run the program; return 0, or 2 after one line about input that is wrong."""
    return records.run_program("bench_decode", run, parse(words))


if __name__ == "__main__":
    sys.exit(main())
