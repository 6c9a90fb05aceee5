"""Held-out text: documents from files or from a run's prepared data, and declared subsamples of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mesalm.data.documents import Faults
from mesalm.data.read_files import FileSource
from mesalm.data.source_settings import SourceSettings


@dataclass(frozen=True)
class HeldOutDocument:
    """A document; `identifier` is unique within a collection, `file` the name of the file it came from."""

    identifier: str
    domain: str
    text: str
    file: str = ""

    @property
    def bytes(self) -> int:
        """Return the length of the text in UTF-8 bytes."""
        return len(self.text.encode())


def read_documents(paths: Sequence[str], notes: list[str] | None = None) -> list[HeldOutDocument]:
    """Read the files that training can read (see `mesalm.data.read_files`), by path, glob or folder.

    A record may have `domain` and `id`; the default domain is the file's name. Raises ValueError with one line
    that names file and line for a missing file, a broken line, a wrong encoding, or if no file has text. Files without
    text among others are left out and named in ``notes``.
    """
    documents: list[HeldOutDocument] = []
    for pattern in paths:
        source, began = FileSource(SourceSettings.build({"name": "files", "files": [pattern]})), len(documents)
        for path in source.paths:
            stem = path.name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[0]
            before = len(documents)
            for document in source.file(path, Faults()):
                if document.text and document.text.strip():
                    domain = stem if document.domain == "files" else document.domain
                    documents.append(HeldOutDocument(document.id, domain, document.text, stem))
            if len(documents) == before and notes is not None:
                notes.append(f"{path} contains no text and was left out")
        if len(documents) == began:
            raise ValueError(f"{pattern}: holds no text")
    return _unique(documents)


def held_out_documents(prepared: Path, split: str) -> list[HeldOutDocument]:
    """Read the documents of a split of a prepared data folder; ValueError if it is gone or has none."""
    from mesalm.data.prepared import Prepared

    if not prepared.is_dir():
        raise ValueError(
            f"{prepared}: the run's prepared data is gone; prepare it again or name text files with --text"
        )
    rows = Prepared(prepared).documents(split)
    documents = [
        HeldOutDocument(str(row["id"]), str(row["domain"]), str(row["text"])) for row in rows if row["text"].strip()
    ]
    if not documents:
        raise ValueError(f"{prepared}: split {split!r} holds no text")
    return _unique(documents)


def subsample(
    documents: Sequence[HeldOutDocument], *, total_bytes: int | None, document_bytes: int | None, seed: int
) -> list[HeldOutDocument]:
    """Choose documents, independently of any model, in a seeded order that cycles through the domains.

    Each document is cut to its first `document_bytes` bytes (at a character), and documents are taken up to
    `total_bytes` in all. None means no limit. The result depends only on texts and seed.
    """
    chosen: list[HeldOutDocument] = []
    used = 0
    for document in in_turn(documents, seed):
        if total_bytes is not None and used >= total_bytes:
            break
        cut = document
        if document_bytes is not None and document.bytes > document_bytes:
            cut = replace(document, text=document.text.encode()[:document_bytes].decode("utf-8", "ignore"))
        if cut.text:
            chosen.append(cut)
            used += cut.bytes
    return chosen


def in_turn(documents: Sequence[HeldOutDocument], seed: int) -> list[HeldOutDocument]:
    """Return the documents in a seeded order that cycles through the domains until they are exhausted."""
    by_domain: dict[str, list[HeldOutDocument]] = {}
    for document in sorted(documents, key=lambda document: document.identifier):
        by_domain.setdefault(document.domain, []).append(document)
    queues = []
    for domain in sorted(by_domain):
        generator = np.random.default_rng([seed, stable_number(domain)])
        queues.append([by_domain[domain][i] for i in generator.permutation(len(by_domain[domain]))])
    longest = max((len(queue) for queue in queues), default=0)
    return [queue[i] for i in range(longest) for queue in queues if i < len(queue)]


def stable_number(*words: object) -> int:
    """Return a 32-bit number that depends only on the words, for seeding a generator."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, words)).encode()).digest()[:4], "big")


def text_fingerprint(documents: Sequence[HeldOutDocument]) -> str:
    """Return the sha256 over identifiers, domains and texts in order."""
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.identifier, document.domain, document.text):
            raw = part.encode()
            digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()


def told_apart(names: Sequence[str], sign: str) -> list[str]:
    """Append a number after `sign` to repeated names, so that all names are unique."""
    seen: dict[str, int] = {}
    result: dict[str, None] = {}
    for name in names:
        count = seen.get(name, 0) + 1
        own = name if count == 1 else f"{name}{sign}{count}"
        while own in result:  # also where one is called what another's number makes of its name
            count += 1
            own = f"{name}{sign}{count}"
        seen[name] = count
        result[own] = None
    return list(result)


def _unique(documents: list[HeldOutDocument]) -> list[HeldOutDocument]:
    names = told_apart([document.identifier for document in documents], "#")
    return [replace(document, identifier=name) for document, name in zip(documents, names, strict=True)]
