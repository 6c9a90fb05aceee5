"""Words of lines that people read."""

from __future__ import annotations

import re


def plural(count: int, word: str, words: str | None = None) -> str:
    """Return a count with its noun, such as 1 query, 2 queries, 3,000 documents.

    ``word`` is the noun of one, ``words`` that of several where that is not made by rule.
    """
    if count == 1:
        return f"1 {word}"
    if words is None:
        stem = re.sub(r"(?<=[^aeiou])y$", "ie", word)
        words = f"{stem}es" if re.search(r"(s|x|ch|sh)$", stem) else f"{stem}s"
    return f"{count:,} {words}"


def bad_byte(error: UnicodeDecodeError) -> str:
    """Return which byte of a text is not UTF-8, and where."""
    return f"byte 0x{error.object[error.start]:02x} at {error.start}"
