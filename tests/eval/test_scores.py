"""Scores as files: the fields of a statistic make its key, and what was written is what is read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mesa_eval.measures.scores import Scores, Statistic

COMMITTED = Path(__file__).parents[2] / "docs/results/context/report.json.gz"
SHOWN = {"label": "l", "unit": "u", "better": "", "digits": 3, "resampled": "query"}


@pytest.mark.parametrize(
    ("key", "section", "facts"),
    [
        ("bits_per_byte", "text", {"metric": "bits_per_byte"}),
        ("bits_per_byte/news", "text", {"metric": "bits_per_byte", "group": "news"}),
        ("bits_per_byte/file/a/b.txt", "text", {"metric": "bits_per_byte", "variant": "file", "group": "a/b.txt"}),
        ("position/1", "position", {"metric": "loss", "last": 1}),
        ("length/33-64", "length", {"metric": "loss", "first": 33, "last": 64}),
        ("length_growth", "length", {"metric": "length_growth"}),
        ("in_context/256", "context", {"metric": "in_context", "last": 256}),
        ("recall/repeated_rare", "recall", {"metric": "loss", "group": "repeated_rare"}),
        ("recall/new/accuracy", "recall", {"metric": "accuracy", "group": "new"}),
        ("task/a/4/answer", "task/a", {"task": "a", "metric": "answer", "shots": 4}),
        ("task/4/5/most/accuracy", "task/4/5", {"task": "4/5", "metric": "accuracy", "shots": 19, "most": True}),
        (
            "task/a/2/calibrated-symbols",
            "task/a",
            {"task": "a", "metric": "calibrated", "variant": "symbols", "shots": 2},
        ),
        ("task/a/0/accuracy/one", "task/a", {"task": "a", "metric": "accuracy", "group": "one", "shots": 0}),
        ("task/a/gain-pairing", "task/a", {"task": "a", "metric": "gain", "variant": "pairing"}),
    ],
)
def test_the_fields_of_a_statistic_make_its_key(key: str, section: str, facts: dict) -> None:
    assert Statistic(section=section, **facts, **SHOWN).key == key


def test_the_committed_comparison_is_read_as_it_was_written() -> None:
    (data, *_) = json.loads(gzip.decompress(COMMITTED.read_bytes()))["scores"]
    scores = Scores.from_dict(data)
    for part in data["parts"]:
        for gone in ("pairs_joint", "pairs_apart"):  # scores of this format held them once
            (part["task"] or {}).pop(gone, None)
    assert scores.to_dict() == data | {"collection_fingerprint": ""}  # came after these scores
    assert len({measure.key for measure in scores.measures}) == len(scores.measures)
