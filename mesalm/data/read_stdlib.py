"""The built-in corpus: source text of the running interpreter's standard library, without its tests and code tables."""

from __future__ import annotations

import hashlib
import io
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .documents import DataError, Document, Faults
from .source_settings import SourceSettings

# Tests are many, repetitive and full of odd literals; installed packages are not the standard library; and
# `encodings` is a tenth of the bytes in tables of character codes, each nearly a copy of the next, which would
# put copies of training text among the held-out documents.
EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}
)


class StandardLibrarySource:
    """The ``.py`` files of the standard library, one document of domain "python" each.

    A file whose declared encoding does not fit its bytes is skipped and counted, never an error: the user
    did not choose these files and cannot mend them.
    """

    licence = "PSF-2.0"

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        self.root = Path(sysconfig.get_paths()["stdlib"])
        self.files = _python_files(self.root)
        if not self.files:
            raise DataError(f"{self.root}: this interpreter has no standard library source; use source 'files'")

    def identity(self) -> dict[str, Any]:
        """Return the interpreter's version and a sha256 over the names and contents of the files."""
        total = hashlib.sha256()
        for path in self.files:
            content = path.read_bytes()
            total.update(f"{path.relative_to(self.root).as_posix()}\0{len(content)}\0".encode())
            total.update(content)
        implementation = platform.python_implementation()
        return {"interpreter": f"{implementation} {platform.python_version()}", "sha256": total.hexdigest()}

    def documents(self, faults: Faults) -> Iterator[Document]:
        """Yield the files in the order of their paths."""
        domain = self.settings.domain or "python"
        for path in self.files[: self.settings.limit]:
            text = decode_python(path.read_bytes())
            if text is None:
                faults.undecodable += 1
                continue
            yield Document(path.relative_to(self.root).as_posix(), domain, text)


def _python_files(root: Path) -> list[Path]:
    found = []
    for path in root.rglob("*.py"):
        if EXCLUDED_FOLDERS.isdisjoint(path.relative_to(root).parts[:-1]) and path.is_file():
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def decode_python(content: bytes) -> str | None:
    """Decode Python source by its byte-order mark or coding line; None where that fails."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return content.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return None
