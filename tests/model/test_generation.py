"""generate(): greedy, sampling, beams, left padding, continuing from a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_model
from transformers import DynamicCache

from mesalm import MesaForCausalLM
from mesalm.model.cache_mesa import returned_cache

MIXERS = ["mesa", "delta", "linear", "softmax", "window", ["mesa", "softmax", "window"]]


def build(mixers: object, **changes: object) -> MesaForCausalLM:
    return tiny_model(mixers=mixers, num_hidden_layers=3, window=5, pad_token_id=0, **changes)


def prompt(length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, 61, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mixers", MIXERS, ids=str)
def test_greedy_with_a_cache_equals_greedy_without(mixers: object) -> None:
    model, ids = build(mixers), prompt(9)
    cached, plain = (model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=kept) for kept in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("mixers", MIXERS, ids=str)
def test_a_left_padded_batch_equals_each_row_alone(mixers: object) -> None:
    model = build(mixers)
    rows = [prompt(length, seed=length)[0] for length in (3, 9, 6)]
    ids, mask = torch.full((3, 9), 0), torch.zeros(3, 9, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, 9 - len(row) :], mask[index, 9 - len(row) :] = row, 1
    together = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    for index, row in enumerate(rows):
        alone = model.generate(row[None], max_new_tokens=8, do_sample=False)
        assert torch.equal(together[index, 9:], alone[0, len(row) :])


@pytest.mark.parametrize("mixers", MIXERS, ids=str)
def test_beams_score_at_least_the_greedy_path(mixers: object) -> None:
    model, ids = build(mixers), prompt(6)

    def score(row: torch.Tensor) -> float:
        with torch.no_grad():
            logits = model(row[None, :-1]).logits.log_softmax(-1)[0]
        return float(logits.gather(1, row[1:, None])[5:].sum())

    greedy = model.generate(ids, max_new_tokens=6, do_sample=False)
    beams = model.generate(ids, max_new_tokens=6, do_sample=False, num_beams=4, num_return_sequences=4)
    assert beams.shape == (4, 12)
    scores = [score(row) for row in beams]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] >= score(greedy[0]) - 1e-4


@pytest.mark.parametrize("mixers", ["mesa", "delta", "linear"])
def test_the_state_does_not_grow(mixers: str) -> None:
    model = build(mixers)

    def size(length: int) -> int:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(prompt(length), cache=cache, use_cache=True)
        states = [
            *(layer.conv_states[0] for layer in cache.layers),
            *(layer.recurrent_states[0] for layer in cache.layers),
        ]
        assert all(state.dtype == torch.float32 for state in states)
        return sum(state.numel() for state in states)

    assert size(5) == size(300)


@pytest.mark.parametrize("change", [{}, {"mixers": ["softmax", "mesa"]}, {"mixers": "softmax", "conv_size": 4}])
def test_rows_of_a_returned_cache_are_repeated_selected_and_reordered(change: dict[str, Any]) -> None:
    model = build(**{"mixers": "mesa", **change})
    ids = torch.cat([prompt(9, seed) for seed in (1, 2, 3)])
    for name, rows in (
        ("batch_repeat_interleave", [0, 0, 1, 1, 2, 2]),
        ("batch_select_indices", [1, 0]),
        ("reorder_cache", [2, 0, 1]),
    ):
        order = torch.tensor(rows)
        with torch.no_grad():
            cache: Any = returned_cache(model(ids[:, :6], use_cache=True))
            getattr(cache, name)(2 if len(rows) == 6 else order)
            continued = model(ids[order, 6:], cache=cache, use_cache=True).logits
            torch.testing.assert_close(continued, model(ids[order]).logits[:, 6:], atol=2e-4, rtol=2e-4)


def test_rows_of_a_cache_are_selected_by_a_mask() -> None:
    model = build(["softmax", "mesa"])
    ids = torch.cat([prompt(9, seed) for seed in (1, 2, 3)])
    with torch.no_grad():
        cache: Any = returned_cache(model(ids[:, :6], use_cache=True))
        cache.batch_select_indices(torch.tensor([True, False, True]))
        continued = model(ids[::2, 6:], cache=cache, use_cache=True).logits
        torch.testing.assert_close(continued, model(ids[::2]).logits[:, 6:], atol=2e-4, rtol=2e-4)


def test_a_cache_that_cannot_take_tokens_back_is_left_as_it_was() -> None:
    model, ids = build(["softmax", "mesa"]), prompt(9)
    with torch.no_grad():
        cache: Any = returned_cache(model(ids[:, :6], use_cache=True))
        with pytest.raises(RuntimeError, match="cache: layer 1 has a state, from which crop cannot"):
            cache.crop(-2)
        continued = model(ids[:, 6:], cache=cache, use_cache=True).logits
        torch.testing.assert_close(continued, model(ids).logits[:, 6:], atol=2e-4, rtol=2e-4)
