"""Gated linear attention and the gated delta rule, the operators with one matrix state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .chunk_states import CHUNK, compute_dtype
from .delta_chunked import DELTA
from .linear_chunked import LINEAR, LinearOperands, Recurrence
from .operator_inputs import check_choice, check_state, complete_tokens, exact_for_transforms, separate
from .operator_records import Tokens

BACKENDS = ("auto", "exact", "torch")


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_forget: Tensor | None = None,
    input_gate: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> Any:
    """Apply a decaying sum of key-value products to each query (gated linear attention).

        G_t = gamma_t G_{t-1} + beta_t k_t v_t'      o_t = G_t' q_t

    Token t is included in its own state. There is no scaling by 1 / sqrt(K).

    query `[B, T, H, K]`, key `[B, T, G, K]`, value `[B, T, G, V]`, all of one dtype; G divides H. log_forget
    `[B, T, G]` = log gamma <= 0 (None: no forgetting; -inf: restart, with gradient 0 there). input_gate
    `[B, T, G]` = beta in [0, 1] (None: 1). initial_state `[B, G, K, V]`, key index first, float32 or float64,
    one row per sequence. cu_seqlens `[S + 1]` (int32 or int64): the boundaries of S sequences packed into one
    row (B = 1), which do not see each other.

    backend: "exact" (the recurrence token by token, by autograd), "torch" (in chunks, memory O(T), custom
    backward; for a single token one step of the recurrence), or "auto": "exact" under torch.func and forward-mode
    differentiation, which "torch" does not support, else "torch", except that sequences of one chunk without gates
    and states use a direct product over all pairs of tokens. Second derivatives are always computed by "exact".

    Returns output `[B, T, H, V]` in query's dtype; then the state `[B, G, K, V]`, float32 or better, if
    return_state. Raises ValueError like `mesa_attention`. Source: Katharopoulos et al. 2020 (arXiv
    2006.16236), with the gates of MesaNet (arXiv 2506.05233).
    """
    tokens = Tokens(query, key, value, log_forget, input_gate)
    return _attend(LINEAR, tokens, initial_state, return_state, cu_seqlens, backend)


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_forget: Tensor | None = None,
    input_gate: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> Any:
    """Apply a decaying memory, which each token corrects, to each query (the gated delta rule).

        G_t = gamma_t (I - beta_t k_t k_t') G_{t-1} + beta_t k_t v_t'      o_t = G_t' q_t

    Arguments, results and errors are those of `linear_attention`. The state stays bounded if keys have norm at most 1,
    which is not checked. Source: Yang et al. 2024 (arXiv 2412.06464), equation 10; ungated: arXiv 2102.11174.
    """
    tokens = Tokens(query, key, value, log_forget, input_gate)
    return _attend(DELTA, tokens, initial_state, return_state, cu_seqlens, backend)


def _attend(
    recurrence: Recurrence,
    tokens: Tokens,
    initial_state: Tensor | None,
    return_state: bool,
    cu_seqlens: Tensor | None,
    backend: str,
) -> Any:
    completed, layout = complete_tokens(tokens, cu_seqlens)
    check_choice("backend", backend, BACKENDS)
    backend = exact_for_transforms(backend)
    states = return_state or initial_state is not None
    separated, padding = separate(completed, cu_seqlens, states)
    query, (B, T) = tokens.query, separated.query.shape[:2]
    bare = tokens.log_forget is None and tokens.input_gate is None and cu_seqlens is None and not states
    if recurrence.ungated is not None and bare and backend == "auto" and B and 1 < T <= CHUNK:
        return recurrence.ungated(*tokens[:3])
    shape = (B, layout.G, layout.K, layout.V)
    state = initial_state
    if state is None:
        state = query.new_zeros(shape, dtype=compute_dtype(query.dtype))
    check_state("initial_state", state, shape, "[B, G, K, V]", query)

    operands = LinearOperands(*separated, state)
    if backend == "exact" or T <= 1 or B == 0:
        output, last = recurrence.exact(*operands)
    else:
        output, last = recurrence.forward(*operands)
    if padding is not None:
        output = padding.join(output)
    return (output, last) if return_state else output
