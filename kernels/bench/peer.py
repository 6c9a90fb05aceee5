"""Ask the peer's exact reference, in its own environment, about the operands of a case."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import CaseOperands
from measure import Spread
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

PROGRAM = Path(__file__).resolve().with_name("peer_reference.py")


@dataclass(frozen=True)
class PeerResult:
    """What the peer computed `[B, T, H, V]`, how long its forward pass took, and which function it was."""

    output: Tensor
    seconds: Spread
    release: str
    function: str


def ask_peer(
    python: str, operands: CaseOperands, function: str = "exact", dtype: str = "float32", repeats: int = 3
) -> PeerResult:
    """Run a reference of the peer, "exact" or "cg-30", on a CPU with the interpreter `python` of its environment.

    Raises ValueError with the last line of what that process said if it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "operands.safetensors", Path(folder) / "result.safetensors"
        wanted = getattr(torch, dtype)
        named = dict(zip(CaseOperands._fields, operands, strict=True))
        save_file({name: x.detach().to("cpu", wanted).contiguous() for name, x in named.items()}, given)
        words = [python, str(PROGRAM), str(given), str(result), "--function", function]
        words += ["--dtype", dtype, "--repeats", str(repeats)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise ValueError(f"--peer-python: the peer's reference failed: {(done.stderr.splitlines() or ['?'])[-1]}")
        with safe_open(result, framework="pt") as read:
            labels = read.metadata()
            output, seconds = read.get_tensor("output"), read.get_tensor("seconds")
    return PeerResult(output, Spread.of(seconds.tolist()), labels["release"], labels["function"])
