"""Check the convolution of values against torch's own, and attention under masks against plain causal attention."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model


@torch.no_grad()
def test_values_are_convolved_where_conv_values_says_so() -> None:
    for conv_values in (False, True):
        model = tiny_model(mixers="softmax", conv_size=4, conv_values=conv_values)
        mixer = model.model.layers[0].mixer
        mixer.conv.weight.normal_()
        for linear in (mixer.q_proj, mixer.k_proj):
            linear.weight.zero_()  # every token then reads the mean of the values so far
        hidden = torch.randn(2, 9, model.config.hidden_size)
        value = mixer.v_proj(hidden)
        if conv_values:
            weight = mixer.conv.weight[-value.shape[-1] :].flip(-1).unsqueeze(1)
            inputs = torch.nn.functional.pad(value.transpose(1, 2), (3, 0))
            value = torch.nn.functional.conv1d(inputs, weight, groups=len(weight)).transpose(1, 2)
            value = torch.nn.functional.silu(value)
        mean = value.cumsum(1) / torch.arange(1, 10).view(1, 9, 1)
        output, _ = mixer(hidden, attention_mask={"full_attention": None})
        torch.testing.assert_close(output, mixer.o_proj(mean), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mixers", ["softmax", "window"])
@torch.no_grad()
def test_eager_attention_stays_finite_where_all_is_padding(mixers: str) -> None:
    model = tiny_model(mixers=mixers, window=4).double()
    ids, mask = torch.randint(61, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :5] = 0
    wanted = model(ids, attention_mask=mask).logits[
        mask.bool()
    ]  # sdpa, in float64 throughout; eager softmax is in float32
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[mask.bool()], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
@torch.no_grad()
def test_masks_of_four_dimensions_are_read_by_their_dtype(dtype: torch.dtype, attention: str) -> None:
    model, ids = tiny_model(mixers="softmax"), torch.randint(61, (2, 9))
    wanted = model(ids).logits
    model.set_attn_implementation(attention)
    seen = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    mask = seen if dtype == torch.bool else torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    for given in (mask, {"full_attention": mask}):
        torch.testing.assert_close(model(ids, attention_mask=given).logits, wanted, atol=1e-5, rtol=1e-5)
    for given in (seen.int(), {"full_attention": seen.long()}):
        with pytest.raises(ValueError, match=r"attention_mask: has 4 dimensions and dtype .*; give booleans") as caught:
            model(ids, attention_mask=given)
        assert "\n" not in str(caught.value)
