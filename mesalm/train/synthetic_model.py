"""The model for a synthetic task, from the same configuration and mixers as the language model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from mesalm.data.synthetic.token_task import TokenTask


def build_model(task: TokenTask, fields: Mapping[str, Any]) -> nn.Module:
    """Return a fresh model, float32 on the CPU, for a task; ``fields`` are those of its configuration."""
    from mesalm.model.compression_mesa import MesaForCompression
    from mesalm.model.configuration_mesa import MesaConfig
    from mesalm.model.modeling_mesa import MesaForCausalLM

    sizes = {"vocab_size": task.vocab_size, "max_position_embeddings": task.length}
    config = MesaConfig(**{**sizes, **copy.deepcopy(dict(fields))})
    return MesaForCompression(config) if task.reads_last_state else MesaForCausalLM(config)
