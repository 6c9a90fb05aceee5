"""Loss by position in the context, and the in-context score.

Position p is the p-th prediction of a window: it has p tokens before it (including the document's start
token). Windows contain T + 1 tokens of one document and are never packed. Bins are 1, 2, 3-4, 5-8 ... up to T.

In-context score (Olsson et al. 2022, In-context learning and induction heads): mean loss at positions 490 to
510 minus the mean at 45 to 55, which needs T >= 512. Shorter windows get an analogue under another name:
the last eighth of the window minus the positions within T/32 of T/8. For both, lower is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mesa_eval.measures.scores import Measure
from mesa_eval.measures.windows import collect_windows
from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.reading.reader import Reader
from mesa_eval.uncertainty.bootstrap import group_sums

SCORE_NAME = "in-context score (490-510 less 45-55)"
SHORT_SCORE_NAME = "late-less-early score"
LEAST_WINDOW = 8  # tokens


@dataclass(frozen=True)
class PositionScores:
    """Windows and their scores.

    For each window: its document and tokens [N, window + 1]. For each position from `first` on: its nats, `losses`, and
    whether the token was the most likely one, `hits`, both [N, window + 1 - first].
    """

    window: int
    owners: tuple[str, ...]
    tokens: np.ndarray
    losses: np.ndarray
    hits: np.ndarray
    first: int = 1

    def mean_losses(self, first: int, last: int) -> np.ndarray:
        """Return the mean loss of each window at positions `first` to `last` inclusive, [N]."""
        return self.losses[:, first - self.first : last - self.first + 1].mean(1)


def position_bins(window: int) -> list[list[int]]:
    """Return the inclusive (first, last) positions of the bins 1, 2, 3-4, 5-8 ... up to `window`."""
    bins = [[1, 1]]
    while bins[-1][1] < window:
        last = bins[-1][1]
        bins.append([last + 1, min(2 * last, window)])
    return bins


def score_ranges(window: int) -> tuple[str, list[int], list[int]]:
    """Return the name and the inclusive early and late positions of the in-context score for a window."""
    if window >= 512:
        return SCORE_NAME, [45, 55], [490, 510]
    eighth, spread = window // 8, window // 32
    early = [max(1, eighth - spread), max(1, eighth + spread)]
    late = [window - eighth + 1, window]
    return f"{SHORT_SCORE_NAME} ({late[0]}-{late[1]} less {early[0]}-{early[1]})", early, late


def score_positions(
    scorer: Reader, documents: Sequence[HeldOutDocument], window: int, wanted: int, most: int, seed: int
) -> PositionScores | None:
    """Return loss by position over up to `wanted` windows, at most `most` per document; None if there is no window.

    See `collect_windows`.
    """
    if window < LEAST_WINDOW:
        return None
    windows = collect_windows(scorer, documents, window, wanted, most, seed)
    return score_windows(scorer, windows, 1, "positions") if windows else None


def score_windows(scorer: Reader, windows: Sequence[tuple[str, list[int]]], first: int, what: str) -> PositionScores:
    """Return the scores of equally long (document, tokens) windows from position `first` on."""
    rows = [tokens for _, tokens in windows]
    scored = scorer.token_scores(rows, [first] * len(rows), what)
    return PositionScores(
        window=len(rows[0]) - 1,
        owners=tuple(owner for owner, _ in windows),
        tokens=np.array(rows),
        losses=-np.stack([one.nats for one in scored]),
        hits=np.stack([one.hits for one in scored]),
        first=first,
    )


def position_measures(scores: PositionScores) -> list[Measure]:
    """Return the mean loss of each bin of positions, and the in-context score."""
    name, early, late = score_ranges(scores.window)
    values = scores.mean_losses(*late) - scores.mean_losses(*early)
    ends = None if scores.window >= 512 else scores.window  # the analogue is a different statistic for each length
    bins = bin_measures("position", scores, position_bins(scores.window))
    return [*bins, by_document("context", "in_context", name, values, scores.owners, last=ends)]


def bin_measures(section: str, scores: PositionScores, bins: Sequence[Sequence[int]]) -> list[Measure]:
    """Return the mean loss of each inclusive bin (first, last) of positions."""
    return [
        by_document(
            section,
            "loss",
            str(first) if first == last else f"{first}-{last}",
            scores.mean_losses(first, last),
            scores.owners,
            first=first,
            last=last,
        )
        for first, last in bins
    ]


def by_document(
    section: str,
    metric: str,
    label: str,
    values: np.ndarray,
    owners: Sequence[str],
    *,
    counts: np.ndarray | None = None,
    group: str = "",
    first: int | None = None,
    last: int | None = None,
) -> Measure:
    """Make a measure from one value per window; all windows of a document form one unit.

    values [N]: nats, or hits for an accuracy; counts [N]: tokens that each value sums over (None: one token each).
    first, last: an inclusive bin of positions, plotted at their geometric mean.
    """
    counts = np.ones(len(values)) if counts is None else counts
    sums, names = group_sums(np.stack([values, counts], axis=1), owners)
    accuracy = metric == "accuracy"
    return Measure(
        section=section,
        metric=metric,
        group=group,
        first=first,
        last=last,
        label=label,
        unit=metric if accuracy else "nats per token",
        better="higher" if accuracy else "lower",
        digits=3,
        resampled="document",
        units=names,
        numerator=sums[:, :1].tolist(),
        denominator=sums[:, 1:].tolist(),
        x=None if first is None or last is None else (first * last) ** 0.5,
    )
