"""The split of a document and its place there, from the seed and its text alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mesalm.wording import plural

from .data_settings import DataSettings
from .documents import DataError, Document

SPLITS = ("train", "valid", "test")


def content_digest(document: Document) -> bytes:
    """Return a digest of a document's text (of its ids where it has no text); equal means duplicate."""
    if document.text is not None:
        return hashlib.blake2b(document.text.encode("utf-8"), digest_size=16).digest()
    ids = np.asarray(document.input_ids, dtype="<i8")
    return hashlib.blake2b(ids.tobytes(), digest_size=16, person=b"ids").digest()


def split_and_order(digest: bytes, seed: int) -> tuple[float, int]:
    """Return a document's number in [0, 1) that decides its split, and its rank key within the split.

    Both depend on the seed and the text only, so adding documents moves none of the others.
    """
    mixed = hashlib.blake2b(digest, digest_size=16, key=str(seed).encode()).digest()
    return int.from_bytes(mixed[:6], "big") / 2.0**48, int.from_bytes(mixed[8:], "big")


def assign_splits(uses: Sequence[str], numbers: Sequence[float], settings: DataSettings) -> np.ndarray:
    """Return the split of each document as an index into SPLITS, int8 [documents].

    ``uses`` is the `use` of each document's source. A held-out split with a fraction above 0 that came
    out empty takes the train document with the smallest number. Raises DataError when documents run out.
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
            raise DataError(
                f"with {plural(len(splits), 'document')} there is no {SPLITS[index]} split; give more documents, give "
                f"a source with use: {SPLITS[index]}, or set {SPLITS[index]}_fraction to 0"
            )
        splits[candidates[np.argmin(drawn[candidates])]] = index
    if not (splits == 0).any():
        raise DataError("no document is left to train on; give documents that are not held out, or lower the fractions")
    return splits
