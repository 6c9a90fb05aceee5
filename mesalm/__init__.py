"""Pretrain small language models with mesa attention.

Importing this package registers `model_type="mesa"` with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from mesalm.model.classifier_mesa import MesaForSequenceClassification
from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.modeling_mesa import MesaForCausalLM, MesaModel
from mesalm.model.operator_mesa import MesaState, mesa_attention
from mesalm.regressor.configuration_regressor import RegressorConfig
from mesalm.regressor.regressor_mesa import MesaRegressor

__version__ = "0.1.0"

AutoConfig.register("mesa", MesaConfig, exist_ok=True)
AutoModel.register(MesaConfig, MesaModel, exist_ok=True)
AutoConfig.register("mesa_regressor", RegressorConfig, exist_ok=True)
AutoModel.register(RegressorConfig, MesaRegressor, exist_ok=True)
AutoModelForCausalLM.register(MesaConfig, MesaForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(MesaConfig, MesaForSequenceClassification, exist_ok=True)

__all__ = [
    "MesaConfig",
    "MesaForCausalLM",
    "MesaForSequenceClassification",
    "MesaModel",
    "MesaRegressor",
    "MesaState",
    "RegressorConfig",
    "__version__",
    "mesa_attention",
]
