"""Find passages that texts share, and training text that contains passages of evaluation files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mesalm.files import file_hash

from .documents import DataError, Faults
from .read_files import FileSource, matching_files
from .source_settings import SourceSettings

FACTOR = np.uint64(0x9E3779B97F4A7C15)
PASSAGE_WORDS = 13
"""The length in words of a passage that marks contamination, after Brown et al. 2020, appendix C."""

WORD = re.compile(r"\w+")


def passages(tokens: np.ndarray, length: int) -> np.ndarray:
    """Return a digest of the ``length`` tokens starting at each position: int64 [T] -> uint64 [T - length + 1].

    Digests are polynomials modulo 2^64, so chance collisions are very rare.
    """
    places = max(0, len(tokens) - length + 1)
    digests = np.zeros(places, dtype=np.uint64)
    for shift in range(length if places else 0):
        digests = digests * FACTOR + tokens[shift : shift + places].astype(np.uint64) + np.uint64(1)
    return digests


class Contamination:
    """The passages of evaluation files, with counts of the texts that contain one.

    Words are compared in lower case and without punctuation. A record of a .jsonl, .json, .csv or .parquet file counts
    as the text of all its columns. Raises DataError for an unreadable file, and if no file contains text.
    """

    def __init__(self, files: list[str]) -> None:
        self._words: dict[str, int] = {}
        paths = matching_files(files)
        self.counts: list[dict[str, Any]] = [
            {"name": path.name, "sha256": file_hash(path), "texts": 0, "short": 0, "documents": 0} for path in paths
        ]
        digests, owners = [], []
        for number, path in enumerate(paths):
            for text in evaluation_texts(path):
                ids = [self._words.setdefault(word, len(self._words) + 1) for word in _words(text)]
                found = passages(np.array(ids, dtype=np.int64), PASSAGE_WORDS)
                self.counts[number]["texts"] += 1
                self.counts[number]["short"] += len(found) == 0
                digests.append(found)
                owners.append(np.full(len(found), number))
        if not digests:
            raise DataError(f"{', '.join(files)}: no text to compare with; check data.decontaminate")
        self._digests, first = np.unique(np.concatenate(digests), return_index=True)
        self._owners = np.concatenate(owners)[first]

    def holds(self, text: str) -> bool:
        """Return whether a text shares a passage with the files, and count it for the file of the first one."""
        # Words that occur in no evaluation file are 0, so that they match no passage.
        ids = np.array([self._words.get(word, 0) for word in _words(text)], dtype=np.int64)
        here = passages(ids, PASSAGE_WORDS)
        shared = here[np.isin(here, self._digests)]
        if len(shared):
            self.counts[self._owners[np.searchsorted(self._digests, shared[0])]]["documents"] += 1
        return len(shared) > 0


def evaluation_texts(path: Path) -> Iterator[str]:
    """Yield the texts of an evaluation file: the whole of a .txt file, or all strings of each record."""
    source = FileSource(SourceSettings(name="files", files=[str(path)]), every_column=True)
    for record in source.records(path, Faults()):
        if record is not None:
            yield " ".join(_strings(record[2].values()))


def _strings(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _strings(value.values())
        elif isinstance(value, list):
            yield from _strings(value)


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())
