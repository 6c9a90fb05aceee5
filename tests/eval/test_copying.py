"""Copying of random sequences, with models whose answers are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mesa_eval.measures.copying import CopyScores, copy_measures, score_copying
from mesa_eval.reading.scoring import Scorer


class PositionModel(torch.nn.Module):
    """Predict from the position alone: token 2 is likely for `sharp` positions, afterwards every token alike."""

    def __init__(self, sharp: int, vocabulary: int) -> None:
        super().__init__()
        self.sharp = sharp
        self.vocabulary = vocabulary

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        logits[:, : self.sharp, 2] = 8.0
        return SimpleNamespace(logits=logits)


def score(scores: CopyScores | None) -> list[float]:
    assert scores is not None
    (found,) = [measure for measure in copy_measures(scores) if measure.key == "copy_score"]
    return [value for (value,) in found.numerator]


@pytest.mark.parametrize(("window", "length"), [(64, 32), (256, 64), (37, 18)])
def test_an_oracle_copies_everything(make, tokenizer, window: int, length: int) -> None:
    scorer = Scorer(make.copier(length, 258), tokenizer, quiet=True)
    scores = score_copying(scorer, window, 6, seed=3)
    assert scores is not None
    assert scores.length == length
    assert scores.accuracy == [1.0] * 6
    np.testing.assert_allclose(scores.repeated, 0, atol=1e-6)
    # in the control it is as sure of the wrong token, but for a chance coincidence of the two sequences
    assert min(score(scores)) > 50


@pytest.mark.parametrize("sharp", [10, 64, 65, 90, 500])
def test_what_depends_on_the_position_alone_is_no_copying(make, tokenizer, sharp: int) -> None:
    scorer = Scorer(PositionModel(sharp, 258), tokenizer, quiet=True)
    np.testing.assert_allclose(score(score_copying(scorer, 256, 8, seed=0)), 0, atol=1e-6)


def test_what_depends_on_the_last_token_alone_is_no_copying(make, tokenizer) -> None:
    table = 3 * torch.randn(258, 258, generator=torch.Generator().manual_seed(0))
    scores = score_copying(Scorer(make.table(table), tokenizer, quiet=True), 256, 8, seed=0)
    # all but the first of the 64 tokens have the same token before them
    values = table.log_softmax(-1)
    assert np.abs(score(scores)).max() <= (values.max() - values.min()).item() / 64


def test_scores_agree_with_a_direct_forward(make, tokenizer) -> None:
    model = make.llama(258, seed=4)
    seen: list[list[int]] = []
    scorer = Scorer(model, tokenizer, quiet=True)
    plain = scorer.token_scores
    scorer.token_scores = lambda rows, *rest, **named: seen.extend(rows) or plain(rows, *rest, **named)
    scores = score_copying(scorer, 64, 3, seed=0)
    assert scores is not None
    assert len(seen) == 6
    for place in range(3):
        repeat, control = seen[place], seen[3 + place]
        assert repeat[1 : 1 + scores.length] == repeat[-scores.length :] == control[-scores.length :]
        assert control[1 : 1 + scores.length] != repeat[1 : 1 + scores.length]
        for row, found in ((repeat, scores.repeated[place]), (control, scores.fresh[place])):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1)
            losses = [-logits[at - 1, row[at]].item() for at in range(len(row) - scores.length, len(row))]
            assert found == pytest.approx(np.mean(losses), abs=1e-5)


def test_a_uniform_model_gains_nothing_from_a_repeat(make, tokenizer) -> None:
    scorer = Scorer(make.table(torch.zeros(258, 258)), tokenizer, quiet=True)
    scores = score_copying(scorer, 128, 40, seed=0)
    np.testing.assert_allclose(score(scores), 0, atol=1e-6)
    np.testing.assert_allclose(scores.fresh, math.log(258), rtol=1e-5)
    assert scores.chance == 1 / 256
    assert np.mean(scores.accuracy) < 0.02


def test_too_small_a_window_is_not_measured(make, tokenizer) -> None:
    assert score_copying(Scorer(make.llama(258, seed=1), tokenizer, quiet=True), 4, 5, seed=0) is None
