"""In-context n-grams: predictions from counts within one row (baselines of Akyurek et al. 2024, arXiv 2401.12973)."""

from __future__ import annotations

from collections import defaultdict

import numpy as np


def ngram_distributions(tokens: np.ndarray, symbols: int, order: int) -> np.ndarray:
    """Predict each token of a row from counts of the tokens before it; float64 [T, symbols].

    Token ids from ``symbols`` up separate the row into strings; the start of a string is a context too, and no context
    spans two strings. The prediction is the distribution of past successors of the longest context of at most
    ``order`` - 1 tokens that has any. It is uniform if no context has any, and for order 0.
    """
    counts: dict[tuple[int, ...], np.ndarray] = defaultdict(lambda: np.zeros(symbols))
    chances = np.full((len(tokens), symbols), 1 / symbols)
    begin = -1
    history: tuple[int, ...] = (begin,)
    for place, token in enumerate(tokens.tolist()):
        contexts = [history[len(history) - size :] for size in range(min(order, len(history) + 1))]
        for context in reversed(contexts):
            if context in counts:
                chances[place] = counts[context] / counts[context].sum()
                break
        if token >= symbols:
            history = (begin,)
            continue
        for context in contexts:
            counts[context][token] += 1
        history = (*history, token)[-max(order, 1) :]
    return chances
