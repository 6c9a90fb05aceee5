"""Check the sliding window against softmax attention that is told by a mask what it may see."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from mesalm import MesaConfig
from mesalm.model.cache_mesa import returned_cache

WINDOW = 5


def band(length: int) -> torch.Tensor:
    """Return the mask [1, 1, T, T] of a window of WINDOW tokens."""
    places = torch.arange(length)
    distance = places.unsqueeze(-1) - places
    return ((distance >= 0) & (distance < WINDOW))[None, None]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_window_is_softmax_under_a_band(attention: str) -> None:
    window, softmax = (
        tiny_model(mixers=name, window=WINDOW, attn_implementation=attention) for name in ("window", "softmax")
    )
    softmax.load_state_dict(window.state_dict())
    ids = torch.randint(2, 61, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mask = band(17)
        if attention == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        got, wanted = window(ids).logits, softmax(ids, attention_mask=mask).logits
        assert (softmax(ids).logits - wanted).abs().max() > 1e-3
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_transformers_finds_the_window_only_where_there_is_one() -> None:
    config = MesaConfig(mixers=["mesa", "window"], window=7)
    assert config.layer_types[:2] == ["linear_attention", "sliding_attention"]
    assert config.sliding_window == 7
    config.sliding_window = 9
    assert config.window == 9
    assert not hasattr(MesaConfig(mixers="softmax"), "sliding_window")
    with pytest.raises(ValueError, match=r"^window: 1 must be a whole number of at least 2"):
        MesaConfig(window=1)


@pytest.mark.parametrize("mixers", [["window", "mesa", "softmax"], ["kalman", "window", "softmax"]], ids="-".join)
def test_masks_are_measured_by_a_layer_of_their_kind(mixers: list[str]) -> None:
    model = tiny_model(mixers=mixers, num_hidden_layers=3, window=WINDOW)
    ids, cache, parts = torch.randint(2, 61, (2, 17), generator=torch.Generator().manual_seed(1)), None, []
    with torch.no_grad():
        for part in ids.split([9, 1, 1, 6], dim=1):
            output = model(part, cache=cache, use_cache=True)
            cache = returned_cache(output)
            parts.append(output.logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids).logits, atol=2e-4, rtol=2e-4)
