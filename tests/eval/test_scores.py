"""Scores as files: the facts of a statistic are fields, and scores of the format before are read into them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mesa_eval.measures.scores import ModelCard, Note, Scores

COMMITTED = Path(__file__).parents[2] / "docs/results/context/report.json.gz"
MEASURE = {"label": "l", "unit": "u", "better": "", "digits": 3, "resampled": "query"}
MEASURE |= {"units": ["0"], "numerator": [[1.0]], "denominator": [[1.0]]}

KEYS = [  # section, key and x of format 3, and what they say
    ("text", "bits_per_byte", None, {"metric": "bits_per_byte", "group": ""}),
    ("text", "bits_per_byte/news", None, {"metric": "bits_per_byte", "variant": "", "group": "news"}),
    ("text", "bits_per_byte/file/a/b.txt", None, {"metric": "bits_per_byte", "variant": "file", "group": "a/b.txt"}),
    ("text", "perplexity", None, {"metric": "perplexity"}),
    ("position", "position/1", 1.0, {"metric": "loss", "last": 1}),
    ("position", "position/129-256", 181.7, {"metric": "loss", "first": 129, "last": 256}),
    ("length", "length/33-64", 45.9, {"metric": "loss", "first": 33, "last": 64}),
    ("length", "length_growth", None, {"metric": "length_growth", "last": None}),
    ("context", "in_context", None, {"metric": "in_context", "last": None}),
    ("context", "in_context/256", None, {"metric": "in_context", "first": None, "last": 256}),
    ("context", "copy_score", None, {"metric": "copy_score"}),
    ("recall", "recall/repeated_rare", None, {"metric": "loss", "group": "repeated_rare"}),
    ("recall", "recall/new/accuracy", None, {"metric": "accuracy", "group": "new"}),
    ("task/a", "task/a/4/answer", 4.0, {"task": "a", "metric": "answer", "shots": 4, "most": False}),
    ("task/4/5", "task/4/5/most/accuracy", 19.0, {"task": "4/5", "metric": "accuracy", "shots": 19, "most": True}),
    ("task/a", "task/a/2/f1-calibrated", 2.0, {"metric": "f1-calibrated", "variant": ""}),
    ("task/a", "task/a/2/calibrated-symbols", 2.0, {"metric": "calibrated", "variant": "symbols"}),
    ("task/a", "task/a/0/accuracy/one/gain", 0.0, {"metric": "accuracy", "group": "one/gain", "shots": 0}),
    ("task/gain", "task/gain/gain", None, {"task": "gain", "metric": "gain", "variant": "", "shots": None}),
    ("task/a", "task/a/gain-pairing", None, {"task": "a", "metric": "gain", "variant": "pairing", "shots": None}),
]


def of_format_3(section: str, key: str, x: float | None) -> dict:
    card = ModelCard("a", "runs/a", "M", "mesa", 1000, "f", "t", 9, 64, 0)
    data = Scores(card, {"seed": 0}, "sha", 100, 1, 64, [], {}).to_dict()
    part = {"name": "p", "key": "k", "measures": [{**MEASURE, "section": section, "key": key, "x": x}], "notes": []}
    return {**data, "parts": [part], "format": 3}


@pytest.mark.parametrize(("section", "key", "x", "facts"), KEYS)
def test_a_key_of_format_3_becomes_fields_that_make_it(section: str, key: str, x: float | None, facts: dict) -> None:
    (measure,) = Scores.from_dict(of_format_3(section, key, x)).measures
    assert {name: getattr(measure, name) for name in facts} == facts
    assert measure.key == key


def test_the_committed_comparison_is_read_and_stays_what_it_is() -> None:
    (data, *_) = json.loads(gzip.decompress(COMMITTED.read_bytes()))["scores"]
    assert data["format"] == 3
    scores = Scores.from_dict(data)
    old = [measure for part in data["parts"] for measure in part["measures"]]
    assert [measure.key for measure in scores.measures] == [measure["key"] for measure in old]
    assert [measure.numerator for measure in scores.measures] == [measure["numerator"] for measure in old]
    assert Scores.from_dict(scores.to_dict()) == scores


def test_a_note_of_format_3_on_one_model_is_its_own() -> None:
    data = of_format_3("text", "perplexity", None)
    data["notes"] = ["seen (a)", "seen (another)"]
    assert Scores.from_dict(data).notes == [Note("seen", own=True), Note("seen (another)")]


def test_a_key_that_says_nothing_gets_one_line() -> None:
    with pytest.raises(ValueError, match="'copying' is no measure of section 'recall'"):
        Scores.from_dict(of_format_3("recall", "copying", None))
