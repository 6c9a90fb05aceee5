"""Gated KalmaNet's attention: ridge regression with a ridge proportional to the state's norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .chunk_states import cache_blocks, compute_dtype, from_chunks, repeat_rows, to_chunks, without_autocast
from .linear_chunked import LINEAR, LinearOperands, cut
from .mesa_chebyshev import BoundedSystems
from .mesa_problems import problem_length
from .mesa_shared import coefficients, sum_series
from .operator_inputs import check_mix, complete_tokens
from .operator_linear import linear_attention
from .operator_mesa import MesaState, complete_state
from .operator_records import Tokens, register
from .operator_transforms import gradient_is_differentiated, pull_back, transforms_active

RATIO, STEPS = 0.02, 30
"""The paper's ratio of ridge to norm of H, and its number of steps."""


def kalman_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_forget: Tensor | None = None,
    input_gate: Tensor | None = None,
    mix: Tensor | None = None,
    *,
    ratio: float = RATIO,
    steps: int = STEPS,
    initial_state: MesaState | tuple[Tensor, Tensor] | None = None,
    return_state: bool = False,
) -> Any:
    """Apply ridge regression with a ridge proportional to the state's norm, mixed with the query (gated KalmaNet).

        x_t = (H_t + ratio |H_t| I)^-1 q_t      o_t = G_t' (q_t + mix_t (x_t - q_t))

    H and G are the states of `mesa_attention`, and the other arguments are as there. |H| is the Frobenius norm, so no
    system has a condition number above 1 + 1 / ratio. The squared rounding unit of the dtype is added to |H|^2: so an
    empty state has a solution, and the output of states smaller than that unit goes to zero with them. mix `[B, T, H]`
    in [0, 1] (None: 1). ratio: a number above 0.

    steps: the fixed number of Chebyshev steps of the solve. Derivatives are those of the exact solution: the backward
    pass solves its adjoint system with as many steps, torch.func and forward mode solve one dense system per token.

    Returns output `[B, T, H, V]` in query's dtype; then the `MesaState` if return_state. Raises ValueError like
    `mesa_attention`. Source: Peng et al. 2025 (arXiv 2511.21016).
    """
    tokens, layout = complete_tokens(Tokens(query, key, value, log_forget, input_gate), None)
    if mix is not None:
        check_mix(mix, layout, query)
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0.0 < ratio < math.inf:
        raise ValueError(f"ratio is {ratio!r}: must be a finite number above 0")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}: must be a whole number of at least 1")
    dtype = compute_dtype(query.dtype)
    gram, cross = complete_state(initial_state, layout.B, layout, query)
    with without_autocast(query.device):
        gram = 0.5 * (gram + gram.mT).to(dtype)
        q, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
        gates = (tokens.log_forget.to(dtype), tokens.input_gate.to(dtype))
        along, last_gram = linear_attention(k, k, k, *gates, initial_state=gram, return_state=True)
        # |H_t|^2 = gamma_t^2 |H_{t-1}|^2 + beta_t (2 k_t' H_t k_t - beta_t |k_t|^4), linear attention with K = V = 1
        gained = 2.0 * (along * k).sum(-1) - gates[1] * k.square().sum(-1).square()
        # in float64, whose decay is not cut off at the root of what H keeps
        start, gained, *twice = (x.double() for x in (gram.square().sum((-2, -1)), gained, 2.0 * gates[0], gates[1]))
        one = torch.ones_like(gained.unsqueeze(-1))
        square = linear_attention(one, one, gained.unsqueeze(-1), *twice, initial_state=start[..., None, None])
        norm = (square.clamp(min=0.0) + torch.finfo(dtype).eps ** 2).sqrt().to(dtype)
        system, solved = System(q, norm, k, *gates, gram), q  # q is already right if there are no tokens
        if q.numel():
            solved = (solve_exact if transforms_active() else _solve_op)(*system, float(ratio), steps)
        read = solved if mix is None else q + mix.to(dtype).unsqueeze(-1) * (solved - q)
        output, last_cross = linear_attention(read, k, v, *gates, initial_state=cross, return_state=True)
    output = output.to(query.dtype)
    return (output, MesaState(last_gram, last_cross)) if return_state else output


class System(NamedTuple):
    """The tensors of one solve, (H_t + ratio norm_t) x_t = right_t, or their gradients.

    right `[B, T, H, K]`, norm `[B, T, G, 1]` (at least the Frobenius norm of H_t), key `[B, T, G, K]`, gates
    `[B, T, G]`, initial state gram `[B, G, K, K]`, all of one dtype.
    """

    right: Tensor
    norm: Tensor
    key: Tensor
    log_forget: Tensor
    input_gate: Tensor
    gram: Tensor


def solve(system: System, ratio: float, steps: int) -> Tensor:
    """Return the solutions `[B, T, H, K]`, by Chebyshev steps on [ratio norm_t, (1 + ratio) norm_t].

    With both sides divided by ratio norm_t, this is the series of `mesa_chebyshev` with a norm for each token and one
    kappa, 1 + 1 / ratio, for all; after n steps it has n + 1 terms.
    """
    right, norm, key = system[:3]
    (B, T, G, _), dtype, chunk = key.shape, right.dtype, problem_length(key.shape[-1])
    keys, _, gate, decay, starts, _ = cut(LinearOperands(right, key, key, *system[3:]), dtype, chunk)
    scale = to_chunks(norm, G, dtype, chunk).clamp_(min=torch.finfo(dtype).eps)  # tokens past T have zeros
    wanted, factor = to_chunks(right, G, dtype, chunk), -4.0 / scale
    M, C, terms = wanted.shape[1], keys.shape[1], steps + 1
    wanted.div_(ratio * repeat_rows(scale, M))
    start, mask = repeat_rows(decay.start * factor, M), decay.mask.mul_(factor)
    whole = BoundedSystems(starts, keys.mT.contiguous(), keys * gate, mask, start)
    least = torch.full((1, 1), -math.log1p(1.0 / ratio), dtype=torch.float64)
    e = coefficients(least, torch.tensor([terms]), dtype).mul_(2.0).to(key.device)
    solved = torch.empty_like(wanted)
    for block in cache_blocks(wanted):
        rows = wanted[block]
        solved[block] = sum_series(whole.take(block), rows, e, [terms] * len(rows), rows.new_empty(len(rows), M, C))
    return from_chunks(solved, B, T, G, dtype, chunk)


def _iterate(multiply: Callable[[Tensor], Tensor], wanted: Tensor, scale: Tensor, ratio: float, steps: int) -> Tensor:
    """Take Chebyshev steps towards (H + ratio scale) x = wanted; `multiply` gives H x."""
    step, width = 1.0 / ((ratio + 0.5) * scale), 1.0 / (2.0 * ratio + 1.0)
    x, before, omega = step * wanted, torch.zeros_like(wanted), 2.0
    for _ in range(steps):
        omega = 4.0 / (4.0 - width**2 * omega)
        residual = wanted - multiply(x) - ratio * scale * x
        x, before = x + omega * step * residual + (omega - 1.0) * (x - before), x
    return x


def solve_exact(
    right: Tensor,
    norm: Tensor,
    key: Tensor,
    log_forget: Tensor,
    input_gate: Tensor,
    gram: Tensor,
    ratio: float,
    steps: int,
) -> Tensor:
    """Return the same as `solve`, with the derivatives of the exact solution and for every function transform.

    Stores a matrix `[K, K]` per token and key head.
    """
    G, K = key.shape[2:]
    grams = []
    for k, gamma, beta in zip(key.unbind(1), log_forget.exp().unbind(1), input_gate.unbind(1), strict=True):
        gram = gamma[..., None, None] * gram + (beta[..., None] * k).unsqueeze(-1) * k.unsqueeze(-2)
        grams.append(gram)
    matrix = torch.stack(grams, 1).unsqueeze(3)
    wanted, scale = right.unflatten(2, (G, -1)).unsqueeze(-1), norm[..., None, None]
    exact = torch.linalg.solve(matrix + ratio * scale * torch.eye(K, dtype=right.dtype, device=right.device), wanted)
    x = exact + (_iterate(lambda x: matrix @ x, wanted, scale, ratio, steps) - exact).detach()
    return x.squeeze(-1).flatten(2, 3)


def _shapes(system: System, ratio: float, steps: int) -> Tensor:
    return system.right.new_empty(system.right.shape)


_solve_op = register("kalman_solve", solve, _shapes)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6], output)
    ctx.settings = inputs[6:]


def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the exact solution: y_t solves the adjoint system, and the matrix's gradient is -y_t x_t'."""
    *operands, solution = ctx.saved_tensors
    with without_autocast(upstream.device):  # a caller may run the backward pass under autocast
        if gradient_is_differentiated():
            return *pull_back(lambda *x: (solve_exact(*x, *ctx.settings),), [upstream], operands), None, None
        _, norm, key, log_forget, input_gate, gram = operands
        adjoint = _solve_op(upstream, norm, key, log_forget, input_gate, gram, *ctx.settings)
        product = LinearOperands(solution, key, key, log_forget, input_gate, gram)
        through = LinearOperands(*LINEAR.backward(-adjoint, torch.zeros_like(gram), *product))
        in_group = (adjoint * solution).sum(-1).reshape(*norm.shape[:3], adjoint.shape[2] // norm.shape[2])
        d_norm = -ctx.settings[0] * in_group.sum(-1, keepdim=True)
        return adjoint, d_norm, through.key + through.value, *through[3:], None, None


_solve_op.register_autograd(_differentiate, setup_context=_save)
