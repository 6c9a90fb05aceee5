"""Copying of random sequences: the loss on a repeated sequence against that on a fresh one in its place.

A row shows a random sequence twice; in its control row another sequence comes first. Tokens are drawn without
replacement from the vocabulary without special tokens. Copy score: the mean loss of the sequence where it is fresh
minus that where it is repeated, with the same tokens at the same positions. So a model that is merely better at later
positions scores 0. Copy accuracy is the share of tokens of the repeat that were the likeliest; a model that must see
the first token of the repeat before it recognises it reaches (n - 1) / n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mesa_eval.measures.scores import Measure
from mesa_eval.reading.reader import Reader

LONGEST = 64  # tokens


@dataclass(frozen=True)
class CopyScores:
    """For each random sequence: its mean nats where it is fresh and where it is repeated, and the accuracy of the
    repeat."""

    length: int
    fresh: list[float]
    repeated: list[float]
    accuracy: list[float]
    chance: float


def score_copying(scorer: Reader, window: int, windows: int, seed: int) -> CopyScores | None:
    """Return the copy scores over `windows` random sequences; None if the model or vocabulary is too small.

    A sequence has `LONGEST` tokens, or fewer if two of them and the start token do not fit into the window.
    """
    special = set(scorer.tokenizer.all_special_ids)
    known = min(len(scorer.tokenizer), scorer.vocab_size)
    ordinary = np.array([token for token in range(known) if token not in special])
    before = scorer.start()
    length = min(LONGEST, (window + 1 - len(before)) // 2, len(ordinary))
    if length < 4:
        return None
    generator = np.random.default_rng([seed, length])
    repeats, controls = [], []
    for _ in range(windows):
        sequence, other = (generator.choice(ordinary, size=length, replace=False).tolist() for _ in range(2))
        repeats.append(before + sequence + sequence)
        controls.append(before + other + sequence)
    rows = repeats + controls
    scored = scorer.token_scores(rows, [len(row) - length for row in rows], what="copying")
    losses = -np.stack([one.nats for one in scored]).mean(1)
    hits = np.stack([one.hits for one in scored[:windows]])
    return CopyScores(
        length=length,
        fresh=losses[windows:].tolist(),
        repeated=losses[:windows].tolist(),
        accuracy=hits.mean(1).tolist(),
        chance=1.0 / len(ordinary),
    )


def copy_measures(scores: CopyScores) -> list[Measure]:
    """Return the copy score and the copy accuracy, one unit per random sequence."""
    gain = np.subtract(scores.fresh, scores.repeated).tolist()
    name = f"copy score, {scores.length} random tokens fresh less repeated"
    units = [f"{scores.length}/{number}" for number in range(len(gain))]
    rows: list[tuple[str, str, str, list[float], float]] = [
        ("copy_score", name, "nats per token", gain, 0.0),
        ("copy_accuracy", "copy accuracy", "share", scores.accuracy, scores.chance),
    ]
    return [
        Measure(
            section="context",
            metric=metric,
            label=label,
            unit=unit,
            better="higher",
            digits=3,
            resampled="sequence",
            units=units,
            numerator=[[value] for value in values],
            denominator=[[1.0]] * len(values),
            chance=chance,
        )
        for metric, label, unit, values, chance in rows
    ]
