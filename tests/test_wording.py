"""Counts with their nouns."""

from __future__ import annotations

import pytest

from mesalm.wording import plural


@pytest.mark.parametrize(
    ("count", "word", "said"),
    [
        (1, "document", "1 document"),
        (0, "row", "0 rows"),
        (2, "query", "2 queries"),
        (3000, "day", "3,000 days"),
        (1, "copy", "1 copy"),
        (2, "process", "2 processes"),
        (2, "batch", "2 batches"),
    ],
)
def test_a_noun_follows_its_count(count: int, word: str, said: str) -> None:
    assert plural(count, word) == said


def test_a_noun_with_a_verb_has_its_own_words_of_several() -> None:
    assert plural(1, "run has", "runs have") == "1 run has"
    assert plural(1200, "run has", "runs have") == "1,200 runs have"
