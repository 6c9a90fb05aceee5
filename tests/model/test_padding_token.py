"""The padding token's vector learns where the token also begins or ends texts, and stays 0 where it only pads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_model

KINDS: list[Any] = ["mesa", ["mesa", "softmax"]]


def texts() -> torch.Tensor:
    ids = torch.randint(3, 32, (3, 12), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 0
    return ids


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("special", [{"bos_token_id": 0}, {"eos_token_id": 0}, {"eos_token_id": [1, 0]}])
def test_a_start_token_that_also_pads_is_trained_like_any(special: dict, tie: bool) -> None:
    ids = texts()
    shared = tiny_model(pad_token_id=0, tie_word_embeddings=tie, **special)
    alone = tiny_model(pad_token_id=None, tie_word_embeddings=tie, **special)
    for model in (shared, alone):
        model(ids, labels=ids).loss.backward()
    assert shared.model.embed_tokens.padding_idx is None
    for (name, mine), other in zip(shared.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, other), name
        assert torch.equal(mine.grad, other.grad), name
    assert shared.model.embed_tokens.weight.grad[0].norm() > 1e-2


@pytest.mark.parametrize("mixers", KINDS)
def test_a_token_that_only_pads_stays_zero(mixers: Any) -> None:
    ids = texts()
    ids[0, 9:], ids[1, :4] = 2, 2
    mask = (ids != 2).long()
    model = tiny_model(mixers=mixers, pad_token_id=2, bos_token_id=0, tie_word_embeddings=False)
    model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
    gradient = model.model.embed_tokens.weight.grad
    assert not model.model.embed_tokens.weight[2].any()
    assert not gradient[2].any()
    assert gradient[0].any()


def test_a_padding_token_that_never_occurs_changes_no_loss() -> None:
    losses = []
    for pad in (None, 2):
        model = tiny_model(pad_token_id=pad, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False)
        optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
        for _ in range(4):
            loss = model(texts(), labels=texts()).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[:4] == losses[4:]
