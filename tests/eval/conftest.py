"""Small models and tokenizers with known answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import TINY, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"


def make_tokenizer(
    *, merges_from: str = "", size: int = 258, start: bool = True, name: str = END
) -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer: 256 bytes, two special tokens, and merges up to `size`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[name, "<|pad|>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([merges_from], trainer)
    marks = {"bos_token": name, "eos_token": name} if start else {}
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", **marks)


class TableModel(torch.nn.Module):
    """Predict the next token from the last one alone: `table` [V, V] holds the logits."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(table)

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


class CopyModel(torch.nn.Module):
    """Predict, with certainty, the token that stood `distance` places before the next one."""

    def __init__(self, distance: int, vocabulary: int) -> None:
        super().__init__()
        self.distance = distance
        self.vocabulary = vocabulary

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        known = input_ids[:, 1 : 1 + max(0, input_ids.shape[1] - self.distance)]
        where = torch.arange(known.shape[1]) + self.distance
        logits[:, where] = 60.0 * torch.nn.functional.one_hot(known, self.vocabulary)
        return SimpleNamespace(logits=logits)


def make_llama(vocabulary: int, seed: int, length: int = 64, **sizes: int) -> LlamaForCausalLM:
    """Make a random Llama with large weights, so that its predictions are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        **{**TINY, **sizes},
        num_key_value_heads=1,
        max_position_embeddings=length,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def save_model(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a random Llama with its tokenizer and returns the folder."""

    def save(
        name: str, seed: int, tokenizer: PreTrainedTokenizerFast | None = None, length: int = 64, **sizes: int
    ) -> str:
        folder = tmp_path / name
        own = tokenizer or make_tokenizer()
        make_llama(len(own), seed, length, **sizes).save_pretrained(folder)
        own.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    """Write documents of two domains, long enough for windows of 64 bytes."""
    words = [f"{a}{b}{c}e" for a in "bcdfglmnprst" for b in "aiou" for c in "klt"]
    path = tmp_path / "held_out.jsonl"
    lines = []
    for number in range(24):
        text = " ".join(words[(number * 7 + 3 * step) % len(words)] for step in range(60))
        lines.append({"id": f"doc-{number}", "domain": "odd" if number % 2 else "even", "text": text})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def pair_file(tmp_path: Path) -> str:
    """Write a pair task whose answers all have three letters."""
    path = tmp_path / "letters.jsonl"
    lines = []
    for number in range(40):
        word = "".join(chr(97 + (number * k + k) % 26) for k in (1, 3, 7))
        record = {"task": "letters", "input": f"{word}{number}", "output": word}
        lines.append({**record, "split": "pool" if number % 2 else "eval"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def class_file(tmp_path: Path) -> str:
    """Write a classification task with three labels of one length, 9 of 15 queries with the first one."""
    path = tmp_path / "colour.jsonl"
    labels = ["red", "tan", "sky"]
    lines = [{"input": f"pool {n}", "output": labels[n % 3], "split": "pool"} for n in range(12)]
    lines += [{"input": f"eval {n}", "output": labels[max(0, n - 8) % 3], "split": "eval"} for n in range(15)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "colour.labels.json").write_text(json.dumps(labels), encoding="utf-8")
    return str(path)


@pytest.fixture
def make() -> SimpleNamespace:
    """Hand the makers to tests, which cannot import a conftest by name."""
    return SimpleNamespace(tokenizer=make_tokenizer, llama=make_llama, table=TableModel, copier=CopyModel)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def save_mesa() -> Callable[..., str]:
    """Return a function that saves a random model, by default a hybrid of all mixers, beside its tokenizer."""

    def save(
        folder: Path, tokenizer: PreTrainedTokenizerFast, mixers: str | tuple | list = ("mesa", "linear", "softmax")
    ) -> str:
        model = tiny_model(
            seed=7,
            vocab_size=len(tokenizer),
            num_hidden_layers=3,
            mixers=mixers if isinstance(mixers, str) else list(mixers),
            max_position_embeddings=128,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=1,
        )
        # the padding's embedding starts at zero, which would hide padding that is not masked
        model.model.embed_tokens.weight.data[1] = model.model.embed_tokens.weight.data[2:].std() * torch.randn(32)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save
