"""A page of HTML as a list of tags, for tests of reports."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "link", "input"}
"""Elements that have no end."""


class Page(HTMLParser):
    """The tags of a page in order, each with its attributes, and its text; tags must nest and be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open, f"</{tag}> without a beginning"
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        """Return how often a tag stands there."""
        return sum(name == tag for name, _ in self.tags)

    def values(self, *names: str) -> list[str]:
        """Return the values of attributes of these names."""
        return [attributes[name] for _, attributes in self.tags for name in names if name in attributes]

    def check_references(self) -> None:
        """Assert that the page refers to nothing but its own parts."""
        ids = self.values("id")
        assert len(ids) == len(set(ids))
        references = self.values("src", "href", "xlink:href", "action", "data")
        assert set(references) <= {f"#{name}" for name in ids}
