"""The journal of a run: a JSON-lines file to which events are appended as they happen."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import IO, Any, Self

from mesalm.files import writing

HISTORY = (
    *("step", "valid", "valid_average", "evaluation", "sample", "refused", "alarm"),
    *("checkpoint", "upload", "end", "stop"),
)
"""Events that belong to a step and are dropped when a run goes back to an earlier one."""


class Journal:
    """A JSON-lines file of events, appended to; without a path, nothing is written (all processes but the main one)."""

    def __init__(self, path: Path | None) -> None:
        """Open the journal for appending; a last line torn by a crash is cut off first."""
        self._file: IO[str] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(path)
            self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; a float that is not finite is written as null, since JSON cannot represent it."""
        if self._file is None:
            return
        line = json.dumps({"event": event, **_finite(fields)}, ensure_ascii=False, allow_nan=False)
        with writing(Path(self._file.name)):
            self._file.write(line + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def holds(self, event: str, **fields: Any) -> bool:
        """Return whether the history has this event with these fields; without a path, always True."""
        if self._file is None:
            return True
        wanted = {"event": event, **fields}.items()
        return any(all(line.get(name) == value for name, value in wanted) for line in read_journal(self._file.name))

    def close(self) -> None:
        """Close the file; further events are dropped."""
        if self._file is not None:
            file, self._file = self._file, None
            with writing(Path(file.name)):
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the events of a run as one history.

    Where a run was resumed from a checkpoint, its ``start`` event names the step it went back to; events after that
    step that were written before are left out. A torn last line, which a crash can leave, is ignored. Raises
    ValueError naming file and line for any other line that is not JSON.
    """
    events: list[dict[str, Any]] = []
    lines = Path(path).read_bytes().split(b"\n")
    lines.pop()  # empty, or the torn end of a line that was never finished
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not a JSON line ({error}); delete that line") from None
        if not isinstance(event, dict) or "event" not in event:
            raise ValueError(f"{path}, line {number}: not a journal event; delete that line")
        if event.get("event") == "start":
            resumed = event.get("step", 0)
            events = [old for old in events if old["event"] not in HISTORY or old.get("step", 0) <= resumed]
            # the run goes on from here, so an earlier end or stop at this very step is no longer one
            events = [old for old in events if old["event"] not in ("end", "stop")]
        events.append(event)
    return events


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _cut_torn_line(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
