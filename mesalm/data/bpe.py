"""Tokenizers: train byte-level BPE on the corpus or load one, and encode text without producing special ids."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mesalm.files import expanded, fingerprints
from mesalm.pretrained import load

from .documents import DataError

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
PIECE = 1_000_000
BORDER = re.compile(r"(?<=\S)\n(?=\S)")
# Training time grows with the square of a word's length, and text without spaces is one word.
LONGEST_WORD = 1024


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer, which has no unknown token and decodes the tokens of any text to that text.

    Digits are split one by one, other text by the pattern of GPT-2 (Radford et al. 2019), and longer words every
    ``LONGEST_WORD`` bytes. Id 0 is ``<|endoftext|>``, both bos and eos; id 1 is ``<|pad|>``. The result depends only on
    the texts and the size; a small corpus can give fewer than ``vocab_size`` tokens. ``tokenizer(text)`` adds the start
    token (`add_start_token`) unless called with ``add_special_tokens=False``.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            pre_tokenizers.FixedLength(LONGEST_WORD),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    add_start_token(tokenizer)
    return tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder, a run folder (from its ``final``) or the Hub.

    Raises DataError if there is none, or if it has no token to begin a document with.
    """
    folder = expanded(name)
    if folder.is_file():
        raise DataError(f"data.tokenizer: {name} is a file; give a folder, a Hub name or 'train'")
    final = folder / "final"
    place = final if final.is_dir() else folder
    try:
        tokenizer: PreTrainedTokenizerBase = load(
            AutoTokenizer, str(place) if place.exists() else name, "tokenizer", name=f"data.tokenizer: {name}"
        )
    except ValueError as error:
        raise DataError(str(error)) from error
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise DataError(f"data.tokenizer: {name} has no bos or eos token to begin documents with; choose another")
    return tokenizer


def begin_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that begins every document: bos, or eos if the tokenizer has no bos."""
    chosen = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return int(chosen)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return one more than a tokenizer's largest id, which can exceed the number of its tokens."""
    return max(len(tokenizer), *(number + 1 for number in tokenizer.get_vocab().values()))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the ids of a prompt after the start token; ValueError if there is no token at all.

    The start token is bos, or without one what the tokenizer itself puts before texts (`add_start_token`), if anything.
    """
    bos = tokenizer.bos_token_id
    begin = tokenizer("")["input_ids"][:1] if bos is None else [bos]
    ids = [*begin, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    if not ids:
        raise ValueError("prompt: it is empty and the tokenizer has no beginning-of-text token; give some text")
    return ids


def add_start_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make ``tokenizer(text)`` return what models read in training: the token of `begin_id`, then the text's tokens.

    Changes the tokenizer in place, unless it does so already or cannot be changed (a slow one). The second text of
    a pair gets the token too.
    """
    begin = begin_id(tokenizer)
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    if not tokenizer.is_fast or tokenizer("a")["input_ids"] == [begin, *plain]:
        return
    token = tokenizer.convert_ids_to_tokens(begin)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[f"{token}:0", "$A:0"],
        pair=[f"{token}:0", "$A:0", f"{token}:1", "$B:1"],
        special_tokens=[(token, begin)],
    )


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a sha256 over everything in a tokenizer that affects the ids of plain text and the start token.

    Padding and truncation settings, which a tokenizer keeps from its last call, are excluded.
    """
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        other = dict.fromkeys(("post_processor", "padding", "truncation"))
        content = json.dumps({**rules, **other}, sort_keys=True)
    else:
        content = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    specials = json.dumps([tokenizer.bos_token_id, tokenizer.eos_token_id])
    return hashlib.sha256(f"{content}\0{specials}".encode()).hexdigest()


def folder_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a sha256 over all files of a saved tokenizer, including padding and chat template."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        saved = [[name, found["sha256"]] for name, found in fingerprints(Path(folder)).items()]
    return hashlib.sha256(json.dumps(saved).encode()).hexdigest()


def count_lost(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], encoded: Sequence[list[int]]) -> int:
    """Count the texts that decoding their tokens does not restore.

    Such tokens also stand for other texts, so their probability is not that of the text. Differences in canonical
    composition (NFC), or of one space at the beginning that some tokenizers add, are ignored.
    """
    decoded = tokenizer.batch_decode(list(encoded), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return sum(_canonical(text) != _canonical(back) for text, back in zip(texts, decoded, strict=True))


def _canonical(text: str) -> str:
    return unicodedata.normalize("NFC", text).removeprefix(" ")


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """Cut a long text into parts of at least ``size`` characters at single line ends.

    The GPT-2 pattern always splits after a line end between two characters that are not white space,
    so the tokens are those of the whole text. This saves memory for long texts.
    """
    begin = 0
    while (border := BORDER.search(text, begin + size)) is not None:
        yield text[begin : border.end()]
        begin = border.end()
    yield text[begin:]


@dataclass(frozen=True)
class Encoder:
    """Encodes texts for training: the beginning id, then the text as plain text.

    A special token spelt out in a text is encoded by its characters, never as the special id.
    """

    tokenizer: PreTrainedTokenizerBase
    cut: bool

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Encode texts; raise DataError if the tokenizer turns plain text into special ids."""
        parts: list[str] = []
        counts: list[int] = []
        for text in texts:
            cuts = list(pieces(text)) if self.cut else [text]
            parts.extend(cuts)
            counts.append(len(cuts))
        options: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False}
        encoded = self.tokenizer(parts, add_special_tokens=False, split_special_tokens=True, verbose=False, **options)[
            "input_ids"
        ]
        begin = begin_id(self.tokenizer)
        specials = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id} - {None}
        rows = []
        position = 0
        for count in counts:
            row = [begin]
            for part in encoded[position : position + count]:
                row.extend(part)
            position += count
            if any(row.count(special) > (special == begin) for special in specials):
                raise DataError(
                    f"tokenizer {self.tokenizer.name_or_path}: encodes text that spells out a special token as "
                    "that token; choose a fast tokenizer"
                )
            rows.append(row)
        return rows
