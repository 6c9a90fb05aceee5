"""Local files: .txt (one document), .jsonl, .json and .csv (one per record), also .gz or .zst; .parquet; folders."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow
import pyarrow.parquet

from mesalm.files import expanded, file_hash
from mesalm.settings import SettingsError
from mesalm.wording import bad_byte

from .documents import DataError, Document, Faults, Source, is_unicode, record_document
from .source_settings import SourceSettings

PACKED = {".gz": "gzip", ".zst": "zstd"}
ENDINGS = (*(kind + pack for kind in (".txt", ".jsonl", ".json", ".csv") for pack in ("", *PACKED)), ".parquet")
LONGEST_CELL = 2**31 - 1

Record = tuple[str, str, dict[str, Any]] | None
"""A record's location, name and columns; None for a record that cannot be read."""


class FileSource(Source):
    """The documents of local files, in the order of the patterns, sorted within each pattern.

    `records` reads only the columns that documents need, or all with ``every_column``.
    """

    def __init__(self, settings: SourceSettings, *, every_column: bool = False) -> None:
        super().__init__(settings)
        self.column = settings.ids_column or settings.text_column
        self.every_column = every_column
        if not settings.file_patterns():
            raise SettingsError(
                "source 'files' has no files; set its files, for instance data.sources.0.files=texts/*.txt"
            )
        self.paths = matching_files(settings.file_patterns())
        for path in self.paths:
            if not path.name.endswith(ENDINGS):
                raise DataError(f"{path}: unknown kind of file; give one of {', '.join(ENDINGS)}")
            if not is_unicode(str(path)):
                raise DataError(f"{os.fsencode(path)!r}: this name is not UTF-8; rename the file or folder")
            if settings.ids_column and _kind(path) == ".txt":
                raise DataError(f"{path}: a .txt file has no column {settings.ids_column!r}; unset ids_column")

    def identity(self) -> dict[str, Any]:
        """Return the names and sha256 of the files."""
        return {"files": [{"name": path.name, "sha256": file_hash(path)} for path in self.paths]}

    def shards(self) -> list[Source]:
        """Return a source for each file."""
        return [FileSource(self.settings.model_copy(update={"files": [str(path)]})) for path in self.paths]

    def read(self, faults: Faults) -> Iterator[Document]:
        """Yield the documents file by file."""
        for path in self.paths:
            yield from self.file(path, faults)

    def file(self, path: Path, faults: Faults) -> Iterator[Document]:
        """Yield the documents of one file; a file without documents is recorded as empty."""
        empty = True
        for record in self.records(path, faults):
            empty = False
            if record is not None:
                where, name, columns = record
                document = record_document(columns, where, name, self.settings, faults)
                if document is not None:
                    yield document
        if empty:
            faults.empty_files.append(str(path))

    def records(self, path: Path, faults: Faults) -> Iterator[Record]:
        """Yield the records of one file."""
        if path.stat().st_size == 0:
            return
        if path.name.endswith(".parquet"):
            yield from self._parquet(path, faults)
            return
        read = {".txt": self._txt, ".jsonl": self._jsonl, ".json": self._json, ".csv": self._csv}[_kind(path)]
        number = 0
        try:
            with _opened(path) as file:
                for number, record in enumerate(read(file, path, faults), 1):  # noqa: B007
                    yield record
        except (EOFError, OSError, zlib.error) as error:
            if path.suffix not in PACKED:
                raise
            place = f"{path}:{number + 1}" if _kind(path) == ".jsonl" else str(path)
            faults.bad(f"{place}: broken {PACKED[path.suffix]} file ({error}); get the file again")
            yield None

    def _txt(self, file: IO[bytes], path: Path, faults: Faults) -> Iterator[Record]:
        content = file.read()
        if content.strip():
            text = _decoded(content, path, faults)
            yield None if text is None else (str(path), path.name, {self.column: text})

    def _jsonl(self, file: IO[bytes], path: Path, faults: Faults) -> Iterator[Record]:
        for number, line in enumerate(file, 1):
            if line.strip():
                record = _json_object(line, f"{path}:{number}", faults)
                yield None if record is None else (f"{path}:{number}", f"{path.name}:{number}", record)

    def _json(self, file: IO[bytes], path: Path, faults: Faults) -> Iterator[Record]:
        """Yield the objects of a JSON array, or the single object of the file."""
        content = file.read()
        if not content.strip():
            return
        text = _decoded(content, path, faults)
        if text is None:
            yield None
            return
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            faults.bad(f"{path}: broken JSON ({error}); correct the file")
            yield None
            return
        for number, record in enumerate(value if isinstance(value, list) else [value], 1):
            where = f"{path}: record {number}"
            if not isinstance(record, dict):
                faults.bad(f"{where}: must be a JSON object, not {type(record).__name__}; correct the file")
            yield (where, f"{path.name}:{number}", record) if isinstance(record, dict) else None

    def _csv(self, file: IO[bytes], path: Path, faults: Faults) -> Iterator[Record]:
        """Yield the rows below the header as text; a dataframe library would read NA as null and 1984 as a number."""
        csv.field_size_limit(LONGEST_CELL)
        text = io.TextIOWrapper(file, "utf-8-sig", newline="")
        reader = csv.DictReader(text, strict=True)
        try:
            names = reader.fieldnames or []
            if names and self.column not in names and not self.every_column:
                yield str(path), path.name, dict.fromkeys(names)
                return
            wanted = names if self.every_column else (self.column, self.settings.domain_column, self.settings.id_column)
            if twice := next((name for name in names if name in wanted and names.count(name) > 1), None):
                faults.bad(f"{path}: the header names column {twice!r} twice; rename one of the two")
                yield None
                return
            for number, record in enumerate(reader, 1):
                where = f"{path}:{reader.line_num}"
                if None in record:
                    faults.bad(f"{where}: has more cells than the header; correct the line")
                yield None if None in record else (where, f"{path.name}:{number}", record)
        except (csv.Error, UnicodeDecodeError) as error:
            faults.bad(f"{path}:{reader.line_num + 1}: not a CSV file in UTF-8 ({error}); correct the file")
            yield None
        finally:
            text.detach()

    def _parquet(self, path: Path, faults: Faults) -> Iterator[Record]:
        settings = self.settings
        try:
            table = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            faults.bad(f"{path}: not a parquet file ({str(error).splitlines()[0]}); get the file again")
            yield None
            return
        with table:
            names = table.schema_arrow.names
            if self.column not in names and not self.every_column:
                # The whole file lacks the column: report one fault, not one per row.
                yield str(path), path.name, dict.fromkeys(names)
                return
            wanted = [name for name in (self.column, settings.domain_column, settings.id_column) if name in names]
            wanted = names if self.every_column else wanted
            number = 0
            try:
                for batch in table.iter_batches(batch_size=256, columns=wanted):
                    for record in batch.to_pylist():
                        number += 1
                        yield f"{path}: row {number}", f"{path.name}:{number}", record
            except (pyarrow.ArrowException, UnicodeDecodeError) as error:
                reason = str(error).splitlines()[0]
                faults.bad(f"{path}: unreadable after row {number} ({reason}); get the file again")
                yield None


def matching_files(patterns: list[str]) -> list[Path]:
    """Return the files given by paths, globs (``**`` recurses into folders) and folders, each once.

    A file that is reached by several paths or links stands under the first.

    Raises DataError for a pattern that matches no file.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        if not pattern.strip():
            raise DataError("an empty file name was given; name a file")
        path = expanded(pattern)
        # A file name that contains a bracket must not be taken for a pattern.
        if path.is_file():
            hits = [path]
        elif path.is_dir():
            inside = glob.glob(f"{glob.escape(str(path))}/**/*", recursive=True)
            hits = [Path(hit) for hit in sorted(inside) if hit.endswith(ENDINGS)]
        else:
            hits = [Path(hit) for hit in sorted(glob.glob(str(path), recursive=True))]
        hits = [hit for hit in hits if hit.is_file()]
        if not hits:
            reason = f"no file in this folder ends in {', '.join(ENDINGS)}" if path.is_dir() else "no such file"
            raise DataError(f"{pattern}: {reason}; check the path and the folder you are in")
        for hit in hits:
            found.setdefault(hit.resolve(), hit)
    return list(found.values())


def _kind(path: Path) -> str:
    """Return the ending of a file name that determines the format, without that of the compression."""
    name = path.name.removesuffix(path.suffix) if path.suffix in PACKED else path.name
    return name[name.rindex(".") :]


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".zst":
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _decoded(content: bytes, path: Path, faults: Faults) -> str | None:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        faults.bad(f"{path}:{line}: not UTF-8 ({bad_byte(error)}); convert the file to UTF-8")
        return None


def _json_object(line: bytes, where: str, faults: Faults) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        faults.bad(f"{where}: not UTF-8 ({bad_byte(error)}); convert the file to UTF-8")
        return None
    except (ValueError, RecursionError) as error:
        faults.bad(f"{where}: broken JSON ({error}); correct the line")
        return None
    if not isinstance(record, dict):
        faults.bad(f"{where}: must be a JSON object, not {type(record).__name__}; correct the line")
        return None
    return record
