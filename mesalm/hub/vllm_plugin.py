"""Entry point `vllm.general_plugins`, which registers mesa models with vLLM."""

from __future__ import annotations

ARCHITECTURE = "MesaForCausalLM"
"""Class name in the configuration of a saved model."""


def register() -> None:
    """Register the model's class; vLLM calls this in each of its processes."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "mesalm.hub.vllm_model:MesaForVllm")
