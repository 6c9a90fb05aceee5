"""The documents of all sources in one Arrow file, without duplicates, each with its split and order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from datasets.utils import tqdm
from rensa import RMinHashDeduplicator
from transformers import PreTrainedTokenizerBase

from mesalm.wording import plural

from .bpe import vocabulary_size
from .contamination import Contamination
from .data_settings import DataSettings
from .documents import DataError, Document, Faults, Source

SHINGLE_WORDS = 5
PERMUTATIONS = 128
BANDS = 32
"""Bands of four values: a pair of similarity 0.8 is compared with probability 1 - 5e-8, one of 0.5 with 0.87."""

WORD = re.compile(r"\w+|[^\w\s]")


class NearCopies:
    """The documents so far, each as a sketch of its 5-grams of words and punctuation marks.

    Sketches are those of MinHash (Broder 1997), compared by locality-sensitive hashing.
    A document is a near-copy if the Jaccard similarity of its 5-grams with those of an earlier one is estimated at
    ``threshold`` or more, with a standard error of at most 0.04.
    """

    def __init__(self, threshold: float) -> None:
        self._seen = RMinHashDeduplicator(
            threshold=threshold, num_perm=PERMUTATIONS, use_lsh=True, num_bands=BANDS, seed=0
        )
        self._count = 0

    def add(self, text: str) -> bool:
        """Add a document; return False, without adding it, if it is a near-copy."""
        words = WORD.findall(text)
        runs = [" ".join(words[at : at + SHINGLE_WORDS]) for at in range(max(1, len(words) - SHINGLE_WORDS + 1))]
        self._count += 1
        return bool(self._seen.add_pairs([(str(self._count), runs)])[0])


SPLITS = ("train", "valid", "test")


def content_digest(document: Document) -> bytes:
    """Return a digest of a document's text (of its ids if it has no text); duplicates have equal digests."""
    if document.text is not None:
        return hashlib.blake2b(document.text.encode("utf-8"), digest_size=16).digest()
    ids = np.asarray(document.input_ids, dtype="<i8")
    return hashlib.blake2b(ids.tobytes(), digest_size=16, person=b"ids").digest()


def split_and_order(digest: bytes, seed: int) -> tuple[float, int]:
    """Return a document's number in [0, 1), which decides its split, and its sort key within the split.

    Both depend only on the seed and the text, so adding documents moves none of the others.
    """
    mixed = hashlib.blake2b(digest, digest_size=16, key=str(seed).encode()).digest()
    return int.from_bytes(mixed[:6], "big") / 2.0**48, int.from_bytes(mixed[8:], "big")


def assign_splits(uses: Sequence[str], numbers: Sequence[float], settings: DataSettings) -> np.ndarray:
    """Return the split of each document as an index into SPLITS, int8 [documents].

    ``uses`` is the `use` of each document's source. If a held-out split with a fraction above 0 would be
    empty, it gets the train document with the smallest number. Raises DataError if there are too few documents.
    """
    free = np.array([use == "split" for use in uses], dtype=bool)
    fixed = np.array([SPLITS.index(use) if use != "split" else 0 for use in uses], dtype=np.int8)
    drawn = np.asarray(numbers, dtype=np.float64)
    valid_end = settings.valid_fraction
    test_end = valid_end + settings.test_fraction
    chosen = np.where(drawn < valid_end, 1, np.where(drawn < test_end, 2, 0)).astype(np.int8)
    splits = np.where(free, chosen, fixed).astype(np.int8)
    for index, fraction in ((1, settings.valid_fraction), (2, settings.test_fraction)):
        if fraction == 0.0 or not free.any() or (splits == index).any():
            continue
        candidates = np.flatnonzero(free & (splits == 0))
        if len(candidates) == 0 or np.count_nonzero(splits == 0) < 2:
            sample = ", raise data.stream_sample" if settings.stream else ""
            raise DataError(
                f"with {plural(len(splits), 'document')} there is no {SPLITS[index]} split; give more documents{sample}"
                f", give a source with use: {SPLITS[index]}, or set {SPLITS[index]}_fraction to 0"
            )
        splits[candidates[np.argmin(drawn[candidates])]] = index
    if not (splits == 0).any():
        raise DataError(
            "no documents are left to train on; give documents that are not held out, or lower the fractions"
        )
    return splits


# Held-out documents are read first, so that of a duplicate pair the training document is dropped.
READING_ORDER = ("test", "valid", "split", "train")
BATCH_BYTES = 32_000_000
BATCH_DOCUMENTS = 1000


class Gathered:
    """Writes the documents of all sources to the Arrow file ``path``, without empty, duplicate or contaminated ones.

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
        empty, shared = self.faults.empty_files, self._contamination.counts if self._contamination else []
        dropped = sum(file["documents"] for file in shared)
        counted = [f"{plural(self.faults.count, 'bad record')} skipped"] if self.faults.count else []
        counted += [f"{plural(len(empty), 'empty file')}, such as {empty[0]}"] if empty else []
        counted += [f"{plural(dropped, 'document')} dropped as contaminated"] if dropped else []
        copies = self.duplicates + self.faults.near_copies
        counted += [f"{plural(copies, 'copy')} dropped"] if copies else []
        why = f" ({', '.join(counted)})" if counted else ""
        if not self._found:
            look = "data.decontaminate" if dropped else "data.sources"
            raise DataError(f"the sources contain no documents{why}; check {look}")
        uses, numbered, numbers, order, sizes, domains = zip(*self._found, strict=True)
        try:
            self.splits = assign_splits(uses, numbers, settings)
        except DataError as error:
            raise DataError(f"{error}{why}") from None
        self.sources = np.array(numbered, dtype=np.int32)
        self.order = np.array(order, dtype=np.uint64)
        self.sizes = np.array(sizes, dtype=np.int64)
        self.domains = np.array(domains, dtype=np.int32)
        self.domain_names = list(self._domain_codes)

    @property
    def contamination(self) -> list[dict[str, Any]]:
        """Return the counts of contaminated documents by evaluation file; see `Contamination`."""
        return [] if self._contamination is None else self._contamination.counts

    def members(self, split: str, source: int | None = None) -> np.ndarray:
        """Return the indices of a split's documents, of one source or of all, in shuffled order, int64."""
        chosen = np.flatnonzero((self.splits == SPLITS.index(split)) & (source is None or self.sources == source))
        return chosen[np.argsort(self.order[chosen], kind="stable")]

    def _kept(self, sources: Sequence[Source]) -> Iterator[Document]:
        """Yield the documents that are not dropped, in reading order, and record the facts about each."""
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
                    f"document {document.id}: token id {max(ids)} is outside the vocabulary of {self._vocab_size}; "
                    "set the tokenizer (or vocab_size) that made the ids"
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
    """Group documents into tables small enough for memory; yields at least one table, even an empty one."""
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
