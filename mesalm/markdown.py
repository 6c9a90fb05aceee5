"""Any text as Markdown that shows it as it was written."""

from __future__ import annotations

import html
import re

# What CommonMark and GitHub's tables read as marks; a bracket matters only where a link can follow it, an underscore
# only at the end of a word, a dash only where no number follows, and hashes at the end only where they would close a
# heading, so that the source stays legible.
MARKS = re.compile(r"[\\`*|~]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|^[#+=-](?![\d.])|(?<= )#(?=#*$)")
NUMBERED = re.compile(r"^(\d+)(?=[.)](?:\s|$))")


def plain(text: str) -> str:
    """Return text for a heading, a list entry or a table cell: one line, no HTML, no marks."""
    line = html.escape(" ".join(text.split()), quote=False)
    return NUMBERED.sub(r"\1\\", MARKS.sub(r"\\\g<0>", line))


def code(text: str) -> str:
    """Return text as a code span, which a table cell may hold."""
    line = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    edge = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{edge}{line}{edge}{fence}".replace("|", r"\|")
