"""Compile the kernels for sm_90 without a card; print registers, spills, shared memory and tensor-core products.

    python kernels/bench/compile_report.py                           # heads of 64 and 128, bfloat16 and float32
    python kernels/bench/compile_report.py --size 128 --dtype bfloat16 --only solve

Some kernels take minutes. Prints one row of a markdown table a kernel, as it is compiled.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import astuple, fields

import records

DTYPES = ("bfloat16", "float16", "float32")


def parse(words: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = records.make_parser(__doc__)
    parser.add_argument("--size", type=int, nargs="+", default=[64, 128], help="size of keys and values")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--only", nargs="+", metavar="WORD", help="kernels whose names begin with one of these words")
    parser.add_argument("--capability", type=int, default=90, help="compute capability of the card, 90 for sm_90")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the program; return 0, or 2 after one line about input that is wrong."""
    arguments = parse(words)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("compile_report: TRITON_INTERPRET is set, so nothing would be compiled: unset it", file=sys.stderr)
        return 2
    import torch
    from ahead_of_time import CompiledKernel, compile_launch, list_launches, read_compiled

    columns = ["size", "inputs", "kernel", *(field.name.replace("_", " ") for field in fields(CompiledKernel)[1:])]
    print(f"| {' | '.join(columns)} |", flush=True)
    print("|" + "---|" * len(columns), flush=True)
    for size in arguments.size:
        for dtype in arguments.dtype:
            seen = set()
            for launch in list_launches(size, size, getattr(torch, dtype)):
                if arguments.only is None or launch.name.startswith(tuple(arguments.only)):
                    compiled = compile_launch(launch, arguments.capability)
                    if compiled.hash in seen:
                        continue
                    seen.add(compiled.hash)
                    values = " | ".join(map(str, astuple(read_compiled(launch, compiled))))
                    print(f"| {size} | {dtype} | {values} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
