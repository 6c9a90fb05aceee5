"""Nats on Markov languages, and the predictors that count: beside ridge regression, and counting by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from mesa_eval.synthetic.markov_scores import PREDICTORS, counted, markov_guesses
from mesa_eval.synthetic.scores import score_logits
from mesalm.data.synthetic.markov import Markov
from mesalm.data.synthetic.token_task import TokenRows
from mesalm.least_squares import ridge_predictions

TASK = Markov(symbols=6, length=40, concentration=0.2, switch=20)
ROWS = TokenRows(TASK, "test", 3, 16, keep=False)


def test_ridge_regression_on_one_hot_symbols_is_counting() -> None:
    follow, seen, _ = counted(ROWS)
    tokens = torch.stack([torch.from_numpy(ROWS[index]["input_ids"]) for index in range(16)])
    symbols = torch.nn.functional.one_hot(tokens, 6).double()
    regression = ridge_predictions(symbols[:, :-1], symbols[:, 1:], symbols[:, :-1], 0.7, lag=1)
    predict, _ = PREDICTORS["ridge"]
    torch.testing.assert_close(predict(torch.tensor([1.0, 0.7]), follow, seen), regression)


def test_bayes_counts_again_from_the_switch_on_and_nothing_beats_it() -> None:
    guesses = markov_guesses(TASK, 16, seed=3)
    (measure,) = guesses["Bayes"].measures
    for index in (0, 7):
        tokens, counts, nats = ROWS[index]["input_ids"].tolist(), Counter(), []
        for place in range(1, 40):
            counts = Counter() if place == TASK.switch else counts
            now, after = tokens[place - 1], tokens[place]
            followed = sum(number for (first, _), number in counts.items() if first == now)
            nats.append(-np.log((counts[now, after] + 0.2) / (followed + 6 * 0.2)))
            counts[now, after] += 1
        parts = [sum(part) for part in np.array_split(nats, len(measure.places))]
        np.testing.assert_allclose(measure.numerator[index], parts, rtol=1e-6)
    assert measure.places[-1] == 40
    assert all(each.value > guesses["Bayes"].value for name, each in guesses.items() if name != "Bayes")


def test_even_logits_cost_the_logarithm_of_the_symbols() -> None:
    scores = score_logits(TASK, ROWS, (np.zeros((40, 6), np.float32) for _ in range(16)))
    np.testing.assert_allclose(scores.measures[0].columns, np.log(6), rtol=1e-6)
