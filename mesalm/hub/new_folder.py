"""Folders that are written whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mesalm.files import readable, writing


def must_be_new(folder: Path, verb: str) -> None:
    """Raise ValueError unless `folder` does not exist or is empty; `verb` says what was to be done with it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: exists and is not empty; {verb} to a new folder or remove this one")


@contextmanager
def new_folder(folder: Path, verb: str) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` at the end, or is deleted on an error or Ctrl-C.

    Raises:
        ValueError: `folder` is not empty.
    """
    must_be_new(folder, verb)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        staged = Path(temporary) / "staged"
        staged.mkdir()
        with writing(folder):
            yield staged
        readable(staged)
        if folder.exists():
            folder.rmdir()
        staged.rename(folder)
