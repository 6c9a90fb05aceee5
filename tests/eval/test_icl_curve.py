"""Loss by position, with models whose answers are known."""

from __future__ import annotations

import pytest
import torch

from mesa_eval.measures.icl_curve import (
    position_bins,
    position_measures,
    score_positions,
    score_ranges,
)
from mesa_eval.measures.windows import collect_windows
from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.reading.scoring import Scorer


def documents(lengths: list[int]) -> list[HeldOutDocument]:
    return [
        HeldOutDocument(f"d{number}", "x", "".join(chr(97 + (number + n * n) % 26) for n in range(length)))
        for number, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("window", [8, 64, 100, 511, 512, 1024])
def test_bins_cover_every_position_once(window: int) -> None:
    covered = [position for a, b in position_bins(window) for position in range(a, b + 1)]
    assert covered == list(range(1, window + 1))
    name, early, late = score_ranges(window)
    assert 1 <= early[0] <= early[1] < late[0] <= late[1] <= window
    assert (early, late) == ([45, 55], [490, 510]) or window < 512
    assert ("in-context score" in name) == (window >= 512)


def test_positions_agree_with_a_direct_forward(make, tokenizer) -> None:
    model = make.llama(258, seed=4)
    scorer = Scorer(model, tokenizer, quiet=True)
    (window,) = collect_windows(scorer, documents([50]), 32, 1, 1, seed=0)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([window[1][:-1]])).logits[0].double().log_softmax(-1)
    losses = -logits[torch.arange(32), torch.tensor(window[1][1:])].numpy()
    scores = score_positions(scorer, documents([50]), 32, 1, 1, seed=0)
    assert scores is not None
    measures = {measure.key: measure for measure in position_measures(scores)}
    for first, last in position_bins(32):
        measure = measures[f"position/{first}-{last}" if first < last else f"position/{first}"]
        assert measure.numerator[0][0] == pytest.approx(losses[first - 1 : last].mean(), abs=1e-5)
    assert measures["in_context/32"].numerator[0][0] == pytest.approx(losses[28:].mean() - losses[2:5].mean(), abs=1e-5)
    assert measures["in_context/32"].label == "late-less-early score (29-32 less 3-5)"


def test_too_short_documents_and_windows_are_not_measured(make, tokenizer) -> None:
    scorer = Scorer(make.llama(258, seed=1), tokenizer, quiet=True)
    assert score_positions(scorer, documents([10]), 32, 5, 5, seed=0) is None
    assert score_positions(scorer, documents([99]), 4, 5, 5, seed=0) is None
