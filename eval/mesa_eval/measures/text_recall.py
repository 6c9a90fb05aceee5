"""Recall on natural text: the loss on tokens that the window itself could predict.

A target is *repeated* if it and the token before it were neighbours earlier in the window; an associative
look-up of the previous token then finds it (Arora et al. 2024, Zoology). If the training text is known, targets are
split further: a pair that is *rare in training* cannot have been learned there. A pair is rare if it occurs at most
once per million training tokens (never, in a shorter training text), counted in up to the first 2^28 tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mesa_eval.measures.icl_curve import PositionScores, by_document
from mesa_eval.measures.scores import Measure

RARE_PER_TOKEN = 1e-6
MOST_TRAINING_TOKENS = 2**28
ROWS_AT_ONCE = 4096


def pair_codes(tokens: np.ndarray) -> np.ndarray:
    """Return one number for each pair of neighbours: [..., T + 1] token ids to [..., T] int64."""
    wide = tokens.astype(np.int64)
    return (wide[..., :-1] << 32) | wide[..., 1:]


def repeated(tokens: np.ndarray) -> np.ndarray:
    """Return, for windows [N, T + 1], which of the T targets end a pair that stood earlier in the window."""
    codes = pair_codes(tokens)
    seen = np.ones(codes.shape, dtype=bool)
    for row, own in zip(codes, seen, strict=True):
        own[np.unique(row, return_index=True)[1]] = False
    return seen


def count_pairs(rows: Any, codes: np.ndarray, rows_at_once: int = ROWS_AT_ONCE) -> tuple[np.ndarray, int]:
    """Count how often each pair of tokens occurs in rows, such as `Prepared.rows`; and the tokens looked at."""
    wanted, place = np.unique(codes, return_inverse=True)
    counts = np.zeros(len(wanted), dtype=np.int64)
    looked = 0
    for begin in range(0, len(rows), rows_at_once):
        tokens = np.asarray(rows[begin : begin + rows_at_once]["input_ids"])
        found = pair_codes(tokens).ravel()
        at = np.searchsorted(wanted, found).clip(max=len(wanted) - 1)
        counts += np.bincount(at[wanted[at] == found], minlength=len(wanted))
        looked += tokens.size
        if looked >= MOST_TRAINING_TOKENS:
            break
    return counts[place].reshape(codes.shape), looked


def rare_in_training(tokens: np.ndarray, rows: Any) -> np.ndarray:
    """Return, for windows [N, T + 1], which of the T targets end a pair that is rare in the training rows."""
    counts, looked = count_pairs(rows, pair_codes(tokens))
    return np.asarray(counts <= looked * RARE_PER_TOKEN)


def recall_measures(scores: PositionScores, rare: np.ndarray | None) -> list[Measure]:
    """Return loss and accuracy on repeated targets and on the rest; with `rare` [N, T] also on rare ones among them."""
    again = repeated(scores.tokens)
    chosen: list[tuple[str, str, np.ndarray]] = [
        ("repeated", "pair seen earlier in the window", again),
        ("new", "pair not seen earlier", ~again),
    ]
    if rare is not None:
        chosen += [
            ("repeated_rare", "seen earlier, rare in training", again & rare),
            ("new_rare", "not seen earlier, rare in training", ~again & rare),
        ]
    measures = []
    for group, label, mask in chosen:
        if mask.any():
            share = f"{label} ({100 * mask.mean():.1f} % of tokens)"
            for metric, values in (("loss", scores.losses), ("accuracy", scores.hits)):
                sums, counts = (values * mask).sum(1), mask.sum(1)
                measures.append(by_document("recall", metric, share, sums, scores.owners, counts=counts, group=group))
    return measures
