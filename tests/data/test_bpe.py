from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mesalm.data.bpe import (
    LONGEST_WORD,
    Encoder,
    add_start_token,
    begin_id,
    count_lost,
    load_tokenizer,
    pieces,
    prompt_ids,
    tokenizer_hash,
    train_tokenizer,
)
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
    ids = Encoder(tokenizer, cut=True)([text])[0]
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer(text, split_special_tokens=True)["input_ids"] == ids


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text_comes_back_exactly(tokenizer, text: str) -> None:
    assert tokenizer.decode(Encoder(tokenizer, cut=True)([text])[0][1:]) == text


def test_special_tokens_spelt_out_are_plain_text(tokenizer) -> None:
    ids = Encoder(tokenizer, cut=False)(["a<|endoftext|>b<|pad|>"])[0]
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id == begin_id(tokenizer)
    assert not {tokenizer.bos_token_id, tokenizer.pad_token_id} & set(ids[1:])
    # The user's own call still knows special tokens afterwards.
    assert tokenizer("<|endoftext|>", add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]


def test_a_tokenizer_that_leaks_special_ids_is_refused() -> None:
    class Leaky:
        bos_token_id = eos_token_id = 0
        name_or_path = "leaky"

        def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[5, 0, 6] for _ in texts]}

    with pytest.raises(DataError, match="spells out"):
        Encoder(Leaky(), cut=False)(["x"])


LONG = {
    "letters": "x" * 300_000,
    "spaces": " " * 300_000,
    "signs": "-=" * 150_000,
    "base64": base64.b64encode(random.Random(0).randbytes(60_000)).decode(),
    "wide": "日本" * 20_000,
}


def test_unbroken_text_is_cut_into_words_of_bounded_length() -> None:
    tokenizer = train_tokenizer([*TEXTS, *LONG.values()], 400)
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    for name, text in LONG.items():
        assert max(len(word) for word, _ in words(text)) <= LONGEST_WORD, name
        assert tokenizer.decode(Encoder(tokenizer, cut=True)([text])[0][1:]) == text


def test_ordinary_text_trains_to_the_merges_of_plain_byte_level_bpe() -> None:
    texts = [*TEXTS, " ".join(ODD), "-" * 120 + "\n" + "日本語の文章" * 40]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<|pad|>"]
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=500, special_tokens=specials, initial_alphabet=alphabet)
    )
    ours = train_tokenizer(texts, 500)
    assert json.loads(ours.backend_tokenizer.to_str())["model"] == json.loads(core.to_str())["model"]
    assert [ids[1:] for ids in Encoder(ours, cut=True)(TEXTS)] == [core.encode(text).ids for text in TEXTS]


def given_tokenizer(processor: Any, **specials: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes with another's way of adding special tokens."""
    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    core.add_special_tokens(["<s>", "</s>"])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processor
    return PreTrainedTokenizerFast(tokenizer_object=core, **specials)


BOS, EOS = {"bos_token": "<s>", "eos_token": "</s>"}, {"eos_token": "</s>"}
TEMPLATE = processors.TemplateProcessing(
    single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
)


@pytest.mark.parametrize(
    ("processor", "specials"),
    [(processors.ByteLevel(), BOS), (processors.ByteLevel(), EOS), (TEMPLATE, BOS)],
    ids=["adds nothing", "has no bos", "ends texts too"],
)
def test_a_tokenizer_gives_what_a_model_reads_in_training(processor, specials, tmp_path: Path) -> None:
    tokenizer = given_tokenizer(processor, **specials)
    before = tokenizer_hash(tokenizer)
    read = Encoder(tokenizer, cut=False)(TEXTS)
    assert tokenizer(TEXTS)["input_ids"] != read
    add_start_token(tokenizer)
    add_start_token(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, load_tokenizer(str(tmp_path))):
        assert one(TEXTS)["input_ids"] == read
        assert Encoder(one, cut=False)(TEXTS) == read
        assert tokenizer_hash(one) == before
        assert prompt_ids(one, TEXTS[0]) == read[0]
        assert prompt_ids(one, "") == [begin_id(one)]


def words_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of a few words, or one of bytes that changes texts before it cuts them."""
    if kind == "unknown words":
        core = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "</s>": 2}, unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="</s>")
    core = given_tokenizer(processors.ByteLevel(), **EOS).backend_tokenizer
    space = kind == "a space put before"
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    if kind in NORMALIZERS:
        core.normalizer = NORMALIZERS[kind]
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", clean_up_tokenization_spaces=kind == "spaces cleaned when decoding"
    )


NORMALIZERS = {
    "small letters": normalizers.Lowercase(),
    "NFKC": normalizers.NFKC(),
    "NFC": normalizers.NFC(),
    "ends stripped": normalizers.Strip(),
}
TEXTS_LOST = ["the Mesa of ﬁne sand .", "e\u0301 plain"]


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        *[("unknown words", 2), ("small letters", 1), ("NFKC", 1), ("ends stripped", 0)],
        *[("NFC", 0), ("a space put before", 0), ("spaces cleaned when decoding", 0), ("plain", 0)],
    ],
)
def test_texts_that_do_not_come_back_are_counted(kind: str, lost: int) -> None:
    tokenizer = words_tokenizer(kind)
    encoded = [ids[1:] for ids in Encoder(tokenizer, cut=False)(TEXTS_LOST)]
    assert count_lost(tokenizer, TEXTS_LOST, encoded) == lost
    if kind == "ends stripped":
        assert count_lost(tokenizer, ["a  "], [ids[1:] for ids in Encoder(tokenizer, cut=False)(["a  "])]) == 1


def test_training_is_deterministic_and_survives_saving(tokenizer, tmp_path: Path) -> None:
    again = train_tokenizer(TEXTS, 300)
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)
    assert tokenizer_hash(train_tokenizer(TEXTS, 280)) != tokenizer_hash(tokenizer)
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
def test_cutting_a_long_text_changes_no_token(tokenizer, text: str, size: int) -> None:
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    # Compared by the borders between words, so that it holds whatever merges the tokenizer has.
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [word for part in parts for word, _ in words(part)] == [word for word, _ in words(text)]
