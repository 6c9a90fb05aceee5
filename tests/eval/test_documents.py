"""Reading held-out text and choosing from it without looking at a model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mesa_eval.reading.documents import (
    HeldOutDocument,
    in_turn,
    read_documents,
    subsample,
    text_fingerprint,
    told_apart,
)
from mesa_eval.reading.model_source import find_model


def test_files_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain\ntext")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({"text": "one", "domain": "books", "id": "x"}) + "\n")
        stream.write(json.dumps({"text": "two", "id": "x"}) + "\n")
    found = read_documents([str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl.gz")])
    assert [(d.domain, d.text) for d in found] == [("a", "plain\ntext"), ("books", "one"), ("b", "two")]
    assert len({document.identifier for document in found}) == 3


@pytest.mark.parametrize("names", [["x", "x", "x#2", "x"], ["x#2", "x", "x"], ["x", "x#2", "x#2", "x"]])
def test_repeated_names_become_names_that_no_document_has(tmp_path: Path, names: list[str]) -> None:
    """Windows are gathered by the names of their documents, and documents are drawn by them."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {n}", "id": name}) + "\n" for n, name in enumerate(names)))
    found = read_documents([str(path)])
    assert len({document.identifier for document in found}) == len(names)
    assert found[0].identifier == names[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no text"), (b"{broken\n", "a.jsonl:1"), (b'{"text": 3}\n', "a.jsonl:1"), (b'{"text": " "}\n', "no text")],
)
def test_a_bad_file_gets_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_documents([str(tmp_path / "a.jsonl")])
    assert "\n" not in str(caught.value)
    assert "skip" not in str(caught.value)
    with pytest.raises(ValueError, match="no such file"):
        read_documents([str(tmp_path / "nowhere.txt")])


def test_a_subsample_takes_the_domains_in_turn_and_cuts_at_characters() -> None:
    documents = [HeldOutDocument(f"{d}{n}", d, "é" * 50) for d in "ab" for n in range(20)]
    chosen = subsample(documents, total_bytes=200, document_bytes=25, seed=0)
    assert [document.domain for document in chosen] == ["a", "b"] * (len(chosen) // 2) + ["a"] * (len(chosen) % 2)
    assert all(document.text == "é" * 12 for document in chosen)
    assert 200 <= sum(document.bytes for document in chosen) < 200 + 25
    assert chosen == subsample(documents[::-1], total_bytes=200, document_bytes=25, seed=0)
    assert chosen != subsample(documents, total_bytes=200, document_bytes=25, seed=1)
    assert text_fingerprint(chosen) != text_fingerprint(chosen[1:])
    uneven = [HeldOutDocument("a", "x", "t"), *(HeldOutDocument(f"b{n}", "y", "t") for n in range(3))]
    assert [document.domain for document in in_turn(uneven, 0)] == ["x", "y", "y", "y"]


def test_a_run_says_what_its_journal_and_recipe_recorded(tmp_path: Path) -> None:
    run = tmp_path / "demo-mesa"
    (run / "final").mkdir(parents=True)
    (run / "final" / "config.json").write_text("{}")
    (run / "recipe.yaml").write_text("data:\n  sequence_length: 128\n")
    events = [
        {"event": "start", "prepared": "/data/prepared"},
        {"event": "step", "step": 1, "tokens": 100, "loss": 5.0},
        {"event": "step", "step": 2, "tokens": 200, "loss": 4.0},
        {"event": "start", "step": 1, "prepared": "/data/prepared"},
        {"event": "step", "step": 2, "tokens": 200, "loss": 3.5},
        {"event": "valid", "step": 2, "tokens": 200, "bits_per_byte": 3.0},
        {"event": "step", "step": 3, "tokens": 300, "loss": None},
    ]
    (run / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "st')
    for argument in (str(run), str(run / "final")):
        source = find_model(argument)
        assert (source.name, source.sequence_length, source.tokens_trained) == ("demo-mesa", 128, 300)
        assert source.prepared == Path("/data/prepared")
        assert source.training == {"loss": [[100.0, 5.0], [200.0, 3.5]], "valid": [[200.0, 3.0]]}
    checkpoint = run / "checkpoints/step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "state.json").write_text('{"step": 1, "tally": {"tokens": 100}}')
    source = find_model(str(checkpoint))
    assert (source.sequence_length, source.prepared) == (128, Path("/data/prepared"))
    assert (source.tokens_trained, source.training) == (100, {})


def test_a_number_never_makes_a_name_that_is_there() -> None:
    assert told_apart(["a", "a-2", "a", "a"], "-") == ["a", "a-2", "a-3", "a-4"]
