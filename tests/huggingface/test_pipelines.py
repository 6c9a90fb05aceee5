"""transformers' pipelines over our models, without a word of complaint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, pipeline
from transformers.utils import logging as library_logging

from mesalm import MesaForCausalLM, MesaForSequenceClassification

Build = Callable[..., MesaForCausalLM]
TEXTS = ["the cat", "a long line of words", "so"]


@pytest.fixture
def complaints() -> Any:
    """Collect what the library logs as errors or warnings."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())
    logger = library_logging.get_logger("transformers")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def test_text_generation(
    kind: str, build: Build, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, complaints: list[str]
) -> None:
    model = build(kind, vocab_size=258)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write = pipeline("text-generation", model=str(tmp_path), device="cpu")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "return_full_text": False}
    together = [result[0]["generated_text"] for result in write(TEXTS, batch_size=3, **options)]
    for text, written in zip(TEXTS, together, strict=True):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        expected = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        assert written == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    assert not [line for line in complaints if "not supported" in line]


def test_text_classification(
    kind: str, build: Build, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, complaints: list[str]
) -> None:
    model = build(kind, model_class=MesaForSequenceClassification, vocab_size=258, num_labels=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path), device="cpu")
    for text, result in zip(TEXTS, classify(TEXTS, batch_size=3), strict=True):
        with torch.no_grad():
            scores = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        assert result["label"] == f"LABEL_{int(scores.argmax())}"
        assert result["score"] == pytest.approx(float(scores.max()), rel=1e-3)
    assert not [line for line in complaints if "not supported" in line]
