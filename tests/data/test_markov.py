"""Markov languages: one transition matrix a row, another from the switch on."""

from __future__ import annotations

import numpy as np
import pytest

from mesalm.data.synthetic.markov import Markov
from mesalm.data.synthetic.token_task import TokenRows
from mesalm.settings import SettingsError


def test_transitions_have_the_chances_of_the_rows_own_matrix() -> None:
    task = Markov(symbols=4, length=40_000, concentration=0.5, switch=20_000)
    rows = TokenRows(task, "test", 5, 1)
    random = rows.random(0)
    matrices = [random.dirichlet([0.5] * 4, size=4) for _ in range(2)]
    tokens = rows[0]["input_ids"]
    for matrix, part in zip(matrices, (tokens[:20_000], tokens[19_999:]), strict=True):
        counts = np.zeros((4, 4))
        np.add.at(counts, (part[:-1], part[1:]), 1)
        visits = counts.sum(1, keepdims=True)
        often = visits[:, 0] > 200
        assert often.sum() >= 3
        shares, error = counts / np.maximum(visits, 1), np.sqrt(matrix * (1 - matrix) / np.maximum(visits, 1))
        assert (np.abs(shares - matrix) <= 5 * error + 1e-6)[often].all()


def test_the_smallest_concentration_lets_one_symbol_follow() -> None:
    tokens = TokenRows(Markov(symbols=8, length=400, concentration=1e-9, switch=200), "train", 0, 1)[0]["input_ids"]
    for part in (tokens[:200], tokens[200:]):
        pairs = list(zip(part[:-1].tolist(), part[1:].tolist(), strict=True))
        assert len(dict(pairs)) == len(set(pairs))
    assert tokens.max() < 8


def test_a_switch_outside_the_row_is_refused() -> None:
    with pytest.raises(SettingsError, match="switch: must be below the length of 8, not 8"):
        Markov.build({"length": 8, "switch": 8}, "task")
