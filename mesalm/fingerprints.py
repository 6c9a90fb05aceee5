"""Fingerprints of files, and JSON files that hold their own: what is read is what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SEAL = "sha256"
"""The key of a sealed JSON object that holds the digest of all its other keys."""


class SealError(ValueError):
    """A sealed file that is missing, no JSON object, or not as it was written."""


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> dict[str, Any]:
    """Return a file's size in ``bytes`` and its ``sha256``."""
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the fingerprint of every file under a folder, by its path from there with ``/``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): fingerprint(path) for path in files}


def first_damaged(
    folder: Path, files: Mapping[str, Mapping[str, Any]], read: Callable[[int], object] = lambda size: None
) -> str | None:
    """Return the first of ``files`` that is gone or not as `fingerprints` found it, None if all are whole.

    ``read`` is called with the size of each file that was read.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"] or fingerprint(path) != expected:
            return name
        read(expected["bytes"])
    return None


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as a JSON object with its own digest beside its keys."""
    plain = json.loads(json.dumps(content, ensure_ascii=False))
    text = json.dumps({**plain, SEAL: _digest(plain)}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_sealed(path: Path) -> dict[str, Any]:
    """Return what `write_sealed` wrote. Raises SealError when a key, a value or the file is another or missing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SealError(f"{path}: {error}") from error
    if not isinstance(content, dict) or content.pop(SEAL, None) != _digest(content):
        raise SealError(f"{path}: is not as it was written")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
