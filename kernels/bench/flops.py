"""Count the floating-point operations that a variant needs, a multiplication and an addition as two.

Counted are the matrix products and factorisations of the method itself, as docs/mathematics.md states them, over the
tokens that there are: not elementwise work, not the padding of the last chunk, and not steps that a batch goes through
for the sake of its slowest row. So a share of peak says how much of the machine does work that the method asks for.

Everything is by token and head, K and V key and value size, C tokens in a chunk: 64, as the kernels and the recipe of
the peer have it. The torch back end takes 32 for keys of up to 32 dimensions, and does less than is counted here.
"""

from __future__ import annotations

from mesalm.model.chunk_states import CHUNK as C

GATES = 2.0 * C * C + 4.0 * C
"""The gradient of the gates: one triangular product of the pairs in a chunk, two of their sums."""


def matrix_vector(K: int) -> float:
    """Count one product with H_t, the unit of the solvers: with the chunk's start state and twice with its keys."""
    return 2.0 * (K * K + 2 * C * K)


def shared_factor(K: int) -> float:
    """Count the factorisation that the tokens of a chunk share: 1.2 matrix-vector products at K = C = 64.

    Inverse of the start matrix 2 K^3; its product with the C keys 2 C K^2; their inner products 2 C^2 K; a Cholesky
    factor C^3 / 3; one triangular solve C^2 K. All of it once a chunk and head.
    """
    return (2.0 * K**3 + 2.0 * C * K**2 + 2.0 * C**2 * K + C**3 / 3.0 + 1.0 * C**2 * K) / C


def mesa_fixed(K: int, V: int, backward: bool) -> float:
    """Count what mesa attention needs besides its solves, in the forward pass or in the backward pass."""
    states = 2.0 * K * (K + V)
    read = 2.0 * (C * K + K * V + C * V)
    if not backward:
        return states + read
    # states again; the adjoint's right-hand side (a read-out); the states' gradients; then, of the tokens:
    # x k', d v' - y k', G d - H y, and from these three products of C for keys and values each
    local = 2.0 * K * (K + V)
    pairs = 2.0 * (2 * C * K + C * V) + 2.0 * K * (K + V)
    tails = 2.0 * (2 * K * V + K * K)
    tokens = 2.0 * (C * V + 2 * C * K)
    return states + read + local + pairs + tails + tokens + GATES


def linear(K: int, V: int, backward: bool) -> float:
    """Count gated linear attention: mesa attention without gram and without solve."""
    states = 2.0 * K * V
    read = 2.0 * (C * K + K * V + C * V)
    if not backward:
        return states + read
    pairs = 2.0 * (C * K + C * V + K * V)
    return states + read + 2.0 * K * V + pairs + 4.0 * K * V + 2.0 * (C * V + C * K) + GATES


def softmax(K: int, V: int, T: int, backward: bool) -> float:
    """Count causal softmax attention: scores and read-out of the (T + 1) / 2 tokens that a token sees on average.

    The backward pass makes five such products, the scores a second time among them.
    """
    seen = 0.5 * (T + 1)
    if not backward:
        return 2.0 * seen * (K + V)
    return 2.0 * seen * (3 * K + 2 * V)


def mesa(K: int, V: int, steps: float, factored: float, backward: bool) -> float:
    """Count one pass of mesa attention with `steps` products a solve, on average over chunks and heads.

    factored: the share of chunks and heads that use the shared factor, which the backward pass takes over. That pass
    solves once more, to the same tolerance; its steps are not reported and taken to be those of the forward pass.
    """
    factor = 0.0 if backward else factored * shared_factor(K)
    return mesa_fixed(K, V, backward) + steps * matrix_vector(K) + factor
