"""Count what training holds: by the program without a device, and by what autograd really saves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mesalm import mesa_attention

LAUNCHES = {"bfloat16": 15, "float32": 13}
TRAFFIC = {"bfloat16": 43, "float32": 68}
"""Of both passes at K = V = 64, in tensors of the size of the solutions: the most that is allowed."""
PROGRAM = Path(__file__).parents[2] / "kernels/bench/count_memory.py"


@pytest.mark.slow
def test_the_program_counts_what_the_formulas_say() -> None:
    B, T, H, K, C = 4, 4096, 4, 64, 64
    words = ("--batch", str(B), "--length", str(T), "--heads", str(H), "--size", str(K))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(PROGRAM), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    table = {row[1]: [float(cell.replace(",", "")) if cell else None for cell in row[2:]] for row in rows}
    mebi = 2.0**-20
    solutions = 4 * B * T * H * K * mebi
    states = 4 * (B * H * T // C) * K * K * mebi
    for dtype in ("bfloat16", "float32"):
        held, forward, backward, traffic, launches = table[dtype]
        assert held == round(solutions)
        # two states and the solutions at once; backwards two states and their gradients (of 16-bit inputs in half the
        # bytes), and y beside x
        gradients = (1 if dtype == "bfloat16" else 2) * states
        assert forward >= 2 * states + solutions
        assert 2 * states + gradients + 2 * solutions <= backward
        # both states written and read in either pass, and both gradients; a launch more or a tensor more is seen here
        assert 12 * states < traffic <= TRAFFIC[dtype] * solutions
        assert launches == LAUNCHES[dtype]
    copies = 2 * B * T * H * K * mebi
    assert table["bfloat16, the peer"][0] == round(4 * copies)


def test_what_autograd_saves(kernels: str) -> None:
    """Beyond the operands only the solutions are held."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 12, 2, 8), (1, 12, 1, 8), (1, 12, 1, 4)]
    leaves = [torch.randn(shape, generator=generator).to(kernels).requires_grad_() for shape in shapes]
    gates = torch.full((1, 12, 1), -0.01, device=kernels), torch.ones(1, 12, 1, device=kernels)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        mesa_attention(*leaves, *gates, 0.5, backend="triton")
    large = [tuple(x.shape) for x in saved if x.numel() >= 8 * 8 and not any(x is leaf for leaf in leaves)]
    # the initial gram of zeros is an operand too
    assert large == [(1, 1, 8, 8), (1, 12, 2, 8)]
