"""Parts of an evaluation on disk, one file each, found again by what was asked of which model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mesa_eval.measures.scores import FORMAT, ModelCard, Part
from mesa_eval.reading.processes import Processes
from mesalm.files import write_text


class PartStore:
    """A store of measured parts: each is written at once, and read when the same is asked again.

    folder: of `parts/<key>.json`, None to keep nothing; `taken` counts the parts that were read.
    """

    def __init__(self, folder: Path | None, processes: Processes) -> None:
        self.folder = None if folder is None else folder / "parts"
        self.processes = processes
        self.taken = 0

    def key(self, card: ModelCard, configuration: str, window: int, name: str, inputs: Any) -> str:
        """Return the sha256 of everything that a part depends on: weights, configuration, tokenizer, what is asked."""
        model = [card.fingerprint, configuration, card.tokenizer, card.start_token, window]
        text = json.dumps([FORMAT, model, name, inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, key: str) -> Part | None:
        """Return the part of a key, or None; the main process looks, so that all processes do the same."""
        if self.folder is None:
            return None
        path = self.folder / f"{key}.json"
        found: dict[int, str] = {}
        error = ""
        if self.processes.main and path.is_file():
            try:
                found[0] = path.read_text(encoding="utf-8")
            except OSError as caught:
                error = f"{path}: cannot be read ({caught}); remove it to measure again"
        texts = self.processes.gather(found, error)
        if not texts:
            return None
        try:
            part = Part.from_json(texts[0])
        except (ValueError, KeyError, TypeError) as caught:
            raise ValueError(f"{path}: is not a part of an evaluation; remove it to measure again") from caught
        self.taken += 1
        return part

    def write(self, part: Part) -> None:
        """Write a part, atomically, from the main process."""
        if self.folder is not None and self.processes.main:
            write_text(self.folder / f"{part.key}.json", part.to_json())
