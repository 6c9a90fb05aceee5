"""Measure the errors of ways to solve, layer by layer, on a trained model's own operands and gradients.

    python kernels/bench/solver_gradients.py runs/context-cpu-mesa --tokens 1024

A text is read in rows of 256 tokens, and the mean loss over all its tokens is differentiated: so the gradients that
arrive at each layer have the size that training has. Each way then computes each layer's output and gradients from the
same operands, in float32, and is compared with dense solves in float64. Rates are of forward and backward, all layers.
"""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cg_fixed import mesa_solved_by
from solver_mixers import SOLVERS
from torch import Tensor

from mesalm.hub.open_model import open_model, open_tokenizer
from mesalm.model.mixer_mesa import MesaMixer
from mesalm.model.operator_linear import linear_attention
from mesalm.model.operator_mesa import mesa_attention

WAYS: dict[str, Callable[..., Tensor]] = {
    **{f"tolerance {limit:g}": partial(mesa_attention, tolerance=limit) for limit in (1e-4, 1e-3, 1e-2)},
    **{name.removeprefix("mesa-"): partial(mesa_solved_by, solver) for name, solver in SOLVERS.items()},
    "no steps": lambda *operands: linear_attention(*operands[:5]) + 0.0 * operands[5].sum(),
}
NAMES = ("query", "key", "value", "log_forget", "input_gate", "ridge")


def record(model: Any, ids: Tensor) -> list[tuple[list[Tensor], Tensor]]:
    """Return each mesa layer's operands and the gradient at its output for the mean loss of ids [B, T]."""
    seen: list[tuple[list[Tensor], Tensor]] = []
    for mixer in (module for module in model.modules() if isinstance(module, MesaMixer)):
        usual = mixer.read

        def read(projections: Any, state: Any, return_state: bool, usual: Any = usual, mixer: Any = mixer) -> Any:
            output, after = usual(projections, state, return_state)
            output.retain_grad()
            seen.append(([*projections, mixer.ridge()], output))
            return output, after

        mixer.read = read
    model(ids, labels=ids).loss.backward()
    return [([x.detach() for x in operands], output.grad) for operands, output in seen]


def differentiate(way: Callable[..., Tensor], operands: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """Return the output and the gradients of the operands."""
    leaves = [x.clone().requires_grad_() for x in operands]
    output = way(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def main() -> None:
    """Read, solve in every way, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("model", help="a trained model with mesa layers and a tokenizer")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--scale", type=float, default=1.0, help="of the loss, as a batch as many times smaller has")
    options = parser.parse_args()
    model: Any = open_model(options.model, dtype=torch.float32)
    ids = open_tokenizer(options.model)(inspect.getsource(argparse))["input_ids"][: options.tokens]
    layers = record(model, torch.tensor(ids).view(-1, 256))
    layers = [(operands, options.scale * upstream) for operands, upstream in layers]
    exact = [
        differentiate(partial(mesa_attention, backend="exact"), [x.double() for x in operands], upstream.double())
        for operands, upstream in layers
    ]
    sizes = [float(upstream.norm(dim=-1).median()) for _, upstream in layers]
    print("median length of a token's gradient, by layer:", ", ".join(f"{size:.1e}" for size in sizes))
    print(f"| layer | way | output | {' | '.join(NAMES)} |\n|{'---|' * 9}")
    rates = {}
    for name, way in WAYS.items():
        start = time.perf_counter()
        gradients = [differentiate(way, *layer) for layer in layers]
        rates[name] = len(ids) / (time.perf_counter() - start)
        for number, (mine, truth) in enumerate(zip(gradients, exact, strict=True)):
            errors = [float((x - y).norm() / y.norm()) for x, y in zip(mine, truth, strict=True)]
            print(f"| {number} | {name} | {' | '.join(f'{error:.0e}' for error in errors)} |")
    print("tokens per second:", ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()))


if __name__ == "__main__":
    main()
