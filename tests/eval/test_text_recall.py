"""Targets that the window could predict, and what is rare in training."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from mesa_eval.measures import text_recall
from mesa_eval.measures.icl_curve import PositionScores
from mesa_eval.measures.text_recall import count_pairs, rare_in_training, recall_measures, repeated


def test_a_pair_is_repeated_from_its_second_time_on() -> None:
    windows = np.array([[1, 2, 3, 1, 2, 3, 2], [5, 5, 5, 5, 6, 5, 6]])
    expected = [[False, False, False, True, True, False], [False, True, True, False, False, True]]
    assert repeated(windows).tolist() == expected


def test_pairs_are_counted_in_the_training_rows() -> None:
    training = Dataset.from_dict({"input_ids": [[1, 2, 3, 4], [2, 3, 9, 9], [1, 2, 3, 1]]})
    windows = np.array([[1, 2, 3, 7], [9, 9, 2, 1]])
    counts, looked = count_pairs(training, text_recall.pair_codes(windows), rows_at_once=2)
    assert counts.tolist() == [[2, 3, 0], [1, 0, 0]]
    assert looked == 12
    assert rare_in_training(windows, training).tolist() == [[False, False, True], [False, True, True]]


def test_loss_and_accuracy_by_hand() -> None:
    tokens = np.array([[1, 2, 1, 2, 3], [4, 5, 4, 5, 4]])
    losses = np.array([[1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 3.0, 5.0]])
    hits = losses < 4.5
    rare = np.array([[False, False, False, True], [True, True, False, True]])
    scores = PositionScores(4, ("a", "b"), tokens, losses, hits)
    measures = {measure.key: measure for measure in recall_measures(scores, rare)}
    # repeated: the third target of both windows and the fourth of the second
    again = measures["recall/repeated"]
    assert again.units == ["a", "b"]
    assert np.sum(again.numerator) / np.sum(again.denominator) == pytest.approx((4 + 3 + 5) / 3)
    assert np.sum(measures["recall/repeated/accuracy"].numerator) == 2
    assert again.label == "pair seen earlier in the window (37.5 % of tokens)"
    assert measures["recall/repeated_rare"].numerator == [[0.0], [5.0]]
    assert measures["recall/new_rare"].denominator == [[1.0], [2.0]]
    assert set(measures) == {
        f"recall/{key}{end}" for key in ("repeated", "new", "repeated_rare", "new_rare") for end in ("", "/accuracy")
    }
    assert not any("rare" in measure.key for measure in recall_measures(scores, None))
