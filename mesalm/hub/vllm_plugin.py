"""The entry point `vllm.general_plugins`: makes vLLM know mesa models."""

from __future__ import annotations

ARCHITECTURE = "MesaForCausalLM"
"""How the configuration of a saved model names its class."""


def register() -> None:
    """Register the model's class; vLLM calls this in each of its processes."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "mesalm.hub.vllm_model:MesaForVllm")
