"""Make the folder that a borrowed card's bare machine is given: kernels compiled ahead, and the wheels it lacks.

    python3.12 -m venv CARD && CARD/bin/pip install torch==2.11.0 triton==3.6.0 numpy rich safetensors
    CARD/bin/python kernels/bench/carry.py .card

Kernels are compiled for sm_90 by Triton's own launcher, without a card, for every size that `gpu_session.py` runs; a
second process then asks for all of them again, and none may be compiled. Ignored by git; what else lies in
FOLDER (docs/gpu.md) is left as it is and counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import carried
import records

MACHINE = {"python": "3.12", "triton": "3.6.0"}
"""What the card's machine has. Triton's cache fits no other release."""
WHEELS = (
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "datasets", "dill", "multiprocess"),
    *("typing_extensions", "einops"),
    *("flash-linear-attention==0.6.0", "fla-core==0.6.0"),
)
"""What training and the peer need there beside what it has; releases as in constraints.txt."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LIMIT = 56 * 2**20
"""Bytes that can be carried beside the checkout."""


class Pass(NamedTuple):
    """A forward and backward pass with kernels to compile; wide: with float32 results, as errors are found."""

    dtype: str
    batch: int
    length: int
    heads: int
    size: int
    wide: bool = False


PASSES = (
    Pass("bfloat16", 8, 4096, 16, 128),  # aim, profile; lengths differ in the batch alone
    Pass("bfloat16", 1, 512, 16, 128),  # smoke
    Pass("float32", 1, 512, 16, 128),
    Pass("bfloat16", 1, 4096, 16, 128, True),  # errors of aim
    Pass("bfloat16", 1, 512, 16, 128, True),
    Pass("bfloat16", 64, 512, 12, 64),  # train-step
    Pass("bfloat16", 8, 4096, 12, 64),
    Pass("bfloat16", 16, 512, 3, 64),  # context-gpu
)
PEER_PARTS = 8
"""Parts that the peer's kernels are compiled in."""


def compile_part(part: Pass | int) -> tuple[set[str], int]:
    """Compile a pass's kernels, or a part of the peer's, into Triton's cache; return digests and how many it lacked."""
    sys.path[:0] = [str(records.ROOT / folder) for folder in ("", "kernels", "eval")]  # the folders of this checkout
    import torch
    from ahead_of_time import compile_launch, list_launches
    from triton import knobs

    misses = []
    knobs.compilation.listener = lambda **told: misses.append(told["src"]) if not told["cache_hit"] else None
    if isinstance(part, int):
        sys.path.append(str(carried.SITE))
        from peer_ahead import compile_peer

        digests = compile_peer(part, PEER_PARTS)
        return digests, len(misses)
    sizes = {"batch": part.batch, "length": part.length, "heads": part.heads, "wide": part.wide}
    launches = list_launches(part.size, part.size, getattr(torch, part.dtype), **sizes)
    digests = {compile_launch(launch).hash for launch in launches}
    return digests, len(misses)


def compile_all(processes: int) -> tuple[int, int]:
    """Compile everything in fresh processes, a part each; return kernels and those that were not in the cache."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        found = list(pool.map(compile_part, (*PASSES, *range(PEER_PARTS))))
    return len(set().union(*(digests for digests, _ in found))), sum(misses for _, misses in found)


def make_cache(folder: Path, processes: int) -> dict[str, object]:
    """Compile everything into FOLDER/cache, unpack that as the card's machine does, and see that nothing is missing."""
    begun = time.monotonic()
    os.environ |= {"TRITON_CACHE_DIR": str(carried.CACHE), "TRITON_STORE_BINARY_ONLY": "1"}
    shutil.rmtree(folder / "cache", ignore_errors=True)
    shutil.rmtree(carried.CACHE, ignore_errors=True)
    carried.unpack(folder)
    made, _ = compile_all(processes)
    shutil.copytree(carried.CACHE, folder / "cache", ignore=shutil.ignore_patterns("*.source"))
    print(f"compiled {made} kernels in {time.monotonic() - begun:.0f} s", flush=True)
    begun = time.monotonic()
    carried.unpack(folder)
    asked, missed = compile_all(processes)
    if missed:
        raise ValueError(f"{missed} of {asked} kernels were compiled again from the cache; run carry.py once more")
    print(f"other processes found all {asked} of them in {time.monotonic() - begun:.0f} s", flush=True)
    return {"kernels": made, "triton_key": carried.kernel_key()}


def get_wheels(folder: Path) -> None:
    """Download the wheels for the card's machine into FOLDER/wheels."""
    shutil.rmtree(folder / "wheels", ignore_errors=True)
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    words += ["--only-binary=:all:", "--implementation", "cp", "--python-version", MACHINE["python"]]
    words += [f"--platform={name}" for name in PLATFORMS]
    words += ["--constraint", str(records.ROOT / "constraints.txt"), "--dest", str(folder / "wheels"), *WHEELS]
    if subprocess.run(words, check=False).returncode:
        raise ValueError("pip could not download the wheels; see its output above")


def size_of(folder: Path) -> int:
    """Sum the bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def parse(words: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = records.make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that compile (default: one a core)")
    return parser.parse_args(words)


def main(words: list[str] | None = None, machine: dict[str, str] = MACHINE) -> int:
    """Run the program; return 0, or 2 after one line about what is wrong."""
    arguments = parse(words)
    folder: Path = arguments.folder
    here = {"python": ".".join(platform.python_version_tuple()[:2]), "triton": version("triton")}
    try:
        if here != machine:
            wanted = ", ".join(f"{name} {release}" for name, release in machine.items())
            raise ValueError(f"runs in {wanted}, as on the card's machine, not in {here}; create that environment")
        if os.environ.get("TRITON_INTERPRET") == "1":
            raise ValueError("TRITON_INTERPRET is set, so nothing would be compiled: unset it")
        folder.mkdir(parents=True, exist_ok=True)
        get_wheels(folder)
        manifest = {**make_cache(folder, arguments.processes), **here, "commit": records.commit()}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        parts = {part.name: size_of(part) for part in sorted(folder.iterdir()) if part.is_dir()}
        print(", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in parts.items()))
        if sum(parts.values()) > LIMIT:
            raise ValueError(f"{folder} holds more than {LIMIT / 2**20:.0f} MiB; remove some of its text")
    except ValueError as trouble:
        print(f"carry: {trouble}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
