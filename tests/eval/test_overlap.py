"""Passages of the scored text that stand in the training text are counted, against a plain search of substrings."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import numpy as np
import pytest

from mesa_eval.measures.overlap import overlap_notes, passages, shared_passages
from mesa_eval.reading.documents import HeldOutDocument
from mesalm.data.data_settings import DataSettings
from mesalm.data.prepare import prepare


def test_shares_are_those_of_a_plain_search() -> None:
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 50, (40, 64))
    texts = [generator.integers(0, 50, 200) for _ in range(4)]
    texts[1][17:157] = np.concatenate([rows[3], rows[4], rows[5][:12]])  # over the ends of rows, at an odd place
    texts[2][100:116] = rows[9][5:21]
    texts.append(np.arange(5))
    length = 8
    stream = " ".join(map(str, rows.ravel()))
    expected = []
    for text in texts:
        cuts = [" ".join(map(str, text[at : at + length])) for at in range(0, len(text) - length + 1, length)]
        expected.append(np.mean([f" {cut} " in f" {stream} " for cut in cuts]) if cuts else 0.0)
    data = datasets.Dataset.from_dict({"input_ids": rows.tolist()}).with_format("numpy")
    shares, looked = shared_passages([text.tolist() for text in texts], data, length)
    assert shares == pytest.approx(expected)
    assert (shares[0], looked) == (0.0, 40)
    assert 0.5 < shares[1] < 0.8
    assert 0 < shares[2] < 0.1
    assert len(passages(np.arange(20), 8)) == 13


def test_a_bound_is_kept_and_told() -> None:
    rows = np.arange(64 * 10).reshape(10, 64)
    data = datasets.Dataset.from_dict({"input_ids": rows.tolist()}).with_format("numpy")
    texts = [rows[0].tolist(), rows[5].tolist()]
    assert shared_passages(texts, data, 8, most=64, at_once=64) == ([1.0, 0.0], 1)


def test_copies_are_noted(tmp_path: Path) -> None:
    lines = [
        f"The {word} of number {n * n} was seen by {n} people near the {n % 7}th bridge."
        for n in range(60)
        for word in ("fox", "owl")
    ]
    documents = [" ".join(lines[start : start + 6]) for start in range(0, 120, 6)]
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in documents))
    settings = DataSettings(
        sources=[{"name": "files", "files": [str(tmp_path / "text.jsonl")]}],
        vocab_size=258,
        sequence_length=64,
        valid_fraction=0.1,
        cache_dir=str(tmp_path / "cache"),
    )
    data = prepare(settings, quiet=True)
    held = [str(row["text"]) for split in ("valid", "test") for row in data.documents(split)]
    trained = [text for text in documents if text not in held]
    asked = [
        HeldOutDocument("copy", "a", trained[0]),
        HeldOutDocument("part", "a", trained[1][10:140] + " " + "unseen " * 60),
    ]
    asked.append(
        HeldOutDocument("new", "a", "Nothing of this was ever written down for a model to read before now. " * 3)
    )
    (note,) = overlap_notes([data.path, data.path], asked)
    assert re.match(r"text: 2 of 3 documents share a passage of 5\d tokens \(about 50 bytes\) with the training", note)
    assert note.endswith("; 1 of them more than half of the passages")
    (gone,) = overlap_notes([tmp_path / "gone"], asked)
    assert "not compared with" in gone
