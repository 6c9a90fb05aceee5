"""Loss by position in the context, the in-context score, and copying of random sequences.

Position p is the p-th prediction of a window: it has p tokens before it (the document's start token among
them). Windows hold T + 1 tokens of one document and are never packed. Bins are 1, 2, 3-4, 5-8 ... up to T.

In-context score (Olsson et al. 2022, In-context learning and induction heads): mean loss at positions 490 to
510 less the mean at 45 to 55, which needs T >= 512. Shorter windows get an analogue under another name:
the last eighth of the window less the positions within T/32 of T/8. Negative is better for both.

Copy score: rows of one random sequence shown twice, tokens drawn without replacement from the vocabulary
without its special tokens; the mean loss of the first half less that of the second. Copy accuracy counts the
tokens of the second half that were the likeliest; a model that needs to see a token of the repeat before it
knows of it reaches (n - 1) / n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mesa_eval.documents import Document, cut_document, in_turn
from mesa_eval.scores import CopyScores, PositionScores
from mesa_eval.scoring import Scorer

SCORE_NAME = "in-context score (490-510 less 45-55)"
SHORT_SCORE_NAME = "late-less-early score"
BYTES_A_TOKEN = 32  # windows come from the first 32 (T + 1) bytes of a document: some eight windows of English


def position_bins(window: int) -> list[list[int]]:
    """Return (first, last) positions of the bins 1, 2, 3-4, 5-8 ... up to `window`, both ends included."""
    bins = [[1, 1]]
    while bins[-1][1] < window:
        last = bins[-1][1]
        bins.append([last + 1, min(2 * last, window)])
    return bins


def score_ranges(window: int) -> tuple[str, list[int], list[int]]:
    """Return name, early and late positions (both ends included) of the in-context score for a window."""
    if window >= 512:
        return SCORE_NAME, [45, 55], [490, 510]
    eighth, spread = window // 8, window // 32
    early = [max(1, eighth - spread), max(1, eighth + spread)]
    late = [window - eighth + 1, window]
    return f"{SHORT_SCORE_NAME} ({late[0]}-{late[1]} less {early[0]}-{early[1]})", early, late


def collect_windows(
    scorer: Scorer, documents: Sequence[Document], window: int, wanted: int, seed: int
) -> list[tuple[str, list[int]]]:
    """Collect up to `wanted` (document, window + 1 tokens): first one a document, then second ones, and so on.

    Documents come in a seeded order with the domains in turn. A further window begins where the one before
    ended, without a start token, as a packed training row does in the middle of a document. So a document
    gives several windows only when there are fewer long enough documents than windows wanted.
    """
    by_document: list[tuple[str, list[int]]] = []
    for document in in_turn(documents, seed):
        if len(by_document) == wanted:
            break
        tokens = scorer.start() + scorer.encode(cut_document(document, BYTES_A_TOKEN * (window + 1)).text)
        if len(tokens) > window:
            by_document.append((document.identifier, tokens))
    windows: list[tuple[str, list[int]]] = []
    turn = 0
    while len(windows) < wanted:
        begin = turn * window
        fresh = [
            (owner, tokens[begin : begin + window + 1])
            for owner, tokens in by_document
            if len(tokens) >= begin + window + 1
        ]
        if not fresh:
            break
        windows.extend(fresh[: wanted - len(windows)])
        turn += 1
    return windows


def score_positions(
    scorer: Scorer, documents: Sequence[Document], window: int, wanted: int, seed: int
) -> PositionScores | None:
    """Return loss by position over up to `wanted` windows; None if no document has `window` + 1 tokens."""
    if window < 8:
        return None
    windows = collect_windows(scorer, documents, window, wanted, seed)
    if not windows:
        return None
    scored = scorer.token_scores([tokens for _, tokens in windows], what="positions")
    losses = -np.stack([values for values, _ in scored])
    bins = position_bins(window)
    name, early, late = score_ranges(window)
    return PositionScores(
        window=window,
        bins=bins,
        units=[owner for owner, _ in windows],
        nats=np.stack([losses[:, a - 1 : b].mean(1) for a, b in bins], axis=1).tolist(),
        score_name=name,
        early_range=early,
        late_range=late,
        early=losses[:, early[0] - 1 : early[1]].mean(1).tolist(),
        late=losses[:, late[0] - 1 : late[1]].mean(1).tolist(),
    )


def score_copying(scorer: Scorer, window: int, windows: int, seed: int, length: int = 64) -> CopyScores | None:
    """Return the copy scores over `windows` random sequences; None if the model or vocabulary is too small.

    The sequence is `length` tokens, or fewer where two of them and the start token do not fit the window.
    """
    special = set(scorer.tokenizer.all_special_ids)
    ordinary = np.array([token for token in range(len(scorer.tokenizer)) if token not in special])
    before = scorer.start()
    length = min(length, (window + 1 - len(before)) // 2, len(ordinary))
    if length < 4:
        return None
    generator = np.random.default_rng([seed, length])
    rows = []
    for _ in range(windows):
        sequence = generator.choice(ordinary, size=length, replace=False).tolist()
        rows.append(before + sequence + sequence)
    scored = scorer.token_scores(rows, what="copying")
    losses = -np.stack([values for values, _ in scored])
    hits = np.stack([hit for _, hit in scored])
    return CopyScores(
        length=length,
        first=losses[:, :-length].mean(1).tolist(),
        second=losses[:, -length:].mean(1).tolist(),
        accuracy=hits[:, -length:].mean(1).tolist(),
        chance=1.0 / len(ordinary),
    )
