"""Time tiles, warps and stages of every kernel on this machine's card, and write the best to the card's table.

    python kernels/bench/tune.py --size 64 128 --dtype bfloat16 float32

One kernel after another tries its candidates, the others as they are; what is timed is a forward and backward pass, and
for the kernel of single tokens one step of decoding. The kernels then read the table,
`kernels/mesa_kernels/tuned/CARD.json`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from time import monotonic
from unittest.mock import patch

import torch
from cases import DTYPES, Case, make_operands
from measure import interleave
from rich.progress import track

from mesa_kernels import launch, tuning
from mesa_kernels.tuning import Choice, Shapes
from mesalm.model.operator_mesa import MesaState, mesa_attention

TILES, WARPS, STAGES = (16, 32, 64), (4, 8), (1, 2)
FIRST = ("solve", "gradients", "tokens", "read", "gram adjoint")
"""Kernels that do most of the work: tuned first, in case that time runs out."""


@contextmanager
def forced(kernel: str, shapes: Shapes, choice: Choice) -> Iterator[None]:
    """Make one kernel run with a choice of ours, written into a copy of the card's table."""
    file, entry = tuning.table_file(shapes.device), tuning.describe(kernel, shapes)
    with TemporaryDirectory() as folder, patch.dict(os.environ, MESALM_TUNED=folder):
        trial = tuning.table_file(shapes.device)
        if file.exists():
            shutil.copy(file, trial)
        tuning.write_table(trial, {entry: choice}, {entry: 0.0})
        yield


def best_choice(kernel: str, shapes: Shapes, time: Callable[[], float], end: float = math.inf) -> tuple[Choice, float]:
    """Try all candidates of a kernel, the usual one first, until a time of the monotonic clock.

    One that does not compile or needs too much memory is left out.
    """
    usual = tuning.choose(kernel, shapes)
    tiles = TILES if tuning.has_tile(kernel, shapes) else [usual.tile]
    candidates = [Choice(*rest) for rest in itertools.product(tiles, [usual.dot], WARPS, STAGES)]
    seconds: dict[Choice, float] = {}
    for choice in [usual, *(choice for choice in candidates if choice != usual)]:
        if seconds and monotonic() > end:
            break
        with forced(kernel, shapes, choice):
            try:
                seconds[choice] = time()
            except Exception as trouble:  # triton raises errors of many kinds where a choice cannot run
                print(f"{kernel} {choice}: {str(trouble).splitlines()[0]}", file=sys.stderr)
    if not seconds:
        raise ValueError(f"no choice for the kernel {kernel} runs on this card")
    fastest = min(seconds, key=seconds.__getitem__)
    return fastest, seconds[fastest]


def parse(words: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, nargs="+", default=[64, 128], help="size of keys and values")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), nargs="+", default=["bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=math.inf, metavar="SECONDS", help="stop after that time")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the program; return 0, or 2 after one line about input that is wrong."""
    arguments = parse(words)
    if not torch.cuda.is_available():
        print("tune: no CUDA card found", file=sys.stderr)
        return 2
    end = monotonic() + arguments.limit
    for size, dtype in itertools.product(arguments.size, arguments.dtype):
        operands = make_operands(Case(4096, 4, 16, size, gamma=0.97, dtype=dtype, device="cuda")).leaves()
        upstream = torch.randn_like(operands.value)
        shapes = launch.Sizes(4, 4096, 16, 16, size, size, DTYPES[dtype] != torch.float32, operands.query.device)

        def run(operands: tuple[torch.Tensor, ...] = operands, upstream: torch.Tensor = upstream) -> None:
            mesa_attention(*operands, backend="triton").backward(upstream)

        with torch.no_grad():
            _, state = mesa_attention(*operands, backend="triton", return_state=True)

        @torch.no_grad()
        def decode(operands: tuple[torch.Tensor, ...] = operands.tokens(0, 1), state: MesaState = state) -> None:
            mesa_attention(*operands, initial_state=state, return_state=True, backend="triton")

        for kernel in track(
            [*FIRST, *(name for name in tuning.DEFAULTS if name not in FIRST)], f"size {size}, {dtype}"
        ):
            if monotonic() > end:
                print(f"tune: out of time before the kernel {kernel} at size {size}, {dtype}", file=sys.stderr)
                return 0
            timed = decode if kernel == "one step" else run

            def time(timed: Callable[[], None] = timed) -> float:
                return interleave({"": timed}, arguments.repeats, 2, "cuda")[""].median

            choice, seconds = best_choice(kernel, shapes, time, end)
            entry = tuning.describe(kernel, shapes)
            tuning.write_table(tuning.table_file(shapes.device), {entry: choice}, {entry: seconds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
