"""Near-copies among documents, found by MinHash (Broder 1997) with locality-sensitive hashing."""

from __future__ import annotations

import re

from rensa import RMinHashDeduplicator

SHINGLE_WORDS = 5
PERMUTATIONS = 128
BANDS = 32
"""Bands of four values: a pair of similarity 0.8 is compared with a chance of 1 - 5e-8, one of 0.5 of 0.87."""

WORD = re.compile(r"\w+|[^\w\s]")


class NearCopies:
    """The documents so far, each as a sketch of its runs of five words and marks.

    A document is a near-copy where the Jaccard similarity of its runs with those of one before it is estimated at
    ``threshold`` or more, with a standard error of 0.04 at most.
    """

    def __init__(self, threshold: float) -> None:
        self._seen = RMinHashDeduplicator(
            threshold=threshold, num_perm=PERMUTATIONS, use_lsh=True, num_bands=BANDS, seed=0
        )
        self._count = 0

    def add(self, text: str) -> bool:
        """Take in a document; return False, and forget it, where it is a near-copy."""
        words = WORD.findall(text)
        runs = [" ".join(words[at : at + SHINGLE_WORDS]) for at in range(max(1, len(words) - SHINGLE_WORDS + 1))]
        self._count += 1
        return bool(self._seen.add_pairs([(str(self._count), runs)])[0])
