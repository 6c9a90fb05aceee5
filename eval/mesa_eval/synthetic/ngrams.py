"""In-context n-grams: what counting within one row predicts (baselines of Akyurek et al. 2024, arXiv 2401.12973)."""

from __future__ import annotations

from collections import defaultdict

import numpy as np


def ngram_distributions(tokens: np.ndarray, symbols: int, order: int) -> np.ndarray:
    """Predict each token of a row from those before it by counting; float64 [T, symbols].

    Tokens from ``symbols`` on part the row into strings; a string begins with a context of its own, and no context
    reaches across. The longest context of at most ``order`` - 1 tokens that was followed by a symbol before decides,
    by the shares of what followed it; without any the distribution is uniform, and so it is for order 0.
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
