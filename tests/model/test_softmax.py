"""Check the convolution of softmax attention's values against torch's own convolution."""

from __future__ import annotations

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
