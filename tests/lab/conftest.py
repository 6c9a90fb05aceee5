"""Small random models with a tokenizer of bytes, and text for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from tiny import SPECIAL, tiny_model
from transformers import PreTrainedTokenizerFast

from mesalm.lab.claims import TABLE


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


@pytest.fixture
def save_model(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a random model, gates and ridge spread as after training, and its tokenizer."""

    def save(mixers: str | list[str], name: str = "model", layers: int = 2, **settings: Any) -> str:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
        options = {**SPECIAL, "initializer_range": 0.02, "tolerance": 1e-4, **heads, **settings}
        model = tiny_model(vocab_size=258, num_hidden_layers=layers, mixers=mixers, **options)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "ridge_bias" in parameter_name or "forget_proj" in parameter_name:
                    parameter.add_(0.5 * torch.randn_like(parameter))
        folder = tmp_path / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    """Write three documents of 40, 500 and 300 letters, a token each and one that begins the document."""
    generator = random.Random(0)
    path = tmp_path / "text.jsonl"
    lines = []
    for name, length in (("short", 40), ("long", 500), ("middle", 300)):
        text = "".join(generator.choice("abcdefgh ") for _ in range(length))
        lines.append(f'{{"id": "{name}", "text": "{text}"}}\n')
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def claims_file(tmp_path: Path) -> Callable[[str, dict[str, Any]], Path]:
    """Return a function that writes the table with other small sizes of one claim to a file."""

    def write(name: str, small: dict[str, Any]) -> Path:
        table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
        table[name]["small"] = small
        path = tmp_path / "claims.yaml"
        path.write_text(yaml.safe_dump(table), encoding="utf-8")
        return path

    return write
