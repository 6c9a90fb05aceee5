"""Models of transformers in training and as teachers: they read the documents of a row apart."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mesalm.train.distil import Distillation
from mesalm.train.initial import set_step

LENGTHS = (7, 1, 12)


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    # large weights, so that what attention reads shows
    return LlamaForCausalLM(LlamaConfig(vocab_size=61, initializer_range=0.3, **shape)).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(61, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return {"input_ids": ids, "position_ids": positions, "labels": ids}


@torch.no_grad()
def alone(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits of each document read by itself, end to end."""
    return torch.cat([model(input_ids=part).logits for part in batch["input_ids"].split(LENGTHS, dim=1)], dim=1)


def test_documents_of_a_row_do_not_read_each_other(
    load: Callable[..., Any], llama: LlamaForCausalLM, batch: dict[str, torch.Tensor]
) -> None:
    wanted = alone(llama, batch)
    set_step(llama, load(), 1)
    torch.testing.assert_close(llama(**batch).logits, wanted, rtol=1e-4, atol=1e-5)  # sums in another order
    assert llama(batch["input_ids"]).past_key_values is not None  # sampling still has its cache


def test_a_teacher_reads_documents_apart(llama: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> None:
    loss = Distillation(llama).loss(batch, SimpleNamespace(logits=alone(llama, batch)))
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
