"""The small model that the tests share; what a test depends on stands in the test, as a change."""

from __future__ import annotations

from typing import Any

import torch

from mesalm import MesaConfig, MesaForCausalLM

TINY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
NARROW: dict[str, Any] = {"hidden_size": 16, "head_dim": 8}
"""The width of the smallest models that learn something."""
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}

PADDED = torch.tensor(
    [
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ]
)
"""A mask of rows with padding before, between and behind their tokens, and of one without."""


def tiny_config(**changes: Any) -> MesaConfig:
    """Return a configuration with close solves, whose first weights are so large that every one matters."""
    return MesaConfig(**{"vocab_size": 61, **TINY, "initializer_range": 0.2, "tolerance": 1e-6, **changes})


def tiny_model(model_class: Any = MesaForCausalLM, *, seed: int = 0, **changes: Any) -> Any:
    """Return a random model in evaluation mode, the same for the same seed and changes."""
    torch.manual_seed(seed)
    return model_class(tiny_config(**changes)).eval()


def biased_model(model_class: Any = MesaForCausalLM, **changes: Any) -> Any:
    """Return a random model in which a padded token has a key and a value too."""
    model = tiny_model(model_class, attention_bias=True, **changes)
    for name, parameter in model.named_parameters():
        if name.endswith(("k_proj.bias", "v_proj.bias")):
            parameter.data.normal_()
    return model


def draw_tokens(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    """Draw token ids [batch, length] without special tokens."""
    return torch.randint(2, 61, (batch, length), generator=torch.Generator().manual_seed(seed))
