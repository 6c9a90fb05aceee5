"""Local files: .txt (a whole file is one document), .jsonl (one object a line), both also .gz; .parquet."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from mesalm.settings import SettingsError

from .documents import DataError, Document, Faults, file_hash, record_document
from .source_settings import SourceSettings

ENDINGS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
BROKEN_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


class FileSource:
    """The documents of local files, in the order of the patterns and sorted within a pattern."""

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        self.named = matching_files(settings.file_patterns())
        self.paths = list(self.named)
        for path in self.paths:
            if not path.name.endswith(ENDINGS):
                raise DataError(f"{path}: unknown kind of file; give one of {', '.join(ENDINGS)}")
            if settings.ids_column and ".txt" in path.suffixes:
                raise DataError(f"{path}: a .txt file has no column {settings.ids_column!r}; unset ids_column")

    def identity(self) -> dict[str, Any]:
        """Return the names and sha256 of the files."""
        return {"files": [{"name": path.name, "sha256": file_hash(path)} for path in self.paths]}

    def documents(self, faults: Faults) -> Iterator[Document]:
        """Yield up to ``limit`` documents."""
        count = 0
        for path in self.paths:
            for document in self.file(path, faults):
                yield document
                count += 1
                if count == self.settings.limit:
                    return

    def file(self, path: Path, faults: Faults) -> Iterator[Document]:
        """Yield the documents of one of the files."""
        if path.stat().st_size == 0:
            self._empty(path, faults)
        elif path.name.endswith(".parquet"):
            yield from self._parquet(path, faults)
        elif ".jsonl" in path.suffixes:
            yield from self._jsonl(path, faults)
        else:
            yield from self._txt(path, faults)

    def _empty(self, path: Path, faults: Faults) -> None:
        """Note a file without documents: among many that a pattern matched it is no fault."""
        if self.named[path]:
            faults.bad(f"{path}: the file is empty; leave it out")
        else:
            faults.empty_files.append(str(path))

    def _txt(self, path: Path, faults: Faults) -> Iterator[Document]:
        try:
            with _opened(path) as file:
                content = file.read()
        except BROKEN_GZIP as error:
            faults.bad(f"{path}: broken gzip file ({error}); get the file again")
            return
        if not content.strip():
            self._empty(path, faults)
            return
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            faults.bad(f"{path}:{line}: not UTF-8 ({_byte(error)}); convert the file to UTF-8")
            return
        yield Document(path.name, self.settings.domain or self.settings.name, text=text)

    def _jsonl(self, path: Path, faults: Faults) -> Iterator[Document]:
        records = 0
        number = 0
        try:
            with _opened(path) as file:
                for number, line in enumerate(file, 1):
                    if not line.strip():
                        continue
                    records += 1
                    where = f"{path}:{number}"
                    record = _json_object(line, where, faults)
                    if record is None:
                        continue
                    name = f"{path.name}:{number}"
                    document = record_document(record, where, name, self.settings, faults)
                    if document is not None:
                        yield document
        except BROKEN_GZIP as error:
            faults.bad(f"{path}:{number + 1}: broken gzip file ({error}); get the file again")
            return
        if records == 0:
            self._empty(path, faults)

    def _parquet(self, path: Path, faults: Faults) -> Iterator[Document]:
        import pyarrow
        import pyarrow.parquet

        settings = self.settings
        try:
            table = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            faults.bad(f"{path}: not a parquet file ({str(error).splitlines()[0]}); get the file again")
            return
        with table:
            names = table.schema_arrow.names
            column = settings.ids_column or settings.text_column
            if column not in names:
                # The whole file lacks the column: one fault, not one per row.
                record_document(dict.fromkeys(names), str(path), path.name, settings, faults)
                return
            if table.metadata.num_rows == 0:
                self._empty(path, faults)
                return
            wanted = [name for name in (column, settings.domain_column, settings.id_column) if name in names]
            number = 0
            try:
                for batch in table.iter_batches(batch_size=256, columns=wanted):
                    for record in batch.to_pylist():
                        number += 1
                        where, name = f"{path}: row {number}", f"{path.name}:{number}"
                        document = record_document(record, where, name, settings, faults)
                        if document is not None:
                            yield document
            except (pyarrow.ArrowException, UnicodeDecodeError) as error:
                reason = str(error).splitlines()[0]
                faults.bad(f"{path}: unreadable after row {number} ({reason}); get the file again")


def matching_files(patterns: list[str]) -> dict[Path, bool]:
    """Return the files named by paths and globs (``**`` goes into folders), each once, and whether by its own path.

    Raises SettingsError without a pattern, DataError for a pattern that matches no file.
    """
    if not patterns:
        raise SettingsError("source 'files' has no files; set its files, for instance data.sources.0.files=texts/*.txt")
    found: dict[Path, bool] = {}
    for pattern in patterns:
        expanded = str(Path(pattern).expanduser())
        path = Path(expanded)
        # A file whose own name holds a bracket must not be taken for a pattern.
        if not pattern.strip():
            raise DataError("an empty file name was given; name a file")
        own = path.is_file()
        hits = [path] if own else [Path(hit) for hit in sorted(glob.glob(expanded, recursive=True))]
        hits = [hit for hit in hits if hit.is_file()]
        if not hits:
            what = "a folder; name the files in it, such as" if path.is_dir() else "no such file; look at"
            example = f"{pattern}/*.jsonl" if path.is_dir() else "the path, from the folder you run in"
            raise DataError(f"{pattern}: {what} {example}")
        found |= {hit: own or found.get(hit, False) for hit in hits}
    return found


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _json_object(line: bytes, where: str, faults: Faults) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        faults.bad(f"{where}: not UTF-8 ({_byte(error)}); convert the file to UTF-8")
        return None
    except (ValueError, RecursionError) as error:
        faults.bad(f"{where}: broken JSON ({error}); correct the line")
        return None
    if not isinstance(record, dict):
        faults.bad(f"{where}: must be a JSON object, not {type(record).__name__}; correct the line")
        return None
    return record


def _byte(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at {error.start}"
