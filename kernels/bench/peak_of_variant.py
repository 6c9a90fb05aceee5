"""Print the peak memory of one variant as JSON; a process of its own for each, started by bench_operator.py.

    python kernels/bench/peak_of_variant.py CASE VARIANT

CASE is the JSON of a `cases.Case`. The process runs the variant on a short case first, so that libraries are loaded and
threads started, then on the case itself: the peak of its resident memory beyond what it held before the call. Freed
blocks are given back to the system at once (see ENVIRONMENT), so that nothing hides in the allocator.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from cases import Case, CaseOperands, make_operands
from measure import peak_memory
from variants import Variant, find

WARM_TOKENS = 128
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
"""What tells glibc to give large blocks back; read when a process starts."""


def passes(
    variant: Variant, operands: CaseOperands, leaves: CaseOperands, upstream: torch.Tensor
) -> dict[str, Callable[[], object]]:
    """Return a variant's two actions to be timed: the forward pass, and both passes."""
    wanted = [leaves[place] for place in variant.reads]

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return variant.run(operands)

    return {"forward": forward, "both": lambda: torch.autograd.grad(variant.run(leaves), wanted, upstream)}


def measure(case: Case, name: str) -> dict[str, int | None]:
    """Measure the bytes of the forward pass and of both passes of a variant, in this process."""
    variant = find(name)
    peaks: dict[str, int | None] = {}
    for length in (min(WARM_TOKENS, case.length), case.length):
        leaves = make_operands(replace(case, length=length)).leaves()
        upstream = torch.ones_like(leaves.value)
        actions = passes(variant, leaves, leaves, upstream)
        peaks = {way: peak_memory(action, case.device) for way, action in actions.items()}
    return peaks


def measure_apart(case: Case, name: str) -> dict[str, int | None]:
    """Measure as `measure` does, in a fresh process.

    Raises RuntimeError with what the process said if it failed.
    """
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(case)), name],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": threads},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed:\n{done.stderr}")
    peaks: dict[str, int | None] = json.loads(done.stdout.splitlines()[-1])
    return peaks


if __name__ == "__main__":
    print(json.dumps(measure(Case(**json.loads(sys.argv[1])), sys.argv[2])))
