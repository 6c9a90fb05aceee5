"""The documents of all sources in one Arrow file, without duplicates, each with its split and order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from datasets.utils import tqdm
from transformers import PreTrainedTokenizerBase

from .bpe import vocabulary_size
from .contamination import Contamination
from .data_settings import DataSettings
from .documents import DataError, Document, Faults, Source
from .near_copies import NearCopies
from .splits import SPLITS, assign_splits, content_digest, split_and_order

# Held-out documents are read first: a train document equal to one of them is the duplicate.
READING_ORDER = ("test", "valid", "split", "train")
BATCH_BYTES = 32_000_000
BATCH_DOCUMENTS = 1000


class Gathered:
    """The documents of all sources in the Arrow file ``path``, without empty ones, copies and contaminated text.

    The file's columns are id, domain, text and input_ids. ``tokenizer`` bounds ready-made ids and gives their text;
    without one ``vocab_size`` of the settings bounds them.

    There is one entry per document: ``splits`` int8 indexes SPLITS; ``sources`` int32 index the sources of the
    settings; ``order`` uint64 is the rank key within a split; ``sizes`` int64 are UTF-8 bytes; ``domains`` int32 index
    ``domain_names``.

    Raises DataError for bad records (unless skipped) and without documents.
    """

    def __init__(
        self,
        settings: DataSettings,
        sources: Sequence[Source],
        tokenizer: PreTrainedTokenizerBase | None,
        path: Path,
    ) -> None:
        self.path = path
        self.faults = Faults(settings.skip_bad, "; or set data.skip_bad=true to count and skip it")
        self.duplicates = 0
        self.empty = 0
        self._settings, self._tokenizer = settings, tokenizer
        self._vocab_size = settings.vocab_size if tokenizer is None else vocabulary_size(tokenizer)
        self._near_copies = None if settings.deduplicate is None else NearCopies(settings.deduplicate)
        self._contamination = Contamination(settings.decontaminate) if settings.decontaminate else None
        self._seen: set[bytes] = set()
        self._domain_codes: dict[str, int] = {}
        self._found: list[tuple[str, int, float, int, int, int]] = []  # use, source, number, order, size and domain
        documents = tqdm(self._kept(sources), desc="Reading", unit=" documents", leave=False)
        write_arrow(path, _tables(documents))
        if not self._found:
            empty = self.faults.empty_files
            counted = [f"{self.faults.count} bad records were skipped"] if self.faults.count else []
            counted += [f"{len(empty)} empty files, such as {empty[0]}"] if empty else []
            why = f" ({', '.join(counted)})" if counted else ""
            raise DataError(f"the sources hold no documents{why}; look at data.sources")
        uses, numbered, numbers, order, sizes, domains = zip(*self._found, strict=True)
        self.splits = assign_splits(uses, numbers, settings)
        self.sources = np.array(numbered, dtype=np.int32)
        self.order = np.array(order, dtype=np.uint64)
        self.sizes = np.array(sizes, dtype=np.int64)
        self.domains = np.array(domains, dtype=np.int32)
        self.domain_names = list(self._domain_codes)

    @property
    def contamination(self) -> list[dict[str, Any]]:
        """Return what each evaluation file has in common with the text; see `Contamination`."""
        return [] if self._contamination is None else self._contamination.counts

    def members(self, split: str, source: int | None = None) -> np.ndarray:
        """Return the numbers of a split's documents, of one source or of all, in the order of the rows, int64."""
        chosen = np.flatnonzero((self.splits == SPLITS.index(split)) & (source is None or self.sources == source))
        return chosen[np.argsort(self.order[chosen], kind="stable")]

    def _kept(self, sources: Sequence[Source]) -> Iterator[Document]:
        """Yield the documents that are kept, in reading order, and note what is known of each."""
        for use in READING_ORDER:
            for number, source in enumerate(sources):
                if self._settings.sources[number].use == use:
                    for document in source.documents(self.faults):
                        yield from self._noted(document, use, number)

    def _noted(self, document: Document, use: str, source: int) -> Iterator[Document]:
        if not document.text and not document.input_ids:
            self.empty += 1
            return
        ids = document.input_ids
        if ids is not None:
            if max(ids) >= self._vocab_size:
                self.faults.bad(
                    f"document {document.id}: token id {max(ids)} is not below {self._vocab_size}, the size of "
                    "the vocabulary; set the tokenizer (or vocab_size) that made the ids"
                )
                return
            if self._tokenizer is not None:
                text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
                document = Document(document.id, document.domain, text, ids)
        digest = content_digest(document)
        if digest in self._seen:
            self.duplicates += 1
            return
        self._seen.add(digest)
        if self._is_dropped(document.text, use):
            return
        size = len((document.text or "").encode("utf-8"))
        domain = self._domain_codes.setdefault(document.domain, len(self._domain_codes))
        self._found.append((use, source, *split_and_order(digest, self._settings.seed), size, domain))
        yield document

    def _is_dropped(self, text: str | None, use: str) -> bool:
        """Return whether a text is contaminated or a near-copy, and count it."""
        if text is None:
            return False
        if self._contamination is not None and use in ("split", "train") and self._contamination.holds(text):
            return True
        if self._near_copies is None or self._near_copies.add(text):
            return False
        self.faults.near_copies += 1
        return True


def write_arrow(path: Path, tables: Iterator[pyarrow.Table]) -> None:
    """Write tables of one schema as the Arrow stream that `datasets.Dataset.from_file` maps into memory."""
    first = next(tables)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _tables(documents: Iterable[Document]) -> Iterator[pyarrow.Table]:
    """Group documents into tables small enough for memory; the first comes even if it is empty."""
    group: list[Document] = []
    size = 0
    yield _table([])
    for document in documents:
        group.append(document)
        size += len(document.text or "") + 4 * len(document.input_ids or ())
        if size >= BATCH_BYTES or len(group) >= BATCH_DOCUMENTS:
            yield _table(group)
            group, size = [], 0
    if group:
        yield _table(group)


def _table(documents: list[Document]) -> pyarrow.Table:
    columns: dict[str, Any] = {
        "id": pyarrow.array([document.id for document in documents], pyarrow.string()),
        "domain": pyarrow.array([document.domain for document in documents], pyarrow.string()),
        "text": pyarrow.array([document.text for document in documents], pyarrow.large_string()),
        "input_ids": pyarrow.array([document.input_ids for document in documents], pyarrow.list_(pyarrow.int32())),
    }
    return pyarrow.table(columns)
