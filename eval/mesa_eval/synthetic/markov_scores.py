"""Scores on Markov languages: nats by position, compared with predictors that count within the row.

Four predictors see only the row; n are the counts of the symbols that have followed the current one so far:

- unigram: the smoothed shares of all symbols so far;
- counts: softmax(a n), which a linear readout of linear attention with one-hot keys can express;
- ridge: softmax(a n / (sum n + ridge)), the same for ridge regression on one-hot symbols;
- Bayes: (n + concentration) / (sum n + symbols * concentration), the optimum, which knows where the switch is.

The free parameters are fitted on the valid rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from mesa_eval.synthetic.row_scores import RowScores, SyntheticScores
from mesalm.data.synthetic.markov import Markov
from mesalm.data.synthetic.token_task import TokenRows

BINS = 32
"""Number of parts of a row, as equal as possible, over which nats are averaged."""

Predictor = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function(parameters, counts, counts of all symbols) -> logits; all but the parameters [..., symbols], float64."""

PREDICTORS: dict[str, tuple[Predictor, list[float]]] = {
    "unigram": (lambda free, counts, seen: (seen + free[0]).log(), [0.5]),
    "counts": (lambda free, counts, seen: free[0] * counts, [0.5]),
    "ridge": (lambda free, counts, seen: free[0] * counts / (counts.sum(-1, keepdim=True) + free[1]), [6.0, 1.0]),
}
"""Name -> predictor and the initial values of its parameters, all of which stay positive."""


def markov_scores(task: Markov, data: TokenRows, logits_of_rows: Iterable[np.ndarray]) -> SyntheticScores:
    """Score the logits [T, V] of each row by the nats of the next symbol."""
    rows = [
        _nats(torch.from_numpy(logits[1:]).double(), torch.from_numpy(data[index]["labels"][1:]).long())
        for index, logits in enumerate(logits_of_rows)
    ]
    return _by_position(torch.stack(rows))


def markov_guesses(task: Markov, rows: int, *, seed: int) -> dict[str, SyntheticScores]:
    """Score the four predictors on the test rows."""
    valid, test = (TokenRows(task, split, seed, rows, keep=False) for split in ("valid", "test"))
    known, (follow, seen, coming) = counted(valid), counted(test)
    found = {}
    for name, (predict, start) in PREDICTORS.items():
        found[name] = _nats(predict(_fitted(predict, start, known), follow, seen), coming)
    known_switch, *_ = counted(test, task.switch)
    found["Bayes"] = _nats((known_switch + task.concentration).log(), coming)
    return {name: _by_position(nats) for name, nats in found.items()}


def _fitted(predict: Predictor, start: list[float], known: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Fit a predictor's parameters to minimize the mean nats, by L-BFGS on their logarithms."""
    follow, seen, following = known
    logs = torch.tensor(start, dtype=torch.float64).log().requires_grad_()
    search = torch.optim.LBFGS([logs], max_iter=30, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        search.zero_grad()
        found = _nats(predict(logs.exp(), follow, seen), following).mean()
        found.backward()
        return found

    search.step(cost)  # type: ignore[no-untyped-call, arg-type, unused-ignore]
    return logs.detach().exp()


def counted(rows: TokenRows, restart: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return counts of successors of the current symbol and of all symbols, [rows, T - 1, V], and the next symbol.

    The successor counts restart at position ``restart``.
    """
    tokens = torch.stack([torch.from_numpy(rows[index]["input_ids"]).long() for index in range(len(rows))])
    now, after = tokens[:, :-1], tokens[:, 1:]
    ones = torch.nn.functional.one_hot(tokens).double()
    same = (now.unsqueeze(2) == now.unsqueeze(1)).double().tril(-1)
    place = torch.arange(1, tokens.shape[1])
    same *= (place.unsqueeze(1) < restart) | (place.unsqueeze(0) >= restart)
    return same @ ones[:, 1:], ones[:, :-1].cumsum(1), after


def _nats(logits: Tensor, following: Tensor) -> Tensor:
    return -logits.log_softmax(-1).gather(-1, following.unsqueeze(-1)).squeeze(-1)


def _by_position(nats: Tensor) -> SyntheticScores:
    """Average nats [rows, T - 1] over parts of the row; each part is labelled by its last position, from 1."""
    parts = nats.tensor_split(min(BINS, nats.shape[1]), dim=1)
    numerator = torch.stack([part.sum(1) for part in parts], dim=1)
    lengths = [part.shape[1] for part in parts]
    places = [1 + int(last) for last in np.cumsum(lengths)]
    kept = [[float(f"{value:.7g}") for value in row] for row in numerator.tolist()]
    return SyntheticScores(
        [RowScores("nats", "nats per symbol", "lower", kept, [[float(each) for each in lengths]] * len(kept), places)]
    )
