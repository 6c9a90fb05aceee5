"""Print the operator's errors in float32 beside those of dense solves in float32, on hard keys.

    python kernels/bench/bench_errors.py
    python kernels/bench/bench_errors.py --length 1024 --size 32 --tolerance 1e-6

One head: beta uniform in [0, 1], one ridge, one gamma. Errors are those of the whole output against float64 solves of
the same float32 operands; the last columns count products and steps of conjugate gradients.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mesalm.model.mesa_exact import mesa_exact
from mesalm.model.operator_mesa import mesa_attention
from mesalm.model.operator_records import Operands

KEYS = ("independent", "correlated", "nearly identical", "repeated")


def make_keys(kind: str, length: int, size: int, generator: torch.Generator) -> Tensor:
    """Make unit keys `[T, K]` (float64) of one of `KEYS`."""
    noise = torch.randn(length, size, generator=generator, dtype=torch.float64)
    if kind == "correlated":  # a power law, persistence in time and a common mean
        noise = noise * torch.arange(1, size + 1) ** -0.7
        for t in range(1, length):
            noise[t] = 0.6 * noise[t - 1] + 0.8 * noise[t]
        noise = noise + 0.3
    elif kind == "nearly identical":
        noise = noise[:1] + 1e-2 * noise
    elif kind == "repeated":
        noise = noise[torch.arange(length) % 8]
    return torch.nn.functional.normalize(noise, dim=-1)


def make_operands(kind: str, ridge: float, gamma: float, length: int, size: int, seed: int) -> Operands:
    """Make the operands of `mesa_exact` in float32, for one sequence and one head."""
    generator = torch.Generator().manual_seed(seed)
    key = make_keys(kind, length, size, generator)
    query = torch.randn(length, size, generator=generator, dtype=torch.float64) + key
    value = torch.randn(length, size, generator=generator, dtype=torch.float64)
    gate = torch.rand(length, generator=generator, dtype=torch.float64)
    forget = torch.full((1, length, 1), gamma, dtype=torch.float64).log()
    tokens = [x.view(1, length, 1, size) for x in (torch.nn.functional.normalize(query, dim=-1), key, value)]
    states = [torch.zeros(1, 1, size, size), torch.zeros(1, 1, size, size)]
    ridges = torch.full((1, size), ridge, dtype=torch.float64)
    return Operands(*(x.float() for x in (*tokens, forget, gate.view(1, length, 1), ridges, *states)))


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096, help="tokens (default 4096)")
    parser.add_argument("--size", type=int, default=16, help="size of keys and values (default 16)")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--ridge", type=float, nargs="+", default=[0.01, 0.25])
    parser.add_argument("--gamma", type=float, nargs="+", default=[1.0, 0.999, 0.97])
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    table = Table("keys", "ridge", "gamma", "dense float32", "mesa", "cg", "products, mesa", "steps, cg")
    for kind, ridge, gamma in itertools.product(KEYS, options.ridge, options.gamma):
        operands = make_operands(kind, ridge, gamma, options.length, options.size, options.seed)
        with torch.no_grad():
            exact = mesa_exact(Operands(*(x.double() for x in operands)))[0]
            dense = mesa_exact(operands)[0]
            settings = {"tolerance": options.tolerance, "backend": "torch", "return_report": "steps"}
            ways = [mesa_attention(*operands[:6], **settings, method=way) for way in ("auto", "cg")]
        errors = [float((x.double() - exact).norm() / exact.norm()) for x in (dense, ways[0][0], ways[1][0])]
        steps = [f"{way[1].steps.float().mean():.1f}" for way in ways]
        table.add_row(kind, f"{ridge:g}", f"{gamma:g}", *(f"{error:.1e}" for error in errors), *steps)
    Console().print(table)


if __name__ == "__main__":
    main()
