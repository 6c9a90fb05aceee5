"""Lines are encoded once and put together only where that gives the tokens of the whole."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mesa_eval.reading.encoding import TextEncoder, cuts_before_line_ends
from mesalm.data.bpe import train_tokenizer

PIECES = [
    "\n",
    "\n\n",
    " ",
    "  ",
    "\t",
    "\r\n",
    "a",
    "ab",
    "Q: up",
    "A:",
    " down",
    "7",
    "42",
    "'s",
    "-",
    "é",
    "\u00a0",
    "日",
    "<|endoftext|>",
]


def texts(count: int) -> list[str]:
    """Return texts that are mostly the places where words meet line ends."""
    chosen = random.Random(3)
    return ["".join(chosen.choices(PIECES, k=chosen.randint(1, 14))) for _ in range(count)]


def whole(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def test_lines_put_together_are_the_tokens_of_the_whole(make) -> None:
    merged = " ".join(texts(300))
    for tokenizer in (train_tokenizer([merged], 420), make.tokenizer(merges_from=merged, size=420)):
        assert cuts_before_line_ends(tokenizer)
        encoder = TextEncoder(tokenizer)
        asked = texts(600)
        assert encoder.encode_all(asked) == [whole(tokenizer, text) for text in asked]
        # the merges reach over line ends, so a cut elsewhere would show
        vocabulary = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        assert any("ĊĊ" in token for token in vocabulary)


def test_a_line_is_encoded_once(tokenizer) -> None:
    seen: list[str] = []

    class Watched(TextEncoder):
        def _encode_whole(self, texts):
            seen.extend(texts)
            return super()._encode_whole(texts)

    encoder = Watched(tokenizer)
    shown = "Q: up\nA: down\n\n"
    encoder.encode_pairs([(f"{shown * count}Q: in\nA:", f" {word}") for count in (1, 2, 3) for word in ("out", "up")])
    assert sorted(seen) == sorted(set(seen))
    assert set(seen) == {"Q: up", "\nA: down", "\n\nQ: up", "\n\nQ: in", "\nA:", "\nA: out", "\nA: up"}


def test_memory_of_lines_is_bounded(tokenizer) -> None:
    encoder = TextEncoder(tokenizer, most_known=3)
    for number in range(20):
        text = f"a\nb{number}\nc{number}"
        assert encoder.encode(text) == whole(tokenizer, text)
        assert len(encoder._known) <= 3 + 3


def make_other(kind: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer that may join what stands on both sides of a line's end, or changes it."""
    core = Tokenizer(models.BPE() if kind != "unigram" else models.Unigram())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "space", use_regex=kind != "no pattern")
    if kind == "normalised":
        core.normalizer = normalizers.NFKC()
    if kind == "metaspace":
        core.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    if kind == "unigram":
        trainer = trainers.UnigramTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(["a\nb a\nb ab\nab"] * 9, trainer)
    if kind == "added":
        core.add_tokens([AddedToken("a\nb", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.parametrize("kind", ["space", "no pattern", "normalised", "metaspace", "unigram", "added"])
def test_other_tokenizers_encode_whole_texts(kind: str) -> None:
    tokenizer = make_other(kind)
    assert not cuts_before_line_ends(tokenizer)
    assert TextEncoder(tokenizer).encode("a\nb ab\n a\nb") == whole(tokenizer, "a\nb ab\n a\nb")
