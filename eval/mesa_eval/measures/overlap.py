"""Search the training text of the measured runs for long passages of the scored text.

The training text is stored as rows of tokens, so passages are runs of tokens, of about 50 bytes. Each scored document
is cut into consecutive runs, which are searched for at every position of the training rows. A passage is found wherever
it begins, if it is tokenised in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mesa_eval.reading.documents import HeldOutDocument
from mesalm.data.contamination import passages
from mesalm.data.read_python import COPIED_SHARE
from mesalm.wording import plural

PASSAGE_BYTES = 50
MOST_TRAINING_TOKENS = 20_000_000
TOKENS_AT_ONCE = 1_000_000


def overlap_notes(prepared: Iterable[Path], documents: Sequence[HeldOutDocument]) -> list[str]:
    """Return one note for each folder of prepared data: how many documents share passages with its training rows."""
    from mesalm.data.documents import DataError
    from mesalm.data.prepared import Prepared

    notes = []
    for place in dict.fromkeys(prepared):
        try:
            data = Prepared(place, checked=True)
            rows, tokenizer, size = data.rows("train"), data.tokenizer(), data.bytes_per_token("train")
        except DataError as error:
            notes.append(f"text: not compared with the training text of {place.name}: {error}")
            continue
        length = max(2, math.ceil(PASSAGE_BYTES / size))
        texts = [tokenizer(document.text, add_special_tokens=False)["input_ids"] for document in documents]
        shares, looked = shared_passages(texts, rows, length)
        touched, copies = sum(share > 0 for share in shares), sum(share > COPIED_SHARE for share in shares)
        part = "" if looked >= len(rows) else f", of which {looked:,} of {len(rows):,} rows were read"
        if data.manifest["settings"].get("stream"):
            part += ", which was streamed, so only its first documents are known"
        some = plural(len(documents), "document shares", "documents share")
        notes.append(
            f"text: {touched} of {some} a passage of {length} tokens (about {PASSAGE_BYTES} bytes) with the training "
            f"text in {place.name}{part}; {copies} of them more than half of the passages"
        )
    return notes


def shared_passages(
    texts: Sequence[Sequence[int]],
    rows: Any,
    length: int,
    *,
    most: int = MOST_TRAINING_TOKENS,
    at_once: int = TOKENS_AT_ONCE,
) -> tuple[list[float], int]:
    """Return, for each text, the share of its passages of `length` tokens that occur in the rows; and the rows read.

    rows: those of prepared data, with `input_ids` [T]. At most the first `most` tokens are read, `at_once` at a time. A
    text that is shorter than a passage has a share of 0.
    """
    own = [passages(np.asarray(text, dtype=np.int64), length)[::length] for text in texts]
    wanted = np.unique(np.concatenate(own)) if own else np.zeros(0, dtype=np.uint64)
    found = np.zeros(len(wanted), dtype=bool)
    looked = read = 0
    width = len(rows[0]["input_ids"]) if len(rows) else 1
    step = max(1, at_once // width)
    while len(wanted) and looked < len(rows) and read < most:
        tokens = np.concatenate([np.asarray(row) for row in rows[looked : looked + step]["input_ids"]])
        here = passages(tokens, length)
        at = np.searchsorted(wanted, here).clip(max=len(wanted) - 1)
        found[at[wanted[at] == here]] = True
        looked, read = looked + step, read + len(tokens)
    shares = [float(found[np.searchsorted(wanted, hashes)].mean()) if len(hashes) else 0.0 for hashes in own]
    return shares, min(looked, len(rows)) if len(wanted) else len(rows)
