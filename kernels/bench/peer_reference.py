"""Run flash-linear-attention's references on operands from a file; needs that package, torch and safetensors.

    PEER/bin/python kernels/bench/peer_reference.py OPERANDS RESULT [--function cg-30] [--dtype float64]

This file runs in the peer's environment and imports nothing of this project; the two exchange safetensors files.
The functions are `naive_mesa_net_exact` and `naive_mesa_net_CG` of `fla.ops.mesa_net.naive`: the exact operator, and
the recipe of its kernels, 30 steps of conjugate gradients in chunks of 64 tokens, in plain torch. The module is loaded
by path, because importing the package looks for a GPU. They compute in float32; with --dtype float64 this process makes
float64 of what they call float.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import time
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file, save_file

MODULE = "ops/mesa_net/naive.py"
FUNCTIONS = {"exact": "naive_mesa_net_exact", "cg-30": "naive_mesa_net_CG"}
SETTINGS: dict[str, dict[str, int]] = {"exact": {}, "cg-30": {"chunk_size": 64, "max_CG_iteration": 30}}


def load_module() -> ModuleType:
    """Load the peer's reference without running its package; raise SystemExit where it is not installed."""
    package = importlib.util.find_spec("fla")
    for folder in package.submodule_search_locations or [] if package else []:
        file = Path(folder) / MODULE
        if file.exists():
            spec = importlib.util.spec_from_file_location("peer_naive", file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise SystemExit("flash-linear-attention is not installed in this environment, or has no ops/mesa_net/naive.py")


def compute_in_double() -> None:
    """Make this process compute in float64 where the peer's code asks for float32."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double


def main() -> None:
    """Read operands, run the reference, write its output and its seconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("operands", type=Path, help="query, key, value, log_forget, input_gate, ridge")
    parser.add_argument("result", type=Path, help="output, seconds; metadata: release and function")
    parser.add_argument("--function", choices=tuple(FUNCTIONS), default="exact")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    arguments = parser.parse_args()
    if arguments.dtype == "float64":
        compute_in_double()
    name = FUNCTIONS[arguments.function]
    function = getattr(load_module(), name)
    read = load_file(arguments.operands)
    # their names: g is log gamma, lamb the ridge by head and key dimension; nothing is normalised inside
    operands = [read[name] for name in ("query", "key", "value", "log_forget", "ridge", "input_gate")]
    seconds = []
    with torch.no_grad():
        for _ in range(arguments.repeats + 1):
            start = time.perf_counter()
            output = function(*operands, **SETTINGS[arguments.function])[0]
            seconds.append(time.perf_counter() - start)
    release = importlib.metadata.version("flash-linear-attention")
    save_file(
        {"output": output.contiguous(), "seconds": torch.tensor(seconds[1:], dtype=torch.float64)},
        arguments.result,
        metadata={"release": release, "function": f"fla.ops.mesa_net.naive.{name}"},
    )


if __name__ == "__main__":
    main()
