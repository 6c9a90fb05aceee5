"""Run what only larger heads reach in the interpreter: several tiles of a state and of values."""

from __future__ import annotations

import pytest
import torch
from operator_cases import Case, check_float32, make_operands, relative_error

from mesalm import mesa_attention

CASES = [
    Case("iid", "0.99", "none", "0.1", "random", 48, 48, "1/1", 66, "state"),
    Case("correlated", "0.97", "1%", "1", "random", 80, 80, "1/1", 40, "one row"),
    Case("iid", "0.5", "none", "1", "random", 128, 128, "1/1", 16, "state"),
    Case("iid", "0.999", "none", "0.1", "random", 64, 96, "1/1", 20, "state"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(CASES[0], marks=pytest.mark.card), *CASES[1:]], ids=str)
def test_several_tiles(case: Case, kernels: str) -> None:
    check_float32(make_operands(case), kernels)


@pytest.mark.card
def test_several_tiles_of_16_bits(kernels: str) -> None:
    """On chip, forwards and backwards; what is left is the rounding to 11 bits."""
    operands = make_operands(Case("iid", "0.99", "none", "1", "random", 128, 32, "1/1", 16, "one row"))
    tokens = [x.half().double() if place < 3 else x for place, x in enumerate(operands.tokens)]
    results = []
    for backend, device in (("exact", "cpu"), ("triton", kernels)):
        dtypes = [torch.float64] * 6 if backend == "exact" else [torch.float16] * 3 + [torch.float32] * 3
        leaves = [x.detach().to(device, dtype).requires_grad_() for x, dtype in zip(tokens, dtypes, strict=True)]
        output = mesa_attention(*leaves, backend=backend)
        results.append([output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))])
    for place, (wanted, got) in enumerate(zip(*results, strict=True)):
        assert relative_error(got.double().cpu(), wanted) <= 6e-4, place
