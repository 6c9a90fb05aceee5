"""Words of lines that people read."""

from __future__ import annotations

import re


def plural(count: int, word: str) -> str:
    """Return a count with its noun, such as 1 query, 2 queries, 3,000 documents; ``word`` is the noun of one."""
    if count != 1:
        stem = re.sub(r"(?<=[^aeiou])y$", "ie", word)
        word = f"{stem}es" if re.search(r"(s|x|ch|sh)$", stem) else f"{stem}s"
    return f"{count:,} {word}"
