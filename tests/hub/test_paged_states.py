"""Requests in pages are mixed as if each were alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import TINY

from mesalm import MesaConfig, MesaModel
from mesalm.hub.paged_states import (
    PagedAttention,
    begun,
    mix_paged,
    prompts,
    recurrent_mixer,
    state_dtypes,
    state_shapes,
)
from mesalm.model.mixers import MIXERS

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
RECURRENT = [name for name, row in MIXERS.items() if row.recurrent]


@pytest.mark.parametrize("conv_size", [4, 0])
@pytest.mark.parametrize("name", RECURRENT)
def test_requests_in_pages_are_mixed_as_if_alone(name: str, conv_size: int) -> None:
    torch.manual_seed(0)
    config = MesaConfig(vocab_size=32, **TINY, mixers=name, conv_size=conv_size, tolerance=1e-6)
    mixer = MIXERS[name].build(config, 1).eval()
    shapes, dtypes = state_shapes(config), state_dtypes(config, torch.float64)
    assert len(shapes) == len(dtypes) == 1 + bool(conv_size)
    kept = [torch.full((5, *shape), float("nan")) for shape in shapes]
    rows = torch.randn(3, 9, config.hidden_size)
    slots = torch.tensor([4, 0, 2], dtype=torch.int32)
    with torch.inference_mode():
        wanted = mixer(rows)[0]
        new, old = torch.tensor([True]), torch.tensor([False])
        found = [[mix_paged(mixer, rows[i : i + 1, :5], kept, slots[i : i + 1], new)[0]] for i in range(2)]
        found.append([mix_paged(mixer, rows[2:, :1], kept, slots[2:], new)[0]])
        found[2].append(mix_paged(mixer, rows[2:, 1:5], kept, slots[2:], old)[0])
        for i in (2, 0):  # the second request waits
            found[i].append(mix_paged(mixer, rows[i : i + 1, 5:8], kept, slots[i : i + 1], old)[0])
        last = mix_paged(mixer, rows[[0, 2], 8:], kept, slots[[0, 2]], old.expand(2))
        found[1].append(mix_paged(mixer, rows[1:2, 5:], kept, slots[1:2], old)[0])
        mixed = mix_paged(mixer, rows[[0, 1], :1], kept, slots[[0, 2]], torch.tensor([True, False]))[0]
    for place, i in enumerate((0, 2)):
        found[i].append(last[place])
    # kalman solves by a fixed number of steps, which come out a little different token by token
    torch.testing.assert_close(torch.stack([torch.cat(parts) for parts in found]), wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mixed, wanted[0, :1], rtol=1e-3, atol=1e-4)  # a new request in a page that held another
    assert all(page[[1, 3]].isnan().all() for page in kept)  # the pages of nobody


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_of_a_server_is_given_what_ours_computes(qk_norm: bool) -> None:
    torch.manual_seed(0)
    config = MesaConfig(vocab_size=32, **TINY, mixers="softmax", num_key_value_heads=1, qk_norm=qk_norm)
    model = MesaModel(config).eval()
    mixer, hidden = model.layers[0].mixer, torch.randn(1, 7, config.hidden_size)
    heads, size = mixer.heads, mixer.head_dim

    class Attend(torch.nn.Module):
        def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            assert (query.shape, key.shape, value.shape) == ((7, heads * size), (7, size), (7, size))
            query = query.view(7, heads, size).transpose(0, 1)
            scores = (query @ key.T * size**-0.5).masked_fill(torch.ones(7, 7).triu(1).bool(), float("-inf"))
            return (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)

    with torch.inference_mode():
        rotary = model.rotary_emb(hidden, torch.arange(3, 10)[None])
        wanted = mixer(hidden, attention_mask={"full_attention": None}, position_embeddings=rotary)[0]
        found = PagedAttention(mixer, Attend())(hidden, position_embeddings=rotary)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_prompts_come_after_the_requests_that_decode() -> None:
    where = SimpleNamespace(
        num_decodes=2,
        num_prefills=2,
        query_start_loc=torch.tensor([0, 1, 2, 7, 9]),
        seq_lens=torch.tensor([4, 1, 5, 12]),
    )
    assert list(prompts(where)) == [(slice(2, 3), slice(2, 7)), (slice(3, 4), slice(7, 9))]
    assert begun(where).tolist() == [False, True, True, False]
    where.num_prefills = 0
    assert list(prompts(where)) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mixers": "softmax"}, "one kind of recurrent layer"),
        ({"mixers": ["mesa", "linear"]}, "one kind of recurrent layer"),
        ({"mixers": ["mesa", "window"]}, "only with softmax"),
        ({"mixers": ["mesa", "softmax"], "conv_size": 4}, "without a convolution"),
        ({"mixers": ["mesa", "softmax"], "rope_parameters": DYNAMIC}, "depends on the longest request"),
    ],
)
def test_what_cannot_be_served_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recurrent_mixer(MesaConfig(vocab_size=32, **TINY, **fields))
    assert recurrent_mixer(MesaConfig(vocab_size=32, **TINY, mixers=["mesa", "softmax"])) == "mesa"
