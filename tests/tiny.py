"""The small model that the tests share; what a test depends on stands in the test, as a change."""

from __future__ import annotations

from typing import Any

import torch

from mesalm import MesaConfig, MesaForCausalLM

TINY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
NARROW: dict[str, Any] = {"hidden_size": 16, "head_dim": 8}
"""The width of the smallest models that learn something."""
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}


def tiny_config(**changes: Any) -> MesaConfig:
    """Return a configuration with close solves, whose first weights are so large that every one matters."""
    return MesaConfig(**{"vocab_size": 61, **TINY, "initializer_range": 0.2, "tolerance": 1e-6, **changes})


def tiny_model(model_class: Any = MesaForCausalLM, *, seed: int = 0, **changes: Any) -> Any:
    """Return a random model in evaluation mode, the same for the same seed and changes."""
    torch.manual_seed(seed)
    return model_class(tiny_config(**changes)).eval()
