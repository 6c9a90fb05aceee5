from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesalm.data.bpe import Encoder, begin_id, load_tokenizer, pieces, tokenizer_hash, train_tokenizer
from mesalm.data.documents import DataError

TEXTS = ["def name(value):\n    return value + 1\n" * 5, "the state of the mesa\n\n  the value 1984\n" * 5]
ODD = [
    "",
    " ",
    "  two  spaces \t\r\n\x0b\x00\x1f",
    "𝔘𝔫𝔦 e\u0301 é \u200b\u200d\ufeff \ufffd \U0010ffff",
    "<|endoftext|> and <|pad|><|endoftext|>",
    "don't 12345 ٣٤ ²³ 日本語😀👩‍👩‍👧",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.mark.parametrize("text", ODD)
def test_odd_text_comes_back_exactly(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ids = Encoder(tokenizer, cut=True)([text])[0]
    assert tokenizer.decode(ids[1:]) == text


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text_comes_back_exactly(text: str) -> None:
    tokenizer = _trained()
    assert tokenizer.decode(Encoder(tokenizer, cut=True)([text])[0][1:]) == text


_kept: list = []


def _trained():
    if not _kept:
        _kept.append(train_tokenizer(TEXTS, 280))
    return _kept[0]


def test_special_tokens_spelt_out_are_plain_text(tokenizer) -> None:
    ids = Encoder(tokenizer, cut=False)(["a<|endoftext|>b<|pad|>"])[0]
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id == begin_id(tokenizer)
    assert not {tokenizer.bos_token_id, tokenizer.pad_token_id} & set(ids[1:])
    # The user's own call still knows special tokens afterwards, and adds none by itself.
    assert tokenizer("<|endoftext|>")["input_ids"] == [tokenizer.eos_token_id]


def test_a_tokenizer_that_leaks_special_ids_is_refused() -> None:
    class Leaky:
        bos_token_id = eos_token_id = 0
        name_or_path = "leaky"

        def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[5, 0, 6] for _ in texts]}

    with pytest.raises(DataError, match="spelt out"):
        Encoder(Leaky(), cut=False)(["x"])


def test_training_is_deterministic_and_survives_saving(tokenizer, tmp_path: Path) -> None:
    again = train_tokenizer(TEXTS, 300)
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)
    assert tokenizer_hash(_trained()) != tokenizer_hash(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)
    assert loaded.padding_side == "left"
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<|endoftext|>", "<|endoftext|>", "<|pad|>")
    batch = loaded(["the value", "the"], padding=True)
    assert batch["attention_mask"][1][0] == 0


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer could be opened"):
        load_tokenizer(str(tmp_path))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab1 \n\t\u2003é", max_size=60), st.integers(0, 8))
def test_cutting_a_long_text_changes_no_token(text: str, size: int) -> None:
    tokenizer = _trained()
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    # Compared by the borders between words, so that it holds whatever merges the tokenizer has.
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [word for part in parts for word, _ in words(part)] == [word for word, _ in words(text)]
