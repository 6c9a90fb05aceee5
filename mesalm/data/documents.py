"""Documents, the base class of sources, and the handling of records that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from .source_settings import SourceSettings


class DataError(ValueError):
    """Data cannot be used; the one-line message names the file and line and says what to do."""


@dataclass(frozen=True)
class Document:
    """One document: its text, or its token ids if the source is already tokenised."""

    id: str
    domain: str
    text: str | None = None
    input_ids: list[int] | None = None


@dataclass
class Faults:
    """Handles bad records: raises at the first or, with ``skip_bad``, counts them; also counts what sources skip.

    ``way_out`` ends every message and says how to skip bad records, if that is possible. ``empty_files``: files
    without content.
    """

    skip_bad: bool = False
    way_out: str = ""
    count: int = 0
    examples: list[str] = field(default_factory=list)
    undecodable: int = 0
    empty_files: list[str] = field(default_factory=list)
    near_copies: int = 0

    def bad(self, message: str) -> None:
        """Record one bad file or record; raises DataError with ``message`` unless ``skip_bad``."""
        if not self.skip_bad:
            raise DataError(message + self.way_out)
        self.count += 1
        if len(self.examples) < 20:
            # column names may contain lone surrogates, which cannot be written
            self.examples.append(message.encode("utf-8", "backslashreplace").decode("utf-8"))


class Source:
    """Base class of corpus readers, which define `identity` and `read`; `mesalm.data.corpora.SOURCES` lists them."""

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings

    @property
    def licence(self) -> str | None:
        """The licence that the corpus states, for its card, if any."""
        return None

    def identity(self) -> dict[str, Any]:
        """Return what identifies the contents (hashes, versions), for the cache key and the manifest."""
        raise NotImplementedError

    def read(self, faults: Faults) -> Iterator[Document]:
        """Yield all documents in a fixed order; report unreadable records to ``faults``."""
        raise NotImplementedError

    def documents(self, faults: Faults) -> Iterator[Document]:
        """Yield the first ``limit`` documents."""
        return islice(self.read(faults), self.settings.limit)

    def shards(self) -> list[Source]:
        """Return sources that together, in order, yield this source's documents, ignoring ``limit``."""
        return [self]


def record_document(
    record: Mapping[str, Any], where: str, default_id: str, settings: SourceSettings, faults: Faults
) -> Document | None:
    """Make a document from one record of a table or JSON file.

    ``where`` (file and line) begins every error. Returns None when the record was bad and skipped.
    """
    column = settings.ids_column or settings.text_column
    if column not in record:
        option = "ids_column" if settings.ids_column else "text_column"
        names = ", ".join(str(name) for name in record) or "none"
        faults.bad(f"{where}: no column {column!r} (columns: {names}); set {option} to the right one")
        return None
    value = record[column]
    domain = settings.domain or record.get(settings.domain_column)
    identity = record.get(settings.id_column)
    name = default_id if identity is None else str(identity)
    label = settings.name if domain is None else str(domain)
    for key, text in ((column, value), (settings.domain_column, label), (settings.id_column, name)):
        if isinstance(text, str) and not is_unicode(text):
            faults.bad(f"{where}: column {key!r} holds half a surrogate pair, not Unicode; correct the record")
            return None
    if settings.ids_column:
        if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
            found = "a list with other items" if isinstance(value, list) else _kind(value)
            faults.bad(f"{where}: column {column!r} must be a list of whole numbers >= 0, not {found}")
            return None
        return Document(name, label, input_ids=value)
    if not isinstance(value, str):
        faults.bad(f"{where}: column {column!r} must be text, not {_kind(value)}; correct the record")
        return None
    return Document(name, label, text=value)


def is_unicode(text: str) -> bool:
    """Return whether ``text`` can be encoded as UTF-8 (a lone surrogate from a JSON escape cannot)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
