"""The documents of all sources in one Arrow file, without duplicates, each with its split and order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mesalm.wording import plural

from .contamination import Contamination
from .data_settings import DataSettings
from .documents import DataError, Document, Faults, Source
from .near_copies import NearCopies
from .splits import SPLITS, assign_splits, content_digest, split_and_order

if TYPE_CHECKING:
    import pyarrow

# Held-out documents are read first: a train document equal to one of them is the duplicate.
READING_ORDER = ("test", "valid", "split", "train")
BATCH_BYTES = 32_000_000
BATCH_DOCUMENTS = 1000


@dataclass
class Gathered:
    """The documents of ``path`` (columns id, domain, text, input_ids), one entry per document.

    ``splits`` int8 indexes SPLITS; ``sources`` int32 index the sources of the settings; ``order`` uint64 is the rank
    key within a split; ``sizes`` int64 are UTF-8 bytes; ``domains`` int32 index ``domain_names``.
    """

    path: Path
    splits: np.ndarray
    sources: np.ndarray
    order: np.ndarray
    sizes: np.ndarray
    domains: np.ndarray
    domain_names: list[str]
    duplicates: int
    empty: int
    contamination: list[dict[str, Any]]
    faults: Faults

    def members(self, split: str, source: int | None = None) -> np.ndarray:
        """Return the numbers of a split's documents, of one source or of all, in the order of the rows, int64."""
        chosen = np.flatnonzero((self.splits == SPLITS.index(split)) & (source is None or self.sources == source))
        return chosen[np.argsort(self.order[chosen], kind="stable")]


class Gathering:
    """The reading of sources into one Arrow file; see `gather`."""

    def __init__(
        self,
        settings: DataSettings,
        vocab_size: int | None,
        decode: Callable[[list[int]], str] | None,
    ) -> None:
        self.settings = settings
        self.vocab_size = vocab_size
        self.decode = decode
        self.faults = Faults(settings.skip_bad, "; or set data.skip_bad=true to count and skip it")
        self.seen: set[bytes] = set()
        self.uses: list[str] = []
        self.sources: list[int] = []
        self.numbers: list[float] = []
        self.order: list[int] = []
        self.sizes: list[int] = []
        self.domains: list[int] = []
        self.domain_codes: dict[str, int] = {}
        self.duplicates = 0
        self.empty = 0
        self.near_copies = None if settings.deduplicate is None else NearCopies(settings.deduplicate)
        self.contamination = Contamination(settings.decontaminate) if settings.decontaminate else None

    def kept(self, sources: Sequence[Source]) -> Iterator[Document]:
        """Yield the documents that are kept, in reading order, and note what is known of each."""
        for use in READING_ORDER:
            for number, source in enumerate(sources):
                if self.settings.sources[number].use == use:
                    for document in source.documents(self.faults):
                        yield from self._kept(document, use, number)

    def _kept(self, document: Document, use: str, source: int) -> Iterator[Document]:
        if not document.text and not document.input_ids:
            self.empty += 1
            return
        ids = document.input_ids
        if ids is not None:
            if self.vocab_size is not None and max(ids) >= self.vocab_size:
                self.faults.bad(
                    f"document {document.id}: token id {max(ids)} is not below {self.vocab_size}, the size of "
                    "the vocabulary; set the tokenizer (or vocab_size) that made the ids"
                )
                return
            if self.decode is not None:
                document = Document(document.id, document.domain, self.decode(ids), ids)
        digest = content_digest(document)
        if digest in self.seen:
            self.duplicates += 1
            return
        self.seen.add(digest)
        if self._is_dropped(document.text, use):
            return
        number, order = split_and_order(digest, self.settings.seed)
        self.uses.append(use)
        self.sources.append(source)
        self.numbers.append(number)
        self.order.append(order)
        self.sizes.append(len((document.text or "").encode("utf-8")))
        self.domains.append(self.domain_codes.setdefault(document.domain, len(self.domain_codes)))
        yield document

    def _is_dropped(self, text: str | None, use: str) -> bool:
        """Return whether a text is contaminated or a near-copy, and count it."""
        if text is None:
            return False
        if self.contamination is not None and use in ("split", "train") and self.contamination.holds(text):
            return True
        if self.near_copies is None or self.near_copies.add(text):
            return False
        self.faults.near_copies += 1
        return True

    def result(self, path: Path) -> Gathered:
        """Assign the splits once everything has been read. Raises DataError without documents."""
        if not self.uses:
            empty, shared = self.faults.empty_files, self.contamination.counts if self.contamination else []
            dropped = sum(file["documents"] for file in shared)
            counted = [f"{plural(self.faults.count, 'bad record')} skipped"] if self.faults.count else []
            counted += [f"{plural(len(empty), 'empty file')}, such as {empty[0]}"] if empty else []
            counted += [f"{plural(dropped, 'document')} dropped as contaminated"] if dropped else []
            why = f" ({', '.join(counted)})" if counted else ""
            look = "data.decontaminate" if dropped else "data.sources"
            raise DataError(f"the sources hold no documents{why}; look at {look}")
        return Gathered(
            path,
            assign_splits(self.uses, self.numbers, self.settings),
            np.array(self.sources, dtype=np.int32),
            np.array(self.order, dtype=np.uint64),
            np.array(self.sizes, dtype=np.int64),
            np.array(self.domains, dtype=np.int32),
            list(self.domain_codes),
            self.duplicates,
            self.empty,
            [] if self.contamination is None else self.contamination.counts,
            self.faults,
        )


def gather(
    settings: DataSettings,
    sources: Sequence[Source],
    path: Path,
    *,
    vocab_size: int | None = None,
    decode: Callable[[list[int]], str] | None = None,
    progress: Callable[[Iterable[Document]], Iterable[Document]],
) -> Gathered:
    """Read every source into the Arrow file ``path``, without empty documents, copies and contaminated text.

    ``vocab_size`` bounds ready-made ids and ``decode`` gives their text; ``progress`` wraps the iterator
    of documents. Raises DataError for bad records (unless skipped) and when no documents remain.
    """
    gathering = Gathering(settings, vocab_size, decode)
    write_arrow(path, _tables(progress(gathering.kept(sources))))
    return gathering.result(path)


def write_arrow(path: Path, tables: Iterator[pyarrow.Table]) -> None:
    """Write tables of one schema as the Arrow stream that `datasets.Dataset.from_file` maps into memory."""
    import pyarrow

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
    import pyarrow

    columns: dict[str, Any] = {
        "id": pyarrow.array([document.id for document in documents], pyarrow.string()),
        "domain": pyarrow.array([document.domain for document in documents], pyarrow.string()),
        "text": pyarrow.array([document.text for document in documents], pyarrow.large_string()),
        "input_ids": pyarrow.array([document.input_ids for document in documents], pyarrow.list_(pyarrow.int32())),
    }
    return pyarrow.table(columns)
