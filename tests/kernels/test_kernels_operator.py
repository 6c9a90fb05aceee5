"""Hold mesa attention on the kernels to the oracle: output, states and all gradients, against float64.

On a machine without a card everything runs in Triton's interpreter, on fresh memory full of NaN.
"""

from __future__ import annotations

import pytest
import torch
from operator_cases import Case, attend, make_operands, relative_error

# |a - b| / |b| of whole tensors at the default tolerance of 1e-4: output and gradients lean on x, known to 1e-4, the
# gradients of keys and gates on products of two such solutions.
FLOAT32_OUTPUT, FLOAT32_GRADIENT = 1e-4, 5e-4
CASES = [
    Case("iid", "0.99", "none", "0.1", "random", 24, 40, "4/2", 130, "state"),
    Case("correlated", "0.97", "5%", "1", "random", 16, 16, "1/1", 70, "one row"),
    Case("repeated", "1", "none", "0.1", "1", 32, 8, "2/2", 65, "one row"),
    Case("iid", "0.5", "none", "1", "zeros and ones", 8, 24, "3/1", 66, "two rows"),
    Case("nearly identical", "0.9", "1%", "0.01", "random", 16, 16, "1/1", 64, "packed"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32(case: Case, kernels: str) -> None:
    operands = make_operands(case)
    exact = attend(operands, "exact", torch.float64)
    rounding = attend(operands, "exact", torch.float32)
    got = attend(operands, "triton", torch.float32)
    for name, wanted in exact.items():
        bound = FLOAT32_OUTPUT if name in ("output", "last gram", "last cross") else FLOAT32_GRADIENT
        assert relative_error(got[name], wanted) <= max(bound, 3 * relative_error(rounding[name], wanted)), name
