"""Windows from all of each document, every token predicted at most once, and little encoded."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesa_eval.measures.windows import BYTES_A_TOKEN, collect_windows, share_out
from mesa_eval.reading.documents import HeldOutDocument
from mesa_eval.reading.encoding import TextEncoder

WINDOW = 32


def numbered(name: str, size: int) -> HeldOutDocument:
    """Make a document in which every five bytes say where they stand."""
    return HeldOutDocument(name, "x", "".join(f" {place:04d}" for place in range(size // 5 + 1))[:size])


def places(encoder: TextEncoder, tokens: list[int], document: HeldOutDocument) -> range:
    """Return which bytes of a document a window predicts; with a byte-level tokenizer a byte is a token."""
    written = encoder.tokenizer.decode(tokens[1:], skip_special_tokens=True)
    begin = document.text.index(written)
    assert document.text.find(written, begin + 1) < 0
    return range(begin, begin + len(written))


@given(st.lists(st.integers(1, 30), max_size=8), st.integers(0, 200))
def test_an_equal_share(sizes: list[int], total: int) -> None:
    level = share_out(sizes, total)
    assert sum(min(size, level) for size in sizes) <= total
    assert level == max(sizes, default=0) or sum(min(size, level + 1) for size in sizes) > total


@pytest.mark.parametrize("wanted", [1, 4, 9, 40, 1000])
def test_windows_are_spread_over_all_of_a_document(tokenizer, wanted: int) -> None:
    encoder, document = TextEncoder(tokenizer), numbered("a", 40 * WINDOW)
    windows = [tokens for _, tokens in collect_windows(encoder, [document], WINDOW, wanted, 1000, seed=0)]
    assert len(windows) == min(wanted, 40)
    assert all(len(tokens) == WINDOW + 1 for tokens in windows)
    predicted = [places(encoder, tokens, document) for tokens in windows]
    begins = [own.start for own in predicted]
    assert begins == sorted(begins)
    gaps = [after - before for before, after in zip(begins, [*begins[1:], 40 * WINDOW], strict=True)]
    assert min(gaps) >= WINDOW  # no token is predicted twice
    assert gaps == pytest.approx([40 * WINDOW / len(windows)] * len(windows), abs=WINDOW)
    assert [tokens[0] == encoder.start_token for tokens in windows] == [True, *[False] * (len(windows) - 1)]
    for own, tokens in list(zip(predicted, windows, strict=True))[1:]:
        assert encoder.tokenizer.decode(tokens[:1]) == document.text[own.start - 1]


def test_documents_weigh_as_equally_as_they_can(tokenizer) -> None:
    encoder = TextEncoder(tokenizer)
    held_out = [
        numbered(name, int(size * WINDOW)) for name, size in (("a", 1), ("b", 3), ("c", 90), ("d", 50), ("e", 0.9))
    ]

    def counts(wanted: int, most: int = 1000, seed: int = 0) -> dict[str, int]:
        windows = collect_windows(encoder, held_out, WINDOW, wanted, most, seed)
        assert windows == collect_windows(encoder, held_out[::-1], WINDOW, wanted, most, seed)
        return dict(Counter(owner for owner, _ in windows))

    assert sorted(counts(2).values()) == [1, 1]
    assert counts(4) == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert counts(24) == {"a": 1, "b": 3, "c": 10, "d": 10}
    assert sorted(counts(11).items())[:2] == [("a", 1), ("b", 3)]
    assert sorted(counts(11).values()) == [1, 3, 3, 4]
    assert counts(1000) == {"a": 1, "b": 3, "c": 90, "d": 50}
    assert counts(1000, most=20) == {"a": 1, "b": 3, "c": 20, "d": 20}
    assert len({frozenset(counts(2, seed=seed)) for seed in range(9)}) > 1


def test_of_a_long_text_pieces_are_encoded(tokenizer) -> None:
    """A book of some 1,500 windows, of which four are wanted."""
    encoded: list[int] = []

    class Watched(TextEncoder):
        def encode_all(self, texts):
            encoded.append(sum(map(len, texts)))
            return super().encode_all(texts)

    encoder, book = Watched(tokenizer), numbered("book", 49_995)
    windows = [tokens for _, tokens in collect_windows(encoder, [book], WINDOW, 4, 4, seed=0)]
    assert 0 < sum(encoded) <= 4 * BYTES_A_TOKEN * (WINDOW + 1)
    begins = [places(encoder, tokens, book).start for tokens in windows]
    assert begins == pytest.approx([place * 49_995 / 4 for place in range(4)], abs=2 * WINDOW)
    assert [tokens[0] == encoder.start_token for tokens in windows] == [True, False, False, False]
    assert all(encoder.tokenizer.decode(tokens[:1]) == " " for tokens in windows[1:])
    accented = HeldOutDocument("accents", "x", "é" * 30_000)  # no white space, and pieces that begin within a character
    others = [tokens for _, tokens in collect_windows(encoder, [accented], WINDOW, 5, 5, seed=0)][1:]
    assert len(others) == 4
    assert {token for tokens in others for token in tokens} == set(encoder.encode("é"))
