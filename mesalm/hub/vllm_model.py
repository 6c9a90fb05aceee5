"""A mesa model for serving with vLLM: the same blocks, with states in vLLM's pages.

vLLM passes the tokens of all requests of a step in one row, [T], with single-token decodes first. Recurrent layers
access their states through `MambaBase`; softmax layers use vLLM's own attention for their keys and values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.mamba.mamba_utils import get_conv_copy_spec, get_temporal_copy_spec
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from mesalm.hub.paged_states import PagedAttention, begun, mix_paged, prompts, state_dtypes, state_shapes
from mesalm.model.mixer_gated import GatedMixer
from mesalm.model.modeling_mesa import MesaForCausalLM


class PagedMixer(nn.Module, MambaBase):
    """A recurrent mixer that stores its states in vLLM's pages.

    Args:
        inner: the mixer.
        vllm_config: vLLM's configuration.
        prefix: the layer's name in it.
    """

    mamba_type = MambaAttentionBackendEnum.LINEAR

    def __init__(self, inner: GatedMixer, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        self.inner, self.prefix = inner, prefix
        self.shapes = state_shapes(inner.config)
        self.dtypes = state_dtypes(inner.config, vllm_config.model_config.dtype)
        self.kv_cache = tuple(torch.tensor([]) for _ in self.shapes)
        vllm_config.compilation_config.static_forward_context[prefix] = self

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the states of one request."""
        return self.shapes

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """Return the dtypes of the states."""
        return self.dtypes

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """Return the mixed tokens [1, T, hidden], and no attention weights.

        Single-token requests are processed as a batch, longer ones one after another. Without metadata, as when vLLM
        profiles memory, no state is read or written.
        """
        found: Any = get_forward_context().attn_metadata
        if found is None:
            return self.inner(hidden_states)
        where = found[self.prefix]
        fresh, pages, mixed = begun(where), where.state_indices_tensor, torch.zeros_like(hidden_states)
        if where.num_decodes:
            first = slice(0, where.num_decodes)
            given = hidden_states[0, : where.num_decode_tokens, None]
            mixed[0, first] = mix_paged(self.inner, given, self.kv_cache, pages[first], fresh[first])[:, 0]
        for request, tokens in prompts(where):
            given = hidden_states[:, tokens]
            mixed[:, tokens] = mix_paged(self.inner, given, self.kv_cache, pages[request], fresh[request])
        return mixed, None


class MesaForVllm(nn.Module, HasInnerState, IsHybrid):
    """A causal language model of this package behind vLLM's interface, on one device, without graphs.

    Args:
        vllm_config: vLLM's configuration; its model's is a `MesaConfig`.
        prefix: prefix of the layer names.

    Raises:
        ValueError: an unsupported model or setting; the message tells what to change.
    """

    has_inner_state: ClassVar[Literal[True]] = True
    is_hybrid: ClassVar[Literal[True]] = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        check_settings(vllm_config)
        config = vllm_config.model_config.hf_config
        self.core = MesaForCausalLM(config)
        spared = self.core._keep_in_fp32_modules_strict or ()
        for name, parameter in self.core.named_parameters():
            if any(part in name for part in spared):
                parameter.data = parameter.data.float()
        for number, block in enumerate(self.core.model.layers):
            block.mixer = paged(block.mixer, vllm_config, f"{prefix}.layers.{number}.mixer".lstrip("."))

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> Any:
        """Return the shapes of a recurrent layer's states; see `state_shapes`."""
        return state_shapes(vllm_config.model_config.hf_config)

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        """Return the dtypes of a recurrent layer's states."""
        return state_dtypes(vllm_config.model_config.hf_config, vllm_config.model_config.dtype)

    @classmethod
    def get_mamba_state_copy_func(cls) -> Any:
        """Return the functions that locate the states of the convolution and of the layer in memory."""
        return get_conv_copy_spec, get_temporal_copy_spec

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [T, hidden] of token ids [T]."""
        return self.core.model.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Return the last hidden states [T, hidden] of the tokens [T] of all requests and their positions [T]."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_input_ids(input_ids)
        model = self.core.model
        hidden_states, mixing = inputs_embeds.unsqueeze(0), {}
        if model.rotary_emb is not None:
            mixing["position_embeddings"] = model.rotary_emb(hidden_states, positions.unsqueeze(0))
        for block in model.layers:
            hidden_states = block(hidden_states, **mixing)
        return model.norm(hidden_states)[0]

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, vocabulary] of hidden states [N, hidden]."""
        return self.core.logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint's weights; return the names of all loaded weights.

        Raises:
            ValueError: a weight without a counterpart on either side.
        """
        named = {name.replace(".mixer.", ".mixer.inner."): weight for name, weight in weights}
        if self.core.config.tie_word_embeddings:
            named["lm_head.weight"] = named["model.embed_tokens.weight"]
        found = self.core.load_state_dict(named, strict=False)
        parameters = {name for name, _ in self.core.named_parameters()}
        odd = [*found.unexpected_keys, *parameters.intersection(found.missing_keys)]
        if odd:
            raise ValueError(f"mesa in vLLM: weight {odd[0]} has no counterpart; save the model with this version")
        return {f"core.{name}" for name in parameters}


def paged(mixer: Any, vllm_config: VllmConfig, prefix: str) -> nn.Module:
    """Return a mixer that stores its state in vLLM's pages, registered with vLLM under a name."""
    if isinstance(mixer, GatedMixer):
        return PagedMixer(mixer, vllm_config, prefix)
    attend = Attention(
        mixer.heads,
        mixer.head_dim,
        mixer.head_dim**-0.5,
        num_kv_heads=mixer.groups,
        cache_config=vllm_config.cache_config,
        prefix=prefix,
    )
    return PagedAttention(mixer, attend)


def check_settings(vllm_config: VllmConfig) -> None:
    """Raise a one-line ValueError for a setting that this model does not support."""
    parallel = vllm_config.parallel_config
    for wrong, remedy in (
        (parallel.world_size > 1, "tensor and pipeline parallelism are not supported; leave them at 1"),
        (
            vllm_config.speculative_config is not None,
            "speculative decoding is not supported; leave out speculative_config",
        ),
        (
            vllm_config.cache_config.enable_prefix_caching,
            "prefix caching is not supported; set enable_prefix_caching to False",
        ),
        (not vllm_config.model_config.enforce_eager, "compiled graphs are not supported; set enforce_eager to True"),
    ):
        if wrong:
            raise ValueError(f"mesa in vLLM: {remedy}")
