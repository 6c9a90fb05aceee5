"""Text put into Markdown is read as it was written, by another reader of it."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mesalm.markdown import code, plain

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
ODD = [
    *["<b>bold</b> & <script>x</script>", "[a](javascript:x)", "![i](http://x)", "[a][b]", "[a]: http://x", "a | b"],
    *["`code`", "``", "**x** *y* __z__ _w_ key_value_recall", "~~s~~", "# x", "- y", "10. z", "1)", "---", "&amp;"],
    *["a\\", "\\|", "two\nlines", "<!-- gone", "-0.1 to +0.2 [0.1, 0.2]", "`a|b`", "+ p", "===", "$x$"],
]


def words(text: str) -> str:
    return " ".join(text.split())


def visible(page: str) -> str:
    return words(html.unescape(re.sub("<[^>]*>", " ", page)))


def check(text: str) -> None:
    shown = plain(text)
    assert READER.render(f"- {shown}") == READER.render("- x").replace("x", html.escape(words(text), quote=True))
    heading = READER.render(f"# {shown}")
    assert heading == f"<h1>{html.escape(words(text), quote=True)}</h1>\n"
    table = READER.render(f"| a | b |\n|---|---|\n| {shown} | {code(text)} |\n")
    assert re.findall("<(?!/?(?:table|thead|tbody|tr|th|td|code)>)[^>]*>", table) == []
    assert table.count("<td>") == 2
    assert visible(table) == words(f"a b {text} {text}")


@pytest.mark.parametrize("text", ODD)
def test_odd_text_is_read_as_written(text: str) -> None:
    check(text)


@example("1 #")
@example("a # ## ###")
@given(st.text(alphabet="ab1 |`*_[]()<>&#-+=.~\\!:", min_size=1, max_size=12).filter(str.strip))
def test_any_text_is_read_as_written(text: str) -> None:
    check(text)
