"""The configuration of a mesa language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

if TYPE_CHECKING:
    # transformers tells two published folders apart by a hash over this file and all that it names in import lines
    from .classifier_mesa import MesaForSequenceClassification  # noqa: F401

LAYER_TYPES = {"mesa": "linear_attention", "linear": "linear_attention", "softmax": "full_attention"}
"""The cache layer that transformers builds for each mixer; softmax with a convolution takes "hybrid"."""

DEFAULT_CONV_SIZES = {"mesa": 4, "linear": 4, "softmax": 0}
"""The short convolution each mixer has when the configuration names none."""


@strict
class MesaConfig(PreTrainedConfig):
    r"""Describe a causal language model whose sequence mixers are named layer by layer.

    Everything but `mixers` and the fields of one mixer serves every mixer, so two models that differ in that one
    line differ in their attention alone.

    Args:
        vocab_size: number of tokens.
        hidden_size: width of the residual stream.
        intermediate_size: width of the SwiGLU MLP.
        num_hidden_layers: number of blocks.
        num_attention_heads: query heads H of every mixer.
        num_key_value_heads: key and value heads G of every mixer; G divides H. None: H.
        head_dim: key and value size of one head. None: hidden_size / num_attention_heads.
        mixers: "mesa", "softmax" or "linear" for all layers, or a list of these names; a list shorter than the
            model is a pattern and repeats, so ["mesa", "mesa", "softmax"] puts softmax in every third layer.
        conv_size: width of the causal depthwise convolution, with SiLU, on queries and keys of every mixer; 0: none.
            None: each mixer's own habit, 4 for mesa and linear, none for softmax.
        gates: whether mesa and linear mixers forget and gate their input by the token; without, gamma = beta = 1.
        forget_bias: what the forget gate's bias starts at; gamma starts near sigmoid(forget_bias).
        forget_cap: caps the forget gate where the input gate is open, gamma <- gamma (1 - (1 - cap) beta^2), so that
            a run of identical tokens cannot make the state grow without bound. None: no cap.
        dpfp: order nu of the feature map of mesa and linear mixers' queries and keys (Schlag et al. 2021, arXiv
            2102.11174, section 5.3), which makes 2 nu head_dim features of head_dim numbers. 0: none.
        qk_l2_norm: whether mesa and linear mixers scale queries and keys to unit length.
        read_norm: whether what mesa and linear mixers read passes an RMS norm per head.
        ridge_init: the ridge of mesa mixers at the start.
        ridge_floor: the least value a ridge can take; ridge = ridge_floor + softplus(parameter).
        ridge_per_channel: one ridge a key dimension; False: one a head.
        tolerance: bound on the relative error of the mesa solve.
        max_steps: most iterations of the mesa solve. None: as many as the operator allows.
        mesa_backend: back end of the mesa operator, "auto", "torch", "triton" or "exact".
        block_norms: whether blocks and head see the residual stream through an RMS norm.
        block_mlps: whether blocks have an MLP after their mixer.
        residual_clip: bound on every entry of the residual stream after each block. None: no bound.
        hidden_act: the MLP's activation.
        mlp_bias: whether the MLP's maps have biases.
        attention_bias: whether the maps to queries, keys, values and outputs of every mixer have biases.
        qk_norm: whether softmax mixers pass queries and keys through an RMS norm with a gain before rotating.
        max_position_embeddings: the longest sequence the model is meant for.
        rope_parameters: rotary embedding of softmax mixers.
        attention_dropout: dropout of softmax attention weights.
        rms_norm_eps: guard of the norms.
        initializer_range: standard deviation of the initial weights; maps back into the residual stream get this
            over sqrt(2 num_hidden_layers).
        logit_softcap: c in logits <- c tanh(logits / c). None: none.
        scale_embeddings: whether embeddings are multiplied by sqrt(hidden_size) when they enter the residual stream;
            they start small for the head's sake, and without the factor the first blocks' outputs drown them.
        tie_word_embeddings: whether the head shares the embedding's weights.
        use_cache: whether a forward pass without labels keeps the state for the next token.

    Raises:
        ValueError: a mixer that does not exist, a pattern longer than the model, sizes that do not divide.

    The mesa mixer follows von Oswald et al. 2025 (arXiv 2506.05233), sections 2 and 4; without gates, convolution
    and per-channel ridge it is the layer of von Oswald et al. 2023 (arXiv 2309.05858), section 5.
    """

    model_type = "mesa"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012 - the library's own form

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    mixers: str | list[str] = "mesa"
    conv_size: int | None = None
    gates: bool = True
    forget_bias: float = 4.0
    forget_cap: float | None = 0.9975
    dpfp: int = 0
    qk_l2_norm: bool = True
    read_norm: bool = True
    ridge_init: float = 1.0
    ridge_floor: float = 0.25
    ridge_per_channel: bool = True
    tolerance: float = 1e-4
    max_steps: int | None = None
    mesa_backend: str = "auto"
    block_norms: bool = True
    block_mlps: bool = True
    residual_clip: float | None = None
    hidden_act: str = "silu"
    mlp_bias: bool = False
    attention_bias: bool = False
    qk_norm: bool = False
    max_position_embeddings: int = 2048
    rope_parameters: dict | None = None
    attention_dropout: float = 0.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    logit_softcap: float | None = None
    scale_embeddings: bool = True
    tie_word_embeddings: bool = True
    use_cache: bool = True
    layer_types: list[str] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"head_dim: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads}; change one of them or give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
        self._check()
        # always derived, so that a changed mixer or depth can never leave stale cache layers behind
        self.layer_types = [
            "hybrid" if name == "softmax" and self.conv_size_of(name) else LAYER_TYPES[name]
            for name in self.layer_mixers
        ]
        super().__post_init__(**kwargs)

    @property
    def layer_mixers(self) -> list[str]:
        """Return the mixer's name for each layer, the pattern written out."""
        names = [self.mixers] if isinstance(self.mixers, str) else list(self.mixers)
        return [names[layer % len(names)] for layer in range(self.num_hidden_layers)]

    @property
    def head_shape(self) -> tuple[int, int, int]:
        """Return query heads H, key heads G and head size K, defaults filled in."""
        assert self.num_key_value_heads is not None
        assert self.head_dim is not None
        return self.num_attention_heads, self.num_key_value_heads, self.head_dim

    @property
    def key_size(self) -> int:
        """Return the size of the queries and keys that mesa and linear mixers hand to their operators."""
        size = self.head_shape[2]
        return 2 * self.dpfp * size if self.dpfp else size

    def conv_size_of(self, mixer: str) -> int:
        """Return the width of the short convolution of this mixer, 0 for none."""
        return DEFAULT_CONV_SIZES[mixer] if self.conv_size is None else self.conv_size

    def _check(self) -> None:
        names = [self.mixers] if isinstance(self.mixers, str) else list(self.mixers)
        known = ", ".join(sorted(LAYER_TYPES))
        if not names:
            raise ValueError(f"mixers: the list is empty; name at least one of {known}")
        for name in names:
            if name not in LAYER_TYPES:
                raise ValueError(f"mixers: {name!r} is not a mixer; choose from {known}")
        if len(names) > self.num_hidden_layers:
            raise ValueError(
                f"mixers: {len(names)} names for {self.num_hidden_layers} layers; shorten the list or raise "
                "num_hidden_layers"
            )
        heads, groups, size = self.head_shape
        if heads % groups:
            raise ValueError(f"num_key_value_heads: {groups} does not divide num_attention_heads {heads}")
        if self.conv_size is not None and (self.conv_size < 0 or self.conv_size == 1):
            raise ValueError(f"conv_size: {self.conv_size} must be 0 (none) or at least 2")
        if not 0 <= self.dpfp < 2 * size:
            raise ValueError(f"dpfp: {self.dpfp} must be 0 (none) or an order below 2 head_dim = {2 * size}")
        if self.ridge_floor < 0 or self.ridge_init <= self.ridge_floor:
            raise ValueError(
                f"ridge_init: {self.ridge_init} must be above ridge_floor {self.ridge_floor}, which must be at least 0"
            )
        if self.forget_cap is not None and not 0 < self.forget_cap <= 1:
            raise ValueError(f"forget_cap: {self.forget_cap} must be in (0, 1], or None for no cap")
        if self.residual_clip is not None and self.residual_clip <= 0:
            raise ValueError(f"residual_clip: {self.residual_clip} must be above 0, or None for no bound")
        if "softmax" in names and size % 2:
            raise ValueError(f"head_dim: {size} must be even for the rotary embedding of softmax mixers")


__all__ = ["MesaConfig"]
