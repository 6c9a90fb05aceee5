"""Windows of held-out text, spread over the full length of each document.

A window contains T + 1 tokens of one document and is never packed. Documents take turns in contributing windows, for
weights as equal as the text allows, and their number per document is limited so that a few books do not dominate. The
windows of one document are spread evenly over it, and no token is predicted by two of them. A document's first window
begins with the start token; any other begins with the token before its first prediction, as a packed training row does
in the middle of a document.

The amount of encoded text is at most `BYTES_A_TOKEN` bytes per token needed, about eight times the need of English. If
there is more text, long documents are encoded in pieces, which are also spread evenly.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from mesa_eval.reading.documents import HeldOutDocument, in_turn
from mesa_eval.reading.encoding import TextEncoder

BYTES_A_TOKEN = 32
LONGEST_WORD = 256  # a piece begins at the first white space within this many characters


@dataclass(frozen=True)
class _Window:
    """A window's tokens and the approximate byte offset in the document where it begins."""

    place: int
    tokens: list[int]


def collect_windows(
    encoder: TextEncoder, documents: Sequence[HeldOutDocument], window: int, wanted: int, most: int, seed: int
) -> list[tuple[str, list[int]]]:
    """Collect up to `wanted` (document, window + 1 tokens), at most `most` per document; see the module's docstring.

    Documents are in a seeded order that alternates between domains; windows of one document are in text order.
    """
    piece = BYTES_A_TOKEN * (window + 1)
    candidates = [document for document in in_turn(documents, seed) if document.bytes >= window]
    share = share_out([document.bytes for document in candidates], wanted * piece)
    limit = max(piece, min(share, most * piece))
    found: list[tuple[HeldOutDocument, list[_Window]]] = []
    for document in candidates:
        if len(found) == wanted:
            break
        windows = _windows(encoder, document, window, limit, piece)
        if windows:
            found.append((document, windows))
    sizes = [min(len(windows), most) for _, windows in found]
    share = share_out(sizes, wanted)
    left = wanted - sum(min(size, share) for size in sizes)
    chosen: list[tuple[str, list[int]]] = []
    for size, (document, windows) in zip(sizes, found, strict=True):
        count = min(size, share)
        if left and size > share:
            count, left = count + 1, left - 1
        chosen.extend((document.identifier, one.tokens) for one in _spread(windows, count, document.bytes))
    return chosen


def share_out(sizes: Sequence[int], total: int) -> int:
    """Return the largest equal share with sum(min(size, share)) <= total, but at most the largest size.

    Sizes below the share leave their remainder to the others.
    """
    left = total
    for place, size in enumerate(sorted(sizes)):
        if size * (len(sizes) - place) > left:
            return left // (len(sizes) - place)
        left -= size
    return max(sizes, default=0)


def _windows(encoder: TextEncoder, document: HeldOutDocument, window: int, limit: int, size: int) -> list[_Window]:
    """Return all windows of a document or, if it exceeds `limit` bytes, those of pieces of `size` bytes."""
    raw = document.text.encode()
    if len(raw) <= limit:
        begins, size, texts = [0], len(raw), [document.text]
    else:
        pieces = limit // size
        begins = [place * len(raw) // pieces for place in range(pieces)]
        texts = [_from_a_space(raw[begin : begin + size], begin) for begin in begins]
    windows = []
    for begin, tokens in zip(begins, encoder.encode_all(texts), strict=True):
        row = tokens if begin else encoder.start() + tokens
        for first in range(0, len(row) - window, window):
            windows.append(_Window(begin + first * size // len(row), row[first : first + window + 1]))
    return windows


def _spread(windows: Sequence[_Window], count: int, size: int) -> list[_Window]:
    """Return `count` of the windows: as far as possible, the first in each of `count` equal stretches of text."""
    chosen, after = [], 0
    for place in range(count):
        first = bisect_left(windows, place * size // count, key=lambda one: one.place)
        after = min(max(after, first), len(windows) - count + place) + 1
        chosen.append(windows[after - 1])
    return chosen


def _from_a_space(raw: bytes, begin: int) -> str:
    """Return the text of a piece from its first white space on, without characters cut off at its ends."""
    text = raw.decode("utf-8", "ignore")
    space = re.search(r"\s", text[:LONGEST_WORD]) if begin else None
    return text[space.start() :] if space else text
