"""The model for a synthetic task, from the same configuration and mixers as the language model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mesalm.data.synthetic.tasks import SyntheticTask
from mesalm.data.synthetic.vector_task import VectorTask
from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.modeling_mesa import MesaForCausalLM, MesaPreTrainedModel
from mesalm.regressor.configuration_regressor import RegressorConfig
from mesalm.regressor.regressor_mesa import MesaRegressor
from mesalm.synthetic.compression_mesa import MesaForCompression


def build_model(task: SyntheticTask, fields: Mapping[str, Any]) -> MesaPreTrainedModel:
    """Return a fresh model, float32 on the CPU, for a task; ``fields`` are those of its configuration."""
    own = copy.deepcopy(dict(fields))  # the configuration completes nested fields in place
    if isinstance(task, VectorTask):
        sizes = {"input_size": task.input_size, "learned_vectors": task.learned_vectors}
        return MesaRegressor(RegressorConfig(**{**sizes, **own}))
    config = MesaConfig(**{"vocab_size": task.vocab_size, "max_position_embeddings": task.length, **own})
    return MesaForCompression(config) if task.reads_last_state else MesaForCausalLM(config)
