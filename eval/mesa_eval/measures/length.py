"""Loss by position past the length that a model was trained on.

Windows hold 8 T + 1 tokens of one document, T being the window of the other measures, and are read in one piece (Press,
Smith and Lewis 2022, Train short, test long). Position p is the p-th prediction, as in `icl_curve`. The bins are
T/2 to T, T to 2 T, 2 T to 4 T and 4 T to 8 T. The difference of the last and the first is above 0 if contexts longer
than in training hurt the model, and below 0 if it still gains from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mesa_eval.measures.icl_curve import LEAST_WINDOW, PositionScores, bin_measures, by_document, score_windows
from mesa_eval.measures.scores import Measure
from mesa_eval.measures.windows import collect_windows
from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.reading.reader import Reader

TIMES = 8


class CannotReadError(ValueError):
    """A model or the text has no loss past the window; the message is the reason, in one line."""


def length_bins(window: int) -> list[tuple[int, int]]:
    """Return (first, last) positions of the bins, both ends included."""
    ends = [window // 2, window, 2 * window, 4 * window, TIMES * window]
    return [(before + 1, end) for before, end in pairwise(ends)]


def score_length(
    scorer: Reader, documents: Sequence[HeldOutDocument], window: int, wanted: int, most: int, seed: int
) -> PositionScores:
    """Return the scores of positions T/2 + 1 to 8 T of up to `wanted` long windows, `most` of one document.

    Raises CannotReadError if no document has 8 T + 1 tokens or the model cannot read them, NotFiniteError if it returns
    values that are not finite.
    """
    if window < LEAST_WINDOW:
        raise CannotReadError(f"a window of {window} tokens is too short")
    longest = TIMES * window
    windows = collect_windows(scorer, documents, longest, wanted, most, seed)
    if not windows:
        raise CannotReadError(f"no document has {longest + 1} tokens")
    refused = scorer.refuses(longest)
    if refused:
        raise CannotReadError(refused)
    return score_windows(scorer, windows, length_bins(window)[0][0], "length")


def length_measures(scores: PositionScores) -> list[Measure]:
    """Return the mean loss of each bin, and that of the last bin less that of the first."""
    bins = length_bins(scores.window // TIMES)
    measures = bin_measures("length", scores, bins)
    name = f"loss at {measures[-1].label} less loss at {measures[0].label}"
    growth = scores.mean_losses(*bins[-1]) - scores.mean_losses(*bins[0])
    return [*measures, by_document("length", "length_growth", name, growth, scores.owners)]
