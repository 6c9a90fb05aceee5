"""Evaluation rows of a model card, read from measured scores."""

from __future__ import annotations

from pathlib import Path

import torch

from mesa_eval.comparison.rows import build_comparison
from mesa_eval.measures.scores import Scores
from mesa_eval.reading.scoring import weights_digest
from mesalm.hub.model_card import Evaluation
from mesalm.hub.open_model import open_model


def card_rows(path: Path, model: str) -> list[Evaluation]:
    """Return each measure of a scores file with its interval.

    Raises:
        ValueError: the file is missing, contains no scores in this format, or contains scores of weights other than
            those of `model`.
    """
    try:
        scores = Scores.read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give scores/NAME.json of `mesalm eval --out`") from None
    except ValueError as error:
        raise ValueError(f"{path}: not readable scores ({error})") from None
    if scores.model.fingerprint != weights_digest(open_model(model, dtype=torch.float32)):
        raise ValueError(
            f"{path}: holds the scores of other weights, those of {scores.model.argument}; measure {model} itself"
        )
    found = []
    for row in build_comparison([scores], differences=False).rows:
        interval = row.values[0]
        if interval is not None:
            found.append(
                Evaluation(row.section, row.label, row.unit, interval.value, interval.low, interval.high, row.digits)
            )
    return found
