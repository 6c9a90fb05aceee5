"""Make the cases of the correctness grid of mesa attention: factors, operands, results and their measures.

Operands are float64 tensors whose entries are float32 numbers, so that both precisions and the oracle see one problem.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from pair_covering import Level, covering
from torch import Tensor
from torch.nn.functional import normalize

from mesalm.lab.inspection.recorded import load_recorded
from mesalm.model.operator_mesa import mesa_attention

RATES = (1.0, 0.999, 0.97, 0.9, 0.5)
OUTPUTS = ("output", "last gram", "last cross")
NAMES = ("query", "key", "value", "log_forget", "input_gate", "ridge", "gram", "cross")
DATA = Path(__file__).parents[1] / "data"
RECORDED = ("recorded_short", "recorded_long")


class Case(NamedTuple):
    """Name one case by a level of every factor.

    gamma: the mean of the decay, or what mixes `RATES`. ridge: the middle of its entries, or "spread" for 0.01 to 10.
    heads: query heads over key heads. layout: rows of the batch, an initial state, packed sequences, or both.
    """

    keys: str
    gamma: str
    restarts: str
    ridge: str
    beta: str
    K: int
    V: int
    heads: str
    T: int
    layout: str

    def __str__(self) -> str:
        return f"{self.keys} gamma={self.gamma} restarts={self.restarts} ridge={self.ridge} beta={self.beta} " + (
            f"K={self.K} V={self.V} heads={self.heads} T={self.T} {self.layout}"
        )


FACTORS: dict[str, tuple[Hashable, ...]] = {
    "keys": ("iid", "correlated", "nearly identical", "repeated"),
    "gamma": ("1", "0.999", "0.99", "0.97", "0.95", "0.9", "0.8", "0.5", "by head", "by token"),
    "restarts": ("none", "1%", "5%", "every"),
    "ridge": ("0.01", "0.1", "1", "10", "spread"),
    "beta": ("random", "zeros and ones", "1", "0"),
    "K": (8, 24, 64, 128, 256),
    "V": (8, 40, 128, 256),
    "heads": ("1/1", "2/2", "4/2", "3/1"),
    "T": (1, 2, 63, 64, 65, 200, 1100),
    "layout": ("one row", "two rows", "state", "packed", "packed state"),
}
LONG_FACTORS = FACTORS | {"T": (*FACTORS["T"], 130, 4096, 8192)}
WHOLE_PRODUCT = ("keys", "gamma", "ridge")


def affordable(one: Level, other: Level, numbers: int = 4_300_000) -> bool:
    """Tell whether two levels may meet: the oracle keeps T * K * K and T * K * V numbers, many times over."""
    sizes = dict((one, other))
    T, K, V = (int(str(sizes.get(name, 1))) for name in ("T", "K", "V"))
    return max(T * K * K / numbers, T * V / 150_000) <= 1


affordable_slowly = functools.partial(affordable, numbers=10_000_000)


def covering_cases() -> list[Case]:
    """Give the sample in which every affordable pair of levels meets."""
    return [Case(**row) for row in covering(FACTORS, affordable)]


def whole_grid() -> list[Case]:
    """Give the product of keys, gamma and ridge, the other factors rotating, with lengths to 8192 and every pair met.

    Restarts at every token and gates that write nothing leave no system to solve, so they come only in the further
    rows that their pairs need.
    """
    product = itertools.product(*(LONG_FACTORS[name] for name in WHOLE_PRODUCT))
    restarts = itertools.cycle(("none", "1%", "5%"))
    beta = itertools.cycle(("random", "1", "zeros and ones", "random", "1", "random", "1"))  # 7 and 3 never in step
    start = [
        {**dict(zip(WHOLE_PRODUCT, levels, strict=True)), "restarts": next(restarts), "beta": next(beta)}
        for levels in product
    ]
    return [Case(**row) for row in covering(LONG_FACTORS, affordable_slowly, start)]


class Operands(NamedTuple):
    """Hold the arguments of one call in float64: six tensors, the initial state, and the bounds of packed sequences.

    tokens: query, key, value, log_forget, input_gate and ridge `[G, K]`; state: gram and cross, one row per sequence.
    """

    tokens: tuple[Tensor, ...]
    state: tuple[Tensor, Tensor] | None
    bounds: tuple[int, ...] | None

    def sequences(self) -> list[Operands]:
        """Give packed sequences as calls of their own; slices of the tensors, so that gradients flow back."""
        if self.bounds is None:
            return [self]
        pieces = []
        for row, (a, b) in enumerate(itertools.pairwise(self.bounds)):
            state = None if self.state is None else tuple(x[row : row + 1] for x in self.state)
            pieces.append(Operands((*(x[:, a:b] for x in self.tokens[:5]), self.tokens[5]), state, None))
        return pieces


def make_keys(kind: str, B: int, T: int, G: int, K: int, generator: torch.Generator) -> Tensor:
    """Make unit keys `[B, T, G, K]`."""
    noise = torch.randn(B, T, G, K, generator=generator, dtype=torch.float64)
    if kind == "correlated":  # a common mean, a power law of variances, and AR(1) along the sequence
        for t in range(1, T):
            noise[:, t] = 0.9 * noise[:, t - 1] + math.sqrt(1 - 0.9**2) * noise[:, t]
        noise = noise / torch.arange(1, K + 1) + 0.5 / math.sqrt(K)
    elif kind == "nearly identical":
        noise = noise[:, :1] + 1e-3 * noise
    elif kind == "repeated":
        noise = noise[:, torch.arange(T) % 3]
    return normalize(noise, dim=-1)


def make_forget(case: Case, B: int, G: int, generator: torch.Generator) -> Tensor:
    """Make log gates `[B, T, G]`: 1 - gamma uniform about its mean, and restarts, one at least where there are any."""
    shape = (B, case.T, G)

    def uniform() -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    rates = torch.tensor(RATES, dtype=torch.float64)
    if case.gamma == "by head":
        mean = rates[(torch.arange(G) + int(5 * uniform().mean() + case.T)) % len(rates)].expand(shape)
    elif case.gamma == "by token":
        mean = rates[(uniform() * len(rates)).long()]
    else:
        mean = torch.full(shape, float(case.gamma), dtype=torch.float64)
    log = torch.log1p(-(1.0 - mean) * 2.0 * uniform())
    if case.restarts == "none":
        return log
    share = 1.0 if case.restarts == "every" else 0.01 * float(case.restarts[:-1])
    restart = uniform() < share
    restart[:, case.T // 2] = True
    return log.masked_fill(restart, -torch.inf)


def make_operands(case: Case) -> Operands:
    """Make the operands of a case, the same on every call."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    T, K, V = case.T, case.K, case.V
    H, G = (int(heads) for heads in case.heads.split("/"))
    B = 2 if case.layout == "two rows" else 1
    key = make_keys(case.keys, B, T, G, K, generator)
    query = normalize(normal(B, T, H, K) / math.sqrt(K) + key.repeat_interleave(H // G, 2), dim=-1)
    beta = uniform(B, T, G)
    beta = {"random": beta, "zeros and ones": beta.round(), "1": torch.ones_like(beta), "0": 0 * beta}[case.beta]
    if case.ridge == "spread":
        ridge = 10.0 ** (3 * uniform(G, K) - 2)
    else:
        ridge = float(case.ridge) * (0.5 + uniform(G, K))
    bounds = (0, 0, T // 7, T // 2, T) if case.layout.startswith("packed") else None
    state = None
    if case.layout.endswith("state"):
        rows = len(bounds) - 1 if bounds else B
        root = normal(rows, G, K, max(1, K // 2)) / math.sqrt(K)  # of half rank: the ridge decides the rest
        state = single(root @ root.mT), single(normal(rows, G, K, V))
    tokens = (query, key, normal(B, T, G, V), make_forget(case, B, G, generator), beta, ridge)
    return Operands(tuple(single(x) for x in tokens), state, bounds)


def single(x: Tensor) -> Tensor:
    """Round to the numbers of float32, in float64."""
    return x.float().double()


def recorded_operands(name: str, tokens: int, head: slice = slice(None)) -> list[Operands]:
    """Give what mesa layers of a trained model received, the first tokens of some key heads, a call a layer."""
    made = []
    for layer in load_recorded(DATA / f"{name}.safetensors"):
        cut = [layer[x].double()[:, :tokens, head] for x in NAMES[:5]]
        made.append(Operands((*cut, layer["ridge"].double()[head]), None, None))
    return made


def visit_states(operands: Operands) -> Iterator[tuple[Tensor, Tensor]]:
    """Give H_t `[B, G, K, K]` and G_t `[B, G, K, V]` after every token, sequence by sequence, in float64."""
    for piece in operands.sequences():
        _, key, value, log_forget, beta, _ = (x.detach() for x in piece.tokens)
        B, T, G, K = key.shape
        gram, cross = key.new_zeros(B, G, K, K), key.new_zeros(B, G, K, value.shape[-1])
        if piece.state is not None:
            gram, cross = (x.detach() for x in piece.state)
        for t in range(T):
            gamma, written = log_forget[:, t].exp()[..., None, None], (beta[:, t, :, None] * key[:, t]).unsqueeze(-1)
            gram = gamma * gram + written * key[:, t].unsqueeze(-2)
            cross = gamma * cross + written * value[:, t].unsqueeze(-2)
            yield gram, cross


def condition_number(operands: Operands, sampled: int = 50) -> float:
    """Give the largest condition number of H_t + ridge at evenly spaced tokens, the last of each sequence with them."""
    grams = [gram for gram, _ in visit_states(operands)]
    ends = {end - 1 for end in (operands.bounds or (len(grams),)) if end}
    chosen = sorted({*range(0, len(grams), max(1, len(grams) // sampled)), *ends})
    eigenvalues = torch.linalg.eigvalsh(torch.stack([grams[t] for t in chosen]) + torch.diag_embed(operands.tokens[5]))
    return float((eigenvalues[..., -1] / eigenvalues[..., 0]).max())


def attend(
    operands: Operands,
    backend: str,
    dtype: torch.dtype,
    tolerance: float = 1e-4,
    *,
    method: str = "auto",
    scale: float = 1.0,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Return outputs, and the gradients of a fixed random function of them, by name, in float64.

    Outputs are "output" and, where there is an initial state, "last gram" and "last cross"; the gradients bear the
    names of the operands. The oracle (backend "exact") solves packed sequences one at a time. method: how it is
    solved; the shared factor may take all the products that it is defined for. scale multiplies the upstream gradient.
    """
    leaves = [x.to(device, dtype).detach().requires_grad_() for x in (*operands.tokens, *(operands.state or ()))]
    call = Operands(tuple(leaves[:6]), (leaves[6], leaves[7]) if operands.state else None, operands.bounds)
    calls = call.sequences() if backend == "exact" else [call]
    options = {"tolerance": tolerance, "backend": backend, "method": method}
    if method == "shared":
        options["max_steps"] = 1000
    parts = [call_operator(part, **options) for part in calls]
    results = [torch.cat(rows, 1 if i == 0 else 0) for i, rows in enumerate(zip(*parts, strict=True))]
    generator = torch.Generator().manual_seed(5)
    # What comes back through the states should not hide what comes through the output, of size 1 / ridge.
    sizes = (1.0, *[0.1 / (1.0 + float(operands.tokens[5].mean()))] * 2)
    upstream = [
        (scale * single(size * torch.randn(x.shape, generator=generator).double())).to(device, dtype)
        for x, size in zip(results, sizes[: len(results)], strict=True)
    ]
    gradients = torch.autograd.grad(results, leaves, upstream)
    named = zip((*OUTPUTS[: len(results)], *NAMES[: len(leaves)]), (*results, *gradients), strict=True)
    return {name: x.detach().double().cpu() for name, x in named}


def call_operator(call: Operands, **options: object) -> tuple[Tensor, ...]:
    """Return output, and the last states where the call has one to start from."""
    if call.bounds is not None:
        options["cu_seqlens"] = torch.tensor(call.bounds, device=call.tokens[0].device)
    if call.state is None:
        return (mesa_attention(*call.tokens, **options),)
    output, state = mesa_attention(*call.tokens, initial_state=call.state, return_state=True, **options)
    return output, *state


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return |got - wanted| / |wanted|; for a wanted zero 0 if it is met and infinity if not."""
    difference, size = float((got - wanted).norm()), float(wanted.norm())
    if size == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / size if math.isfinite(difference) else math.inf


def check_float32(operands: Operands, device: str) -> None:
    """Compare the kernels at the default tolerance of 1e-4 with the oracle in float64, |a - b| / |b| of whole tensors.

    Output and gradients lean on x, known to 1e-4, the gradients of keys and gates on products of two such solutions.
    """
    exact = attend(operands, "exact", torch.float64)
    got = attend(operands, "triton", torch.float32, device=device)
    for name, wanted in exact.items():
        assert relative_error(got[name], wanted) <= (1e-4 if name in OUTPUTS else 5e-4), name
