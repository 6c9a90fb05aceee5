from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from mesalm.data.data_settings import DataSettings

WORDS = [
    "def",
    "return",
    "value",
    "number",
    "1984",
    "the",
    "of",
    "mesa",
    "état",
    "naïve",
    "日本語",
    "😀",
    "x_1",
    "==",
    "'text'",
    "(and)",
    "[0]",
    "\t",
    "tab",
]


def sentence(generator: random.Random) -> str:
    lines = []
    for _ in range(generator.randint(3, 12)):
        lines.append(" ".join(generator.choice(WORDS) for _ in range(generator.randint(3, 14))))
    return "\n    ".join(lines) + "\n"


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("MESALM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def records() -> Callable[..., list[dict[str, Any]]]:
    """Return a maker of records with distinct texts, the first ones equal for equal seeds."""

    def make(count: int, seed: int = 0) -> list[dict[str, Any]]:
        generator = random.Random(seed)
        return [
            {"id": f"d{number}", "domain": "ab"[number % 2], "text": f"{number} {sentence(generator)}"}
            for number in range(count)
        ]

    return make


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    return write


@pytest.fixture
def data() -> Callable[..., DataSettings]:
    """Return a maker of small settings for files."""

    def make(files: Any, **changes: Any) -> DataSettings:
        source = {"name": "files", "files": str(files)}
        chosen = {
            "sources": [source],
            "vocab_size": 300,
            "sequence_length": 32,
            "valid_fraction": 0.1,
            "test_fraction": 0.1,
        }
        return DataSettings.build({**chosen, **changes}, "data")

    return make
