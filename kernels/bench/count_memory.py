"""Count the bytes that the kernels' passes allocate, on no device: what training holds, the most at once, and traffic.

    python kernels/bench/count_memory.py                             # B = 8, T = 4096, H = 16, K = V = 128
    python kernels/bench/count_memory.py --size 64 --length 16384

Nothing is computed: tensors have shapes and no memory, kernels are not launched. The figures are those of the code's
own allocations, beyond the operands; a card's allocator rounds them up, and what a library allocates inside is not
seen. Traffic is what both passes move at least: every tensor that a kernel is given, once a launch, but for launches
that follow for what is marked.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any
from unittest.mock import patch

import records
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DTYPES = ("bfloat16", "float32")
COLUMNS = ("held", "forward", "backward", "traffic")


class Ledger(TorchDispatchMode):
    """An account of all storages made inside: the bytes that live, and the most that ever did.

    known: storages that lived before and do not count.
    """

    def __init__(self, known: tuple[torch.Tensor, ...]) -> None:
        """Begin with nothing."""
        super().__init__()
        self.known = {StorageWeakRef(x.untyped_storage()) for x in known}
        self.live: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and enter what it made."""
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference not in self.known:
                    self.live[reference] = storage.nbytes()
        self.peak = max(self.peak, self.bytes())
        return result

    def bytes(self) -> int:
        """Sum what lives."""
        self.live = {reference: size for reference, size in self.live.items() if not reference.expired()}
        return sum(self.live.values())


def count(size: int, dtype: torch.dtype, *, batch: int = 8, length: int = 4096, heads: int = 16) -> dict[str, int]:
    """Count the bytes beyond operands: "held" for the backward pass, and the most at once in each pass; and "launches".

    "traffic" is that of both passes, operands with it. "backward" counts what is held and the gradients.
    """
    from triton.runtime.jit import JITFunction

    from mesa_kernels import launch

    def meta(*shape: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*shape, dtype=of, device="meta")

    tokens = (meta(batch, length, heads, size, of=dtype) for _ in range(3))
    gates = (meta(batch, length, heads) for _ in range(2))
    operands = (*tokens, *gates, meta(heads, size), *(meta(batch, heads, size, size) for _ in range(2)))
    counted = {"launches": 0, "traffic": 0}

    def record(*_: Any, **arguments: Any) -> None:
        counted["launches"] += 1
        if not arguments.get("MARKED"):
            tensors = (x for x in arguments.values() if isinstance(x, torch.Tensor))
            counted["traffic"] += sum(x.numel() * x.element_size() for x in tensors)

    with torch.no_grad(), patch.object(JITFunction, "run", record):
        with Ledger(operands) as ledger:
            output, gram, cross, solution, steps = launch.forward(*operands, tolerance=1e-4, max_steps=4 * size)
            counted["forward"] = ledger.peak
            del steps
            upstream = tuple(torch.empty_like(x) for x in (output, gram, cross))
            counted["held"] = solution.untyped_storage().nbytes()
        del output, gram, cross
        with Ledger((*operands, *upstream, solution)) as ledger:
            launch.backward(*upstream, *operands, solution, tolerance=1e-4, max_steps=4 * size)
            counted["backward"] = ledger.peak + counted["held"]
    return counted


def count_peer(size: int, *, batch: int = 8, length: int = 4096, heads: int = 16) -> int:
    """Count what flash-linear-attention 0.6.0 holds beyond 16-bit operands: q, k as float16, its solution, its output.

    As it saves them: query, key, value, gates, ridge, solution (float16) and output; query and key are copied to
    float16 unless they come so.
    """
    return 4 * 2 * batch * length * heads * size


def parse(words: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = records.make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--size", type=int, nargs="+", default=[128], help="size of keys and values")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the program; return 0, or 2 after one line about input that is wrong."""
    arguments = parse(words)
    if min(arguments.batch, arguments.length, arguments.heads, *arguments.size) < 1:
        print("count_memory: --batch, --length, --heads and --size must be at least 1", file=sys.stderr)
        return 2
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("count_memory: TRITON_INTERPRET is set, so kernels would run: unset it", file=sys.stderr)
        return 2
    print(f"| size | inputs | {' | '.join(f'{column}, MiB' for column in COLUMNS)} | launches |")
    print("|" + "---|" * (len(COLUMNS) + 3))
    shape = {"batch": arguments.batch, "length": arguments.length, "heads": arguments.heads}
    for size in arguments.size:
        for dtype in DTYPES:
            counted = count(size, getattr(torch, dtype), **shape)
            cells = " | ".join(f"{counted[column] / 2**20:,.0f}" for column in COLUMNS)
            print(f"| {size} | {dtype} | {cells} | {counted['launches']} |", flush=True)
        print(f"| {size} | bfloat16, the peer | {count_peer(size, **shape) / 2**20:,.0f} | | | | |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
