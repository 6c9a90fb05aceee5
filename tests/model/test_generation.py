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


@pytest.mark.parametrize("conv_size", [0, 4])
@pytest.mark.parametrize("mixers", MIXERS, ids=str)
def test_greedy_with_a_cache_equals_greedy_without(mixers: object, conv_size: int) -> None:
    model = build(mixers, conv_size=conv_size)
    ids = prompt(9)
    cached = model.generate(ids, max_new_tokens=12, do_sample=False)
    plain = model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)
    expected = ids
    with torch.no_grad():
        for _ in range(12):
            expected = torch.cat((expected, model(expected).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(cached, expected)


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


@pytest.mark.parametrize("mixers", MIXERS, ids=str)
def test_sampling_is_repeatable_and_varied(mixers: object) -> None:
    model, ids = build(mixers), prompt(6)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(model.generate(ids, max_new_tokens=10, do_sample=True, temperature=2.0))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("mixers", MIXERS, ids=str)
def test_generation_goes_on_from_a_cache_with_several_new_tokens(mixers: object) -> None:
    model, ids = build(mixers), prompt(20)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :7], cache=cache, use_cache=True)
        model(ids[:, 7:12], cache=cache, use_cache=True)
        logits = model(ids[:, 12:], cache=cache, use_cache=True, logits_to_keep=1).logits
        expected = model(ids).logits[:, -1:]
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)


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
def test_rows_of_a_returned_cache_are_repeated_and_selected(change: dict[str, Any]) -> None:
    model = build(**{"mixers": "mesa", **change})
    ids = torch.cat([prompt(9, seed) for seed in (1, 2)])
    for order in (torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1, 0]), torch.tensor([1])):
        with torch.no_grad():
            cache: Any = returned_cache(model(ids[:, :6], use_cache=True))
            cache.batch_repeat_interleave(3) if len(order) == 6 else cache.batch_select_indices(order)
            continued = model(ids[order, 6:], cache=cache, use_cache=True).logits
            torch.testing.assert_close(continued, model(ids[order]).logits[:, 6:], atol=2e-4, rtol=2e-4)


def test_a_reordered_cache_follows_its_rows() -> None:
    model = build(["mesa", "softmax"])
    ids = torch.cat([prompt(9, seed) for seed in (1, 2, 3)])
    order = torch.tensor([2, 0, 1])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :6], cache=cache, use_cache=True)
        cache.reorder_cache(order)
        continued = model(ids[order, 6:], cache=cache, use_cache=True).logits
        expected = model(ids[order]).logits[:, 6:]
    torch.testing.assert_close(continued, expected, atol=2e-4, rtol=2e-4)
