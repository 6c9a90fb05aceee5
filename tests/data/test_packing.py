from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mesalm.data.packing import Packer, segment_positions


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 23), max_size=30), st.integers(2, 9), st.integers(1, 4), st.integers(1, 5))
def test_rows_cut_by_segments_are_the_documents(lengths: list[int], length: int, rows_at_once: int, group: int) -> None:
    # Token 0 begins a document and no other token is 0, as bos does in prepared data.
    documents = [np.r_[0, np.arange(1, size)] + 100 * (np.arange(size) > 0) for size in lengths]
    groups = [documents[begin : begin + group] for begin in range(0, len(documents), group)]
    packer = Packer(length, rows_at_once)
    packed = list(packer.pack((np.concatenate(part), np.array([len(d) for d in part])) for part in groups))
    stream = np.concatenate([*documents, np.zeros(0, int)])
    rows = len(stream) // length
    assert packer.rows == rows == sum(len(part.input_ids) for part in packed)
    assert packer.dropped == len(stream) - rows * length
    flat = np.concatenate([part.input_ids.ravel() for part in packed] or [np.zeros(0, int)])
    assert np.array_equal(flat, stream[: rows * length])
    at = 0
    for part in packed:
        sizes = iter(part.segments.tolist())
        for row, count in zip(part.input_ids, part.counts, strict=True):
            pieces = [next(sizes) for _ in range(count)]
            assert sum(pieces) == length
            assert min(pieces) > 0
            begins = set(np.cumsum([0, *pieces[:-1]]).tolist())
            assert begins == {0} | set(np.flatnonzero(row == 0).tolist())
            at += length
    assert at == rows * length


def test_positions_restart_in_every_segment() -> None:
    assert segment_positions(np.array([3, 1, 2], dtype=np.int32)).tolist() == [0, 1, 2, 0, 0, 1]
    assert segment_positions(np.array([], dtype=np.int32)).tolist() == []
