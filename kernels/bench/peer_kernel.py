"""Call the peer's GPU kernel, where flash-linear-attention is installed beside torch and triton.

It stands among the variants of `bench_operator.py` as "fla": `fla.ops.mesa_net.chunk_mesa_net` with its own settings,
30 steps of conjugate gradients and float16 queries and keys, which it casts to by itself. On a CPU the peer has no
kernel; `tests/model/test_operator_peers.py` compares the operator with what its references gave.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import torch
from cases import CaseOperands
from torch import Tensor

PACKAGE = "flash-linear-attention"
STEPS = 30


def peer_release() -> str | None:
    """Name the release of the peer that this process can run kernels of; None where there is none or no card."""
    if not torch.cuda.is_available() or importlib.util.find_spec("fla") is None:
        return None
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def peer_kernel(operands: CaseOperands) -> Tensor:
    """Run the peer's kernel: `[B, T, H, V]`.

    Its names: g is log gamma, lamb the ridge by head and key dimension; nothing is normalised inside. Raises ValueError
    where it cannot run: no card, not installed, values of another size than keys, or query heads that share a key head.
    """
    if peer_release() is None:
        raise ValueError(f"variant fla: needs a CUDA card and the package {PACKAGE}; leave it out or install it")
    query, key, value, log_forget, input_gate, ridge = operands
    if query.shape[2] != key.shape[2] or key.shape[-1] != value.shape[-1]:
        raise ValueError("variant fla: takes as many query heads as key heads and values of the keys' size only")
    function: Any = importlib.import_module("fla.ops.mesa_net").chunk_mesa_net
    results = function(query, key, value, log_forget, input_gate, ridge, max_CG_iteration=STEPS)
    output: Tensor = results[0] if isinstance(results, (tuple, list)) else results
    return output
