"""What recipes may ask of the preparation: cleaning, weights, a folder that is there already."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesalm.data.data_settings import DataSettings
from mesalm.data.documents import DataError
from mesalm.data.prepare import ChangedDataError, check_inputs, prepare
from mesalm.data.stream import Position, RowStream
from mesalm.settings import SettingsError

Records = Callable[..., list[dict[str, Any]]]
Writer = Callable[..., Path]
Maker = Callable[..., DataSettings]


def test_near_copies_are_dropped_and_the_held_out_one_stays(records: Records, write_jsonl: Writer, data: Maker) -> None:
    rows, word = records(30), "of"
    copies = [{**row, "text": row["text"] + f"{word}\n"} for row in rows[:6]]  # each a word longer
    half = [{**row, "text": row["text"][: len(row["text"]) // 2]} for row in rows[6:9]]
    sources = [
        {"name": "files", "files": str(write_jsonl("train.jsonl", [*rows, *half])), "use": "train"},
        {"name": "files", "files": str(write_jsonl("held.jsonl", copies)), "use": "valid"},
    ]
    prepared = prepare(data("", sources=sources, deduplicate=0.8), quiet=True)
    similar = [jaccard(row["text"], copy["text"]) for row, copy in zip(rows, copies, strict=False)]
    assert min(similar) > 0.9  # so that the estimate, whose standard error is 0.04 at most, cannot miss
    assert prepared.manifest["near_copies"] == 6
    assert [prepared.manifest["splits"][split]["documents"] for split in ("train", "valid")] == [27, 6]
    assert set(prepared.documents("valid")["text"]) == {copy["text"] for copy in copies}
    assert "6 near-copies (similarity 0.8 or more)" in (prepared.path / "corpus.md").read_text()
    assert prepare(data("", sources=sources), quiet=True).manifest["near_copies"] == 0


def jaccard(one: str, other: str) -> float:
    """Compare the runs of five words and marks of two texts, exactly."""
    words = [re.findall(r"\w+|[^\w\s]", text) for text in (one, other)]
    first, second = ({tuple(found[at : at + 5]) for at in range(len(found) - 4)} for found in words)
    return len(first & second) / len(first | second)


def test_text_of_evaluation_files_is_dropped(
    records: Records, write_jsonl: Writer, data: Maker, tmp_path: Path
) -> None:
    rows = records(40)
    said = [f"word{number}" for number in range(40)]
    rows[3]["text"] += " ".join(said[:13])
    rows[4]["text"] += " ".join(said[:12]) + " other " + " ".join(said[13:25])
    rows[5]["text"] += ", ".join(said[20:33]).upper() + "!"
    rows[6]["text"] += " ".join(said)
    held = write_jsonl("held.jsonl", [rows.pop(6)])
    items = [{"input": " ".join(said[:10]), "output": " ".join(said[10:])}, {"input": "short", "output": "one"}]
    asked = write_jsonl("task.jsonl", items)
    sources = [
        {"name": "files", "files": str(write_jsonl("train.jsonl", rows)), "use": "train"},
        {"name": "files", "files": str(held), "use": "valid"},
    ]
    prepared = prepare(data("", sources=sources, decontaminate=[str(asked)]), quiet=True)
    (found,) = prepared.manifest["contamination"]
    assert {key: found[key] for key in ("name", "texts", "short", "documents")} == {
        "name": "task.jsonl",
        "texts": 2,
        "short": 1,
        "documents": 2,
    }
    decoded = prepared.tokenizer().decode(prepared.rows("train")[:]["input_ids"].reshape(-1).tolist())
    assert [row["text"] in decoded for row in rows[3:6]] == [False, True, False]
    assert len(prepared.documents("valid")) == 1
    card = (prepared.path / "corpus.md").read_text()
    assert "2 documents that share 13 words in a row with task.jsonl" in card
    assert "; 1 of its 2 texts shorter than that)" in card
    assert "- valid split: 1 document, " in card
    assert "  valid: 1 document, " in prepared.summary()
    # other contents of the file are other data
    asked.write_text('{"input": "nothing"}\n')
    other = prepare(data("", sources=sources, decontaminate=[str(asked)]), quiet=True)
    assert other.manifest["splits"]["train"]["documents"] == 39
    asked.write_text("\n")
    with pytest.raises(DataError, match=r"task\.jsonl: no text to compare with; check data\.decontaminate"):
        prepare(data("", sources=sources, decontaminate=[str(asked)]), quiet=True)


def test_weights_give_each_source_rows_of_its_own(records: Records, write_jsonl: Writer, data: Maker) -> None:
    few = write_jsonl("few.jsonl", [{**row, "domain": "few"} for row in records(20)])
    many = write_jsonl("many.jsonl", [{**row, "domain": "many"} for row in records(90, seed=5)])
    sources = [
        {"name": "files", "files": str(few), "weight": 3, "licence": "CC0-1.0"},
        {"name": "files", "files": str(many), "weight": 1},
    ]
    prepared = prepare(data("", sources=sources), quiet=True)
    train = prepared.manifest["splits"]["train"]
    rows = prepared.rows("train")
    assert sum(train["parts"]) == train["rows"] == len(rows)
    for begin, end, name in ((0, train["parts"][0], "few"), (train["parts"][0], len(rows), "many")):
        tokens = train["domains"][name]["tokens"]
        assert (end - begin) * 32 <= tokens < (end - begin + 1) * 32
        assert rows[begin]["input_ids"][0] == prepared.manifest["tokenizer"]["bos_token_id"]
    stream = iter(RowStream(rows, Position(0), 4, micro_rows=4, mixture=prepared.mixture()))
    first = {tuple(row) for row in rows[: train["parts"][0]]["input_ids"].tolist()}
    drawn = [tuple(row) for _ in range(300) for row in next(stream)["input_ids"].tolist()]
    assert sum(row in first for row in drawn) == 900
    card = (prepared.path / "corpus.md").read_text()
    assert "; licence CC0-1.0" in card
    assert f"- mixture: files by weight 3, {train['parts'][0]} rows" in card
    other = prepare(data("", sources=[{**source, "weight": 2} for source in sources]), quiet=True)
    assert other.contents()["rows"] == prepared.contents()["rows"]
    with pytest.raises(ChangedDataError, match="the weights of its sources have changed"):
        check_inputs(data("", sources=sources, prepared=str(other.path)), prepared.contents())


def test_prepared_data_serve_without_their_source(records: Records, write_jsonl: Writer, data: Maker) -> None:
    path = write_jsonl("x.jsonl", records(30))
    first = prepare(data(path), quiet=True)
    contents = first.contents()
    path.unlink()
    given = data(path, prepared=str(first.path))
    assert prepare(given, quiet=True, expected=contents).path == first.path
    check_inputs(given, contents)
    with pytest.raises(SettingsError, match=r"sequence_length: is 16, but the rows of .* have 32 tokens; set it to 32"):
        prepare(data(path, prepared=str(first.path), sequence_length=16), quiet=True)
    other = prepare(data(write_jsonl("y.jsonl", records(31))), quiet=True)
    with pytest.raises(ChangedDataError, match=r"x\.jsonl is missing"):
        check_inputs(data(path, prepared=str(other.path)), contents)
    (first.path / "corpus.md").write_text("nothing was dropped")
    with pytest.raises(DataError, match=r"corpus\.md is damaged"):
        prepare(given, quiet=True)
