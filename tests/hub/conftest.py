"""Small models, and a finished run of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import SPECIAL, tiny_model
from transformers import PreTrainedTokenizerFast

from mesalm import MesaForCausalLM


@pytest.fixture
def save_beside(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., str]:
    """Save a model beside the tokenizer and return the folder."""

    def save(model: torch.nn.Module, name: str = "model") -> str:
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def draw_rows(count: int, seed: int) -> torch.Tensor:
    """Return rows [count, 32] of 16 random tokens, twice over: only attention can predict the second half."""
    half = torch.randint(2, 18, (count, 16), generator=torch.Generator().manual_seed(seed))
    return torch.cat((half, half), dim=1)


@pytest.fixture
def copying_rows() -> Callable[[int, int], torch.Tensor]:
    """Return the function that draws rows of the copying task."""
    return draw_rows


@pytest.fixture(scope="session")
def copying_model() -> MesaForCausalLM:
    """Return a softmax model that has learnt to copy, so that the loss without its attention is much worse."""
    changes = {"intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.02}
    model = tiny_model(seed=3, vocab_size=258, mixers="softmax", **SPECIAL, **changes).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(400):
        rows = draw_rows(32, step)
        model(rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


@pytest.fixture
def run(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Return a finished run folder of a small hybrid."""
    layers = {"num_hidden_layers": 3, "mixers": ["mesa", "linear", "softmax"]}
    folder = tmp_path / "run"
    tiny_model(vocab_size=258, max_position_embeddings=64, **layers, **SPECIAL).save_pretrained(folder / "final")
    tokenizer.save_pretrained(folder / "final")
    recipe = {"seed": 7, "data": {"sources": [{"name": "files", "files": ["/somewhere/shelf.jsonl.gz"]}]}}
    machine = {"versions": {"torch": "2"}, "device": "cpu: small", "world": 2, "prepared": "NOWHERE"}
    events = [
        {"event": "start", "recipe": recipe, **machine},
        {"event": "step", "step": 1, "tokens": 130, "loss": 5.5},
        {"event": "valid", "step": 5, "tokens": 600, "loss": 4.5, "bits_per_byte": 3.5},
        {"event": "valid", "step": 9, "tokens": 1234, "loss": 3.25, "bits_per_byte": 2.5},
        {"event": "end", "step": 10, "tokens": 1300, "loss": 3.125, "seconds": 12.0},
    ]
    (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder
