"""Pack documents end to end into rows of one length, and record where documents begin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PackedRows:
    """Some rows: ``input_ids`` int32 [rows, T]; ``segments`` int32, the segment lengths of all rows
    end to end; ``counts`` int64 [rows], the number of segments of each row. Lengths sum to T in a row."""

    input_ids: np.ndarray
    segments: np.ndarray
    counts: np.ndarray


class Packer:
    """Packs documents into rows of ``length`` tokens.

    The rest of a document in the next row is a new segment; each call of `pack` starts a new row. At the end,
    ``dropped`` is the number of tokens that did not fill a row, ``rows`` the number of rows, and ``digest`` a sha256 of
    the contents of the rows, however they are divided into files.
    """

    def __init__(self, length: int, rows_at_once: int = 2048) -> None:
        self.length = length
        self.rows_at_once = rows_at_once
        self.rows = 0
        self.dropped = 0
        self._parts = (hashlib.sha256(), hashlib.sha256())

    @property
    def digest(self) -> str:
        """Return the sha256, in hexadecimal, of the tokens and the segments of the rows so far."""
        both = b"".join(part.digest() for part in self._parts)
        return hashlib.sha256(f"{self.length} ".encode() + both).hexdigest()

    def pack(self, groups: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[PackedRows]:
        """Yield rows from groups of documents.

        A group is (tokens of its documents end to end, int [sum of lengths]; lengths, int [documents]).
        """
        waiting: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        held = 0
        for tokens, lengths in groups:
            waiting.append(np.asarray(tokens, dtype=np.int32))
            starts.append(held + np.cumsum(lengths) - lengths)
            held += len(tokens)
            if held >= self.length * self.rows_at_once:
                flat, begins = np.concatenate(waiting), np.concatenate(starts)
                end = held // self.length * self.length
                yield self._cut(flat[:end], begins[begins < end])
                waiting, starts = [flat[end:]], [begins[begins >= end] - end]
                held -= end
        end = held // self.length * self.length
        if end:
            flat, begins = np.concatenate(waiting), np.concatenate(starts)
            yield self._cut(flat[:end], begins[begins < end])
        self.dropped += held - end

    def _cut(self, flat: np.ndarray, begins: np.ndarray) -> PackedRows:
        rows = len(flat) // self.length
        self.rows += rows
        row_begins = np.arange(rows, dtype=np.int64) * self.length
        # An empty document has the same start as the next one; the union counts it once.
        borders = np.union1d(row_begins, begins)
        segments = np.diff(np.append(borders, len(flat))).astype(np.int32)
        counts = np.bincount(borders // self.length, minlength=rows)
        for part, values in zip(self._parts, (flat, segments), strict=True):
            part.update(values.astype("<i4").tobytes())
        return PackedRows(flat.reshape(rows, self.length), segments, counts)


def segment_positions(segments: np.ndarray) -> np.ndarray:
    """Return positions that restart at 0 in every segment, int64 [sum of segments]."""
    lengths = np.asarray(segments, dtype=np.int64)
    begins = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum(), dtype=np.int64) - np.repeat(begins, lengths)
