from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mesalm.data.bpe import Encoder
from mesalm.data.corpora import SOURCES
from mesalm.data.data_settings import DataSettings
from mesalm.data.documents import DataError, Document, Faults
from mesalm.data.prepare import prepare
from mesalm.data.prepared import Prepared
from mesalm.data.read_files import FileSource

Records = Callable[..., list[dict[str, Any]]]
Writer = Callable[..., Path]
Maker = Callable[..., DataSettings]


def stream_of(prepared: Prepared, split: str) -> list[list[int]]:
    """Cut the rows of a split into documents again, by the token that begins each."""
    begin = prepared.manifest["tokenizer"]["bos_token_id"]
    documents: list[list[int]] = []
    for row in prepared.rows(split).with_format(None):
        at = 0
        for size in row["segments"]:
            piece = row["input_ids"][at : at + size]
            assert begin not in piece[1:]
            if piece[0] == begin:
                documents.append([])
            documents[-1].extend(piece)
            at += size
        assert at == prepared.sequence_length
    return documents


def test_rows_hold_every_document_and_the_manifest_counts_them(
    records: Records, write_jsonl: Writer, data: Maker
) -> None:
    rows = records(120)
    prepared = prepare(data(write_jsonl("x.jsonl", rows)), quiet=True)
    texts = {row["text"]: row for row in rows}
    tokenizer = prepared.tokenizer()
    found: set[str] = set()
    for split in ("train", "valid", "test"):
        about = prepared.manifest["splits"][split]
        documents = stream_of(prepared, split)
        whole = [tokenizer.decode(document[1:]) for document in documents]
        last = whole.pop() if about["dropped_tokens"] else None
        assert set(whole) <= set(texts)
        assert len(set(whole)) == len(whole) >= about["documents"] - 3
        found |= set(whole)
        if last is not None and last not in texts:
            # The dropped tokens are the end of the last document; undecodable half characters may end it.
            assert any(text.startswith(last.rstrip("\ufffd")) for text in texts)
        assert sum(len(document) for document in documents) == about["rows"] * 32
        assert about["rows"] * 32 + about["dropped_tokens"] == about["tokens"]
        for key in ("documents", "bytes", "tokens"):
            assert about[key] == sum(domain[key] for domain in about["domains"].values())
        assert about["bytes_per_token"] == about["bytes"] / about["tokens"]
        if split != "train":
            held = list(prepared.documents(split))
            assert len(held) == about["documents"]
            assert sum(len(row["text"].encode()) for row in held) == about["bytes"]
            assert all(texts[row["text"]] == row for row in held)
            encoded = Encoder(tokenizer, cut=True)([row["text"] for row in held])
            assert sum(map(len, encoded)) == about["tokens"]
    manifest = prepared.manifest
    total = sum(len(text.encode()) for text in texts)
    assert sum(about["bytes"] for about in manifest["splits"].values()) == total
    assert sum(about["documents"] for about in manifest["splits"].values()) == 120
    assert set(manifest["splits"]["train"]["domains"]) == {"a", "b"}
    assert prepared.vocab_size == len(tokenizer) <= 300
    assert prepared.rows("train").features["input_ids"].feature.dtype == "int32"


def test_duplicates_are_dropped_and_never_leak_into_train(records: Records, write_jsonl: Writer, data: Maker) -> None:
    rows = records(40)
    empty = {"id": "nothing", "domain": "a", "text": ""}
    train = write_jsonl("train.jsonl", [*rows, *rows[:3], empty])
    held = write_jsonl("held.jsonl", [{**rows[5], "id": "twin"}, *records(3, seed=9)])
    sources = [
        {"name": "files", "files": str(train), "use": "train"},
        {"name": "files", "files": str(held), "use": "valid"},
    ]
    prepared = prepare(data("", sources=sources), quiet=True)
    splits = prepared.manifest["splits"]
    assert prepared.manifest["duplicates"] == 4
    assert prepared.manifest["empty"] == 1
    assert [splits[name]["documents"] for name in ("train", "valid", "test")] == [39, 4, 0]
    assert rows[5]["text"] in prepared.documents("valid")["text"]
    decoded = [prepared.tokenizer().decode(document[1:]) for document in stream_of(prepared, "train")]
    assert rows[5]["text"] not in decoded
    assert len(prepared.rows("test")) == len(prepared.documents("test")) == 0


def test_added_documents_move_no_other(records: Records, write_jsonl: Writer, data: Maker) -> None:
    few = prepare(data(write_jsonl("few.jsonl", records(80))), quiet=True)
    more = [{"id": "new", "domain": "a", "text": "a new text\n" * 3}, *records(160)]
    many = prepare(data(write_jsonl("many.jsonl", more)), quiet=True)
    for split in ("valid", "test"):
        assert set(few.documents(split)["text"]) == set(many.documents(split)["text"]) & {
            row["text"] for row in records(80)
        }
    other = prepare(data(write_jsonl("few.jsonl", records(80)), seed=1), quiet=True)
    assert set(other.documents("valid")["text"]) != set(few.documents("valid")["text"])


def test_small_corpora_still_have_held_out_documents(records: Records, write_jsonl: Writer, data: Maker) -> None:
    path = write_jsonl("x.jsonl", records(6))
    prepared = prepare(data(path, valid_fraction=1e-6, test_fraction=1e-6), quiet=True)
    counts = [prepared.manifest["splits"][split]["documents"] for split in ("train", "valid", "test")]
    assert counts == [4, 1, 1]
    with pytest.raises(DataError, match="with 2 documents there is no test split"):
        prepare(data(write_jsonl("y.jsonl", records(2)), valid_fraction=1e-6, test_fraction=1e-6), quiet=True)
    with pytest.raises(DataError, match=r"less than one row of 4096.*valid_fraction$"):
        prepare(data(path, sequence_length=4096), quiet=True)
    with pytest.raises(DataError, match=r"less than one row of 4096.*valid_fraction, or raise data\.stream_sample$"):
        prepare(data(path, sequence_length=4096, stream=True), quiet=True)
    same = data(write_jsonl("same.jsonl", records(1) * 9))
    with pytest.raises(DataError, match=r"with 1 document there is no .* to 0 \(8 copies dropped\)$"):
        prepare(same, quiet=True)
    with pytest.raises(DataError, match=r"give more documents, raise data\.stream_sample, give a source"):
        prepare(same.model_copy(update={"stream": True}), quiet=True)
    with pytest.raises(DataError, match="the sources contain no documents"):
        prepare(data(write_jsonl("z.jsonl", [{"text": ""}])), quiet=True)


def test_special_tokens_spelt_out_stay_plain(records: Records, write_jsonl: Writer, data: Maker) -> None:
    rows = [{**row, "text": row["text"] + "<|endoftext|><|pad|> end\n"} for row in records(30)]
    prepared = prepare(data(write_jsonl("x.jsonl", rows)), quiet=True)
    for split in ("train", "valid"):
        ids = np.concatenate(prepared.rows(split)["input_ids"])
        assert prepared.manifest["tokenizer"]["pad_token_id"] not in ids
        begins = np.count_nonzero(ids == prepared.manifest["tokenizer"]["bos_token_id"])
        assert begins <= prepared.manifest["splits"][split]["documents"]


def test_the_cache_is_hit_until_something_that_matters_changes(
    records: Records, write_jsonl: Writer, data: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = records(30)
    path = write_jsonl("x.jsonl", rows)
    first = prepare(data(path), quiet=True)

    class Refusing(FileSource):
        def documents(self, faults: Faults) -> Iterator[Document]:
            raise AssertionError("built again")

    with monkeypatch.context() as patch:
        patch.setitem(SOURCES, "files", Refusing)
        assert prepare(data(path), quiet=True).path == first.path
        # Neither the folder of the file nor the number of processes changes the data.
        (tmp_path / "copy").mkdir()
        copy = tmp_path / "copy" / "x.jsonl"
        copy.write_bytes(path.read_bytes())
        assert prepare(data(copy, processes=2), quiet=True).path == first.path
        for change in ({"seed": 1}, {"vocab_size": 301}, {"sequence_length": 16}, {"valid_fraction": 0.2}):
            with pytest.raises(AssertionError, match="built again"):
                prepare(data(path, **change), quiet=True)
        content = bytearray(path.read_bytes())
        content[-10] ^= 1
        path.write_bytes(content)
        with pytest.raises(AssertionError, match="built again"):
            prepare(data(path), quiet=True)
    assert prepare(data(path), quiet=True).path != first.path


def test_a_quiet_preparation_says_nothing(
    records: Records, write_jsonl: Writer, data: Maker, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl("x.jsonl", records(60))
    prepare(data(path), quiet=True)
    assert capfd.readouterr() == ("", "")
    prepare(data(path, seed=1))
    lines = capfd.readouterr().err.splitlines()  # not a terminal: a plain line a stage, no bar
    assert [line.split()[0] for line in lines] == ["reading", "training", "tokenising", "packing"]


def test_a_source_that_changes_while_it_is_read_is_refused(
    records: Records, write_jsonl: Writer, data: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl("x.jsonl", records(30))

    class Changing(FileSource):
        def documents(self, faults: Faults) -> Iterator[Document]:
            yield from super().documents(faults)
            path.write_bytes(path.read_bytes() + b"\n")

    monkeypatch.setitem(SOURCES, "files", Changing)
    with pytest.raises(DataError, match="changed while it was being read"):
        prepare(data(path), quiet=True)


def test_several_processes_give_the_same_rows(records: Records, write_jsonl: Writer, data: Maker) -> None:
    path = write_jsonl("x.jsonl", records(300))
    one = prepare(data(path, cache_dir=str(path.parent / "one"), processes=1), quiet=True)
    two = prepare(data(path, cache_dir=str(path.parent / "two"), processes=2), quiet=True)
    for split in ("train", "valid", "test"):
        assert one.rows(split).with_format(None)[:] == two.rows(split).with_format(None)[:]
    assert one.manifest["splits"] == two.manifest["splits"]


def test_a_bad_record_with_a_name_that_cannot_be_written_is_counted(
    records: Records, write_jsonl: Writer, data: Maker
) -> None:
    prepared = prepare(data(write_jsonl("x.jsonl", [*records(20), {"\ud800": 1}]), skip_bad=True), quiet=True)
    assert prepared.manifest["bad"]["count"] == 1
    assert "(columns: \\ud800)" in prepared.manifest["bad"]["examples"][0]


def test_bad_records_are_counted(records: Records, write_jsonl: Writer, data: Maker, tmp_path: Path) -> None:
    path = write_jsonl("x.jsonl", records(40))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"text": \n{"body": "x"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:41: broken JSON"):
        prepare(data(path), quiet=True)
    (tmp_path / "y.txt").touch()
    sources = [{"name": "files", "files": [str(path), str(tmp_path / "y.txt")]}]
    prepared = prepare(data("", sources=sources, skip_bad=True), quiet=True)
    assert (prepared.manifest["bad"]["count"], prepared.manifest["empty"]) == (2, 1)
    assert sum(split["documents"] for split in prepared.manifest["splits"].values()) == 40


def test_sources_can_be_mixed(records: Records, write_jsonl: Writer, data: Maker, tmp_path: Path) -> None:
    write_jsonl("a.jsonl", records(30))
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in records(20, 5)).encode()))
    sources = [
        {"name": "hub", "dataset": "json", "files": str(tmp_path / "a.jsonl"), "streaming": True},
        {"name": "files", "files": str(packed), "domain": "gz"},
        {"name": "python-stdlib", "limit": 12},
    ]
    prepared = prepare(data("", sources=sources), quiet=True)
    assert set(prepared.manifest["splits"]["train"]["domains"]) == {"a", "b", "gz", "python"}
    assert prepared.manifest["sources"][2]["interpreter"].startswith("CPython 3.")


@pytest.fixture
def trained(records: Records, write_jsonl: Writer, data: Maker) -> Prepared:
    return prepare(data(write_jsonl("t.jsonl", records(60))), quiet=True)


def test_a_given_tokenizer_with_ready_made_ids(
    trained: Prepared, records: Records, write_jsonl: Writer, data: Maker
) -> None:
    tokenizer = trained.tokenizer()
    rows = records(60)
    encoded = [{"id": row["id"], "ids": tokenizer(row["text"], add_special_tokens=False)["input_ids"]} for row in rows]
    encoded[3]["ids"].insert(0, tokenizer.bos_token_id)
    path = write_jsonl("ids.jsonl", encoded)
    sources = [{"name": "files", "files": str(path), "ids_column": "ids"}]
    given = str(trained.path / "tokenizer")
    prepared = prepare(data("", sources=sources, tokenizer=given), quiet=True)
    # The same texts, so the same documents are held out and the rows are the same.
    assert prepared.documents("valid")["text"] == trained.documents("valid")["text"]
    for split in ("train", "valid", "test"):
        assert prepared.rows(split).with_format(None)[:] == trained.rows(split).with_format(None)[:]
    assert prepared.manifest["tokenizer"]["kind"] == "given"
    bad = write_jsonl("bad.jsonl", [*encoded, {"ids": [len(tokenizer)]}])
    sources[0]["files"] = str(bad)
    with pytest.raises(DataError, match="is outside the vocabulary"):
        prepare(data("", sources=sources, tokenizer=given), quiet=True)


@pytest.mark.parametrize(
    "change",
    [
        {"pad_token": "<|endoftext|>"},
        {"padding_side": "right"},
        {"model_max_length": 512},
        {"chat_template": "{{ messages }}"},
    ],
    ids=str,
)
def test_a_given_tokenizer_is_known_by_all_that_it_holds(
    change: dict[str, Any], trained: Prepared, records: Records, write_jsonl: Writer, data: Maker, tmp_path: Path
) -> None:
    tokenizer = trained.tokenizer()
    tokenizer.save_pretrained(tmp_path / "given")
    tokenizer.save_pretrained(tmp_path / "copy")
    path = write_jsonl("x.jsonl", records(30))
    first = prepare(data(path, tokenizer=str(tmp_path / "given")), quiet=True)
    assert prepare(data(path, tokenizer=str(tmp_path / "copy")), quiet=True).path == first.path
    for name, value in change.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(tmp_path / "given")
    changed = prepare(data(path, tokenizer=str(tmp_path / "given")), quiet=True)
    assert changed.path != first.path
    assert all(getattr(changed.tokenizer(), name) == value for name, value in change.items())


@pytest.mark.parametrize("call", [{"padding": True}, {"truncation": True, "max_length": 5}], ids=str)
def test_a_tokenizer_that_was_saved_after_a_call_is_still_the_same(
    call: dict[str, Any], trained: Prepared, records: Records, write_jsonl: Writer, data: Maker, tmp_path: Path
) -> None:
    tokenizer, path = trained.tokenizer(), write_jsonl("x.jsonl", records(30))
    tokenizer("a text", **call)
    tokenizer.save_pretrained(tmp_path / "given")
    settings = data(path, tokenizer=str(tmp_path / "given"))
    first = prepare(settings, quiet=True)
    assert prepare(settings, quiet=True, expected=first.contents()).path == first.path
    plain = prepare(data(path, tokenizer=str(trained.path / "tokenizer")), quiet=True)
    assert first.contents() == plain.contents()


def test_a_vocabulary_with_holes_reaches_to_its_last_id(
    records: Records, write_jsonl: Writer, data: Maker, tmp_path: Path
) -> None:
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "<s>": 20}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    given = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", bos_token="<s>")
    given.save_pretrained(tmp_path / "given")
    prepared = prepare(data(write_jsonl("x.jsonl", records(60)), tokenizer=str(tmp_path / "given")), quiet=True)
    assert prepared.rows("train")[:]["input_ids"].max() == 20
    assert prepared.vocab_size == 21


def test_a_tokenizer_that_loses_text_gives_no_bits_per_byte(
    records: Records, write_jsonl: Writer, data: Maker, tmp_path: Path
) -> None:
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "the": 2}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    given = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", bos_token="<s>")
    given.save_pretrained(tmp_path / "given")
    prepared = prepare(data(write_jsonl("x.jsonl", records(60)), tokenizer=str(tmp_path / "given")), quiet=True)
    valid = prepared.manifest["splits"]["valid"]
    assert valid["lost"] == valid["documents"] > 0
    assert valid["bytes_per_token"] is None
    assert "do not decode" in prepared.summary()
    with pytest.raises(DataError, match="its tokens do not decode"):
        prepared.bytes_per_token("valid")


def test_ids_without_any_tokenizer(write_jsonl: Writer, data: Maker) -> None:
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, 20, size=40).tolist() for _ in range(50)]
    path = write_jsonl("ids.jsonl", [{"ids": row} for row in [*ids, ids[0]]])
    sources = [{"name": "files", "files": str(path), "ids_column": "ids"}]
    prepared = prepare(data("", sources=sources, tokenizer="none", vocab_size=20), quiet=True)
    assert prepared.manifest["duplicates"] == 1
    assert prepared.vocab_size == 20
    assert prepared.manifest["bytes_per_token"] is None
    flat = np.concatenate(prepared.rows("train")["input_ids"]).tolist()
    position = 0
    while position + 40 <= len(flat):
        assert flat[position : position + 40] in ids
        position += 40
    for refused in (prepared.tokenizer, lambda: prepared.documents("valid")):
        with pytest.raises(DataError, match="without a tokenizer"):
            refused()
    with pytest.raises(DataError, match="no text"):
        prepared.bytes_per_token("valid")
    with pytest.raises(DataError, match="the splits are train, valid, test"):
        prepared.rows("dev")
