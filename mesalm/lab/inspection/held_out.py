"""Windows of held-out text, from a run's validation split or from files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mesalm.data.bpe import Encoder
from mesalm.data.documents import Document, Faults
from mesalm.data.prepared import Prepared
from mesalm.data.read_files import FileSource
from mesalm.data.source_settings import SourceSettings

CHARACTERS_PER_TOKEN = 32
"""Maximum number of characters read per token wanted, so that only the beginning of a huge file is read."""


@dataclass(frozen=True)
class HeldOut:
    """Documents and their origin: `sources` with the sha256 of each, as recorded by `mesalm prepare`."""

    documents: Iterable[Document]
    description: str
    sources: list[dict[str, Any]]


@dataclass(frozen=True)
class Windows:
    """Windows of equal length as lists of token ids, and the document each was cut from."""

    tokens: list[list[int]] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)


def held_out_text(model: str, folder: Path | None, texts: Sequence[str]) -> HeldOut:
    """Return the documents of the given files, or by default those of the validation split of a run's data.

    `folder` is the folder of the run's prepared data, None if there is no run.

    Raises:
        ValueError: there are neither files nor a run, its prepared data is gone, or a file cannot be read.
    """
    if texts:
        source = FileSource(SourceSettings.build({"name": "files", "files": list(texts)}))
        return HeldOut(source.documents(Faults()), ", ".join(texts), [{"name": "files", **source.identity()}])
    if folder is None:
        raise ValueError(f"{model}: not a run with its own text; name a text file with --text")
    if not folder.is_dir():
        raise ValueError(f"{folder}: the run's prepared data is gone; prepare it again or name a file with --text")
    prepared = Prepared(folder)
    rows = prepared.documents("valid")
    documents = (Document(str(row["id"]), str(row["domain"]), text=str(row["text"])) for row in rows)
    return HeldOut(documents, "validation split of the run", prepared.manifest["sources"])


def cut_windows(text: HeldOut, tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> Windows:
    """Cut up to `count` windows of `length` tokens, each from a single document, so that no state is reset.

    Documents begin with the same token as in training. Each document yields one window, in order; if these are too
    few, further windows are taken from the same documents.

    Raises:
        ValueError: no document is long enough, or the tokenizer has neither a bos nor an eos token.
    """
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has neither bos nor eos, so a document has no beginning; use another model")
    first, later = Windows(), Windows()
    longest = 0
    encode, most = Encoder(tokenizer, cut=False), length * count * CHARACTERS_PER_TOKEN
    for document in text.documents:
        tokens = encode([document.text[:most]])[0] if document.text else []
        longest = max(longest, len(tokens))
        for begin in range(0, len(tokens) - length + 1, length):
            chosen = later if begin else first
            chosen.tokens.append(tokens[begin : begin + length])
            chosen.documents.append(document.id)
        if len(first.tokens) == count:
            break
    if not first.tokens:
        hint = f"give --length {longest} or less, or longer text" if longest >= 64 else "name longer text with --text"
        raise ValueError(f"no document has {length} tokens, the longest has {longest}; {hint}")
    return Windows((first.tokens + later.tokens)[:count], (first.documents + later.documents)[:count])
