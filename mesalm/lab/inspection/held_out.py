"""Windows of held-out text to show a model: a run's own validation split, or files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mesalm.data.bpe import Encoder
from mesalm.data.data_settings import SourceSettings
from mesalm.data.documents import Document, Faults
from mesalm.data.prepared import Prepared
from mesalm.data.read_files import FileSource
from mesalm.journal import read_journal
from mesalm.train.recipe_yaml import read_mapping

CHARACTERS_A_TOKEN = 32
"""Most characters read for each token wanted of a document, so that one huge file costs no more than its beginning."""


@dataclass(frozen=True)
class Run:
    """Say where the run that a model came from lies and what it was trained on; None where it is not known."""

    prepared: Path | None = None
    sequence_length: int | None = None


@dataclass(frozen=True)
class HeldOut:
    """Hold documents and where they came from: `sources` with the sha256 of each, as `mesalm prepare` notes them."""

    documents: Iterable[Document]
    description: str
    sources: list[dict[str, Any]]


@dataclass(frozen=True)
class Windows:
    """Hold windows of one length, lists of token ids, and the documents they were cut from, one a window."""

    tokens: list[list[int]] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)


def find_run(model: str) -> Run:
    """Find the run that a run folder, its `final/` or one of its checkpoints belongs to."""
    folder = Path(model).resolve()
    home = next((place for place in (folder, *folder.parents[:2]) if (place / "journal.jsonl").is_file()), None)
    if home is None:
        return Run()
    starts = [event for event in read_journal(home / "journal.jsonl") if event.get("event") == "start"]
    prepared = starts[-1].get("prepared") if starts else None
    recipe = home / "recipe.yaml"
    data = read_mapping(recipe).get("data") if recipe.is_file() else None
    length = data.get("sequence_length") if isinstance(data, dict) else None
    return Run(Path(prepared) if prepared else None, int(length) if length else None)


def held_out_text(model: str, run: Run, texts: Sequence[str]) -> HeldOut:
    """Return the documents of the files named, or of the run's own validation split where none is named.

    Raises:
        ValueError: no files and no run, the run's prepared data is gone, or a file that cannot be read.
    """
    if texts:
        source = FileSource(SourceSettings.build({"name": "files", "files": list(texts)}))
        return HeldOut(source.documents(Faults()), ", ".join(texts), [{"name": "files", **source.identity()}])
    if run.prepared is None:
        raise ValueError(f"{model}: this is no run with text of its own; name a text file with --text")
    if not run.prepared.is_dir():
        raise ValueError(
            f"{run.prepared}: the run's prepared data is gone; prepare it again or name a file with --text"
        )
    prepared = Prepared(run.prepared)
    rows = prepared.documents("valid")
    documents = (Document(str(row["id"]), str(row["domain"]), text=str(row["text"])) for row in rows)
    return HeldOut(documents, "validation split of the run", prepared.manifest["sources"])


def cut_windows(text: HeldOut, tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> Windows:
    """Cut up to `count` windows of `length` tokens, each from within one document, so that no state restarts.

    A document begins with the token that begins documents in training. Documents are taken in their order, one
    window each; only where they do not suffice are later windows of the same documents taken.

    Raises:
        ValueError: no document is long enough, or the tokenizer has no token to begin a document with.
    """
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has neither bos nor eos, so a document has no beginning; use another model")
    first, later = Windows(), Windows()
    longest = 0
    for name, tokens in _encoded(text.documents, tokenizer, length * count * CHARACTERS_A_TOKEN):
        longest = max(longest, len(tokens))
        for begin in range(0, len(tokens) - length + 1, length):
            chosen = later if begin else first
            chosen.tokens.append(tokens[begin : begin + length])
            chosen.documents.append(name)
        if len(first.tokens) == count:
            break
    if not first.tokens:
        hint = f"give --length {longest} or less, or longer text" if longest >= 64 else "name longer text with --text"
        raise ValueError(f"no document has {length} tokens, the longest has {longest}; {hint}")
    return Windows((first.tokens + later.tokens)[:count], (first.documents + later.documents)[:count])


def _encoded(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, characters: int
) -> Iterator[tuple[str, list[int]]]:
    encode = Encoder(tokenizer, cut=False)
    for document in documents:
        if document.text:
            yield document.id, encode([document.text[:characters]])[0]
