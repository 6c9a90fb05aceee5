"""Mesa attention: the public operator, which checks and completes its arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .chunk_states import compute_dtype
from .mesa_backends import choose_backend, run_backend
from .mesa_report import relative_residual
from .mesa_solver import check_solving
from .operator_inputs import (
    Layout,
    check_choice,
    check_state,
    complete_ridge,
    complete_tokens,
    separate,
)
from .operator_records import Operands, Tokens


class MesaState(NamedTuple):
    """The state of a mesa layer: gram `[B, G, K, K]` and cross `[B, G, K, V]`, key index first.

    float32, or float64 for float64 inputs; one row per sequence.
    """

    gram: Tensor
    cross: Tensor


class MesaReport(NamedTuple):
    """How the systems of one call were solved, per batch row, chunk of 64 tokens and query head.

    steps `[B, N, H]` (int32): products with the chunk's matrices for the slowest token, 0 for direct solves. residual
    `[B, N, H]` (float64): the largest |q - (H + ridge) x| / |q|, recomputed from x in float64; converged `[B, N, H]`
    (bool): whether every x is within the tolerance, measured in float64. Both are None with return_report="steps".
    backend: the back end that ran, "exact", "torch" or "triton".
    """

    steps: Tensor
    residual: Tensor | None
    converged: Tensor | None
    backend: str


def mesa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_forget: Tensor | None = None,
    input_gate: Tensor | None = None,
    ridge: float | Tensor = 1.0,
    *,
    initial_state: MesaState | tuple[Tensor, Tensor] | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
    tolerance: float = 1e-4,
    max_steps: int | None = None,
    backend: str = "auto",
    return_report: bool | str = False,
    strict: bool = False,
    method: str = "auto",
) -> Any:
    """Predict each query's value by ridge regression of all values so far on their keys (the gated mesa layer).

        H_t = gamma_t H_{t-1} + beta_t k_t k_t'      G_t = gamma_t G_{t-1} + beta_t k_t v_t'
        o_t = G_t' (H_t + diag(ridge))^-1 q_t

    Token t is included in its own state. There is no scaling by 1 / sqrt(K) and no normalisation of keys and queries.

    query `[B, T, H, K]`, key `[B, T, G, K]`, value `[B, T, G, V]`, all of one dtype (float32, float64, bfloat16,
    float16); G divides H, and query heads h * H / G to (h + 1) * H / G - 1 read key head h. log_forget
    `[B, T, G]` = log gamma <= 0 (None: no forgetting; -inf: restart, with gradient 0 there). input_gate
    `[B, T, G]` = beta in [0, 1] (None: 1). ridge > 0: a number, `[G]` or `[G, K]`.

    initial_state: MesaState (or a pair) of float32 or float64 with one row per sequence; gram must be positive
    semidefinite, and only its symmetric part is used. cu_seqlens `[S + 1]` (int32 or int64): the boundaries of S
    sequences packed into one row (B = 1), which do not see each other; states then have S rows. If such a call takes
    or returns states, it is computed on S rows padded to the longest sequence, and the report has those rows; it has
    to read the lengths, so torch.compile breaks the graph there.

    tolerance: an upper bound on the relative error of the solution (H_t + ridge)^-1 q_t in the 2-norm, guaranteed by
    the theory of each solver (docs/solver.md). "torch" keeps it in float32 down to about 1e-5: it takes gram states in
    float64 where keys repeat so much that the rounding of float32 would matter. The output, the right side of the
    backward pass, returned states and all of "triton", "exact" and single tokens stay in float32: rounding there adds
    up to about 1e-7 times the condition number per step of a state. max_steps: the maximum number of products with a
    chunk's matrices (None: 4 K); a single token's system that needs more is factored. strict: raise an error if the
    tolerance, measured in float64, was not reached; costs as much as the full report. The backward pass solves to the
    same tolerance. Gradients of float16 arguments are float16 and underflow below 6e-8.

    backend: "exact" (one dense solve per token, float32 or better, by autograd), "torch" (in chunks, memory
    O(T), gradients by implicit differentiation; a single token is solved densely), "triton" (the same with the
    GPU kernels of mesa_kernels; inputs of float32 or 16 bits, K and V up to 256; a single token has its own kernel
    or, if gradients are needed, uses "torch"), or "auto": "exact" under torch.func and forward-mode differentiation,
    which "torch" and "triton" do not support, else "triton" on CUDA tensors that it supports, else "torch". Second
    derivatives are always computed by "exact".

    method: how "torch" solves: "shared" (one factorisation for all tokens of a chunk), "chebyshev" (Chebyshev
    iteration), "cg" (conjugate gradients, also the fallback of the first two), or "auto" (the cheapest for each chunk
    and head). "triton" and "exact" use their own methods; any method but "auto" makes the back end "auto" choose
    "torch".

    Returns output `[B, T, H, V]` in query's dtype; then a MesaState if return_state; then a MesaReport if
    return_report, which costs a product or, in hard cases, a solve in float64. return_report="steps" leaves
    residual and converged None and costs nothing: use it to log solver steps during training; it works with
    torch.compile and activation checkpointing.

    Raises ValueError, in one line, for arguments of wrong shape, dtype, device or range. Ranges and NaN are checked
    only on CPU tensors, where that needs no synchronisation, and not while torch traces or transforms. Raises
    ArithmeticError if strict and the tolerance was not reached, and torch.linalg.LinAlgError if a dense solve finds
    H_t + ridge not positive definite, which rounding can cause if the ridge is very small.
    Source: MesaNet, arXiv 2506.05233, section 2; docs/mathematics.md.
    """
    completed, layout = complete_tokens(Tokens(query, key, value, log_forget, input_gate), cu_seqlens)
    ridges = complete_ridge(ridge, layout, query)
    chosen = choose_backend(backend, method, query, layout)
    solving = check_solving(tolerance, max_steps, method, chosen, layout.K)
    check_choice("return_report", return_report, (False, True, "steps"))
    states = return_state or initial_state is not None
    tokens, padding = separate(completed, cu_seqlens, states)
    state = complete_state(initial_state, tokens.query.shape[0], layout, query)

    operands = Operands(*tokens, ridges, *state)
    solved, ran = run_backend(operands, solving)
    results: list[Any] = [solved.output if padding is None else padding.join(solved.output)]
    if return_state:
        results.append(MesaState(solved.gram, solved.cross))
    report = MesaReport(solved.steps, None, None, ran)
    if return_report is True or strict:
        measured = relative_residual(solved.solution.detach(), operands, solving.tolerance)
        if strict and not bool(measured[1].all()):
            raise ArithmeticError(_missed(tolerance, *measured, solved.steps))
        if return_report is True:
            report = MesaReport(solved.steps, *measured, ran)
    if return_report:
        results.append(report)
    return results[0] if len(results) == 1 else tuple(results)


def _missed(tolerance: float, residual: Tensor, converged: Tensor, steps: Tensor) -> str:
    """Return a one-line message on how far the tolerance was missed."""
    return (
        f"tolerance {tolerance:g} was not reached by {int((~converged).sum())} of {converged.numel()} chunks and heads "
        f"(largest relative residual {float(residual.max()):.1e} after at most {int(steps.max())} steps): "
        "raise max_steps or tolerance, or use float64"
    )


def complete_state(initial_state: Any, rows: int, layout: Layout, query: Tensor) -> MesaState:
    """Check the initial state of `rows` sequences; None makes one of zeros."""
    G, K, V = layout.G, layout.K, layout.V
    if initial_state is None:
        dtype = compute_dtype(query.dtype)
        gram = query.new_zeros(rows, G, K, K, dtype=dtype)
        return MesaState(gram, query.new_zeros(rows, G, K, V, dtype=dtype))
    if not isinstance(initial_state, (tuple, list)) or len(initial_state) != 2:
        raise ValueError(
            f"initial_state is a {type(initial_state).__name__}: must be a MesaState (gram, cross) or None"
        )
    gram, cross = initial_state
    check_state("initial_state.gram", gram, (rows, G, K, K), "[B, G, K, K]", query)
    check_state("initial_state.cross", cross, (rows, G, K, V), "[B, G, K, V]", query)
    return MesaState(gram, cross)
