"""Read the records of a task file."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file, plain or `.gz`; ValueError in one line if it cannot be read as UTF-8."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from error
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: not UTF-8 ({error.reason}); convert the file first") from error
    return text.split("\n")


def read_records(path: Path, required: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    """Read (line number, object) of a JSON-lines file; ValueError for a broken line or a missing key."""
    records = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not a line of JSON ({error.msg})") from error
        missing = [key for key in required if not isinstance(record, dict) or not isinstance(record.get(key), str)]
        if missing:
            raise ValueError(f"{path}:{number}: needs the text field {missing[0]!r}")
        records.append((number, record))
    if not records:
        raise ValueError(f"{path}: holds no line")
    return records
