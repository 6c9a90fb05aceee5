"""The configuration of a mesa language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from .cache_mesa import ATTENTION
from .field_rules import (
    ROTARY,
    STORED,
    check_rotary,
    choice,
    documented,
    expect,
    is_whole,
    misspelt,
    names_of,
    not_negative,
    number,
    positive,
    table,
    token,
    tokens,
    truth,
    whole,
)
from .mesa_backends import BACKENDS
from .mixers import MIXERS

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    # transformers identifies remote code by a hash over this file and all files named in its import lines
    from .classifier_mesa import MesaForSequenceClassification  # noqa: F401


@documented
@strict
class MesaConfig(PreTrainedConfig):
    """Configuration of a causal language model whose sequence mixers are named layer by layer.

    Unless its description names a mixer, a field applies to all mixers: two models that differ only in `mixers` differ
    only in their attention. Types, defaults and meanings of the fields below come from `field_rules`.

    Raises:
        ValueError: an invalid value of a field, on creation or assignment; an unknown key that resembles the name of a
            field; a pattern longer than the model; sizes that do not divide.

    The mesa mixer follows von Oswald et al. 2025 (arXiv 2506.05233), sections 2 and 4. Without gates, convolution
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
    value_head_dim: int | None = None
    mixers: str | list[str] = "mesa"
    conv_size: int | None = None
    conv_values: bool = False
    gates: bool = True
    forget_bias: float = 4.0
    forget_cap: float | None = 0.9975
    forget_rate: bool = False
    dpfp: int = 0
    qk_l2_norm: bool = True
    read_norm: bool = True
    read_norm_eps: float | None = None
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
    window: int = 128
    max_position_embeddings: int = 2048
    rope_parameters: dict | None = None
    attention_dropout: float = 0.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    logit_softcap: float | None = None
    scale_embeddings: bool = True
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    field_rules = {  # noqa: RUF012 - without annotation, or it would be a field
        "vocab_size": whole(1, "Number of tokens."),
        "hidden_size": whole(1, "Width of the residual stream."),
        "intermediate_size": whole(1, "Width of the SwiGLU MLP."),
        "num_hidden_layers": whole(1, "Number of blocks."),
        "num_attention_heads": whole(1, "Query heads H of every mixer."),
        "num_key_value_heads": whole(
            1,
            "Key and value heads G of every mixer; G divides H. None or H: follows num_attention_heads.",
            none="as many as num_attention_heads",
        ),
        "head_dim": whole(
            1,
            "Key and value size of one head. None or hidden_size / num_attention_heads: follows these two fields.",
            none="hidden_size / num_attention_heads",
        ),
        "value_head_dim": whole(1, "Value size of one head of recurrent mixers. None: head_dim.", none="head_dim"),
        "mixers": names_of(
            MIXERS,
            "mixer",
            f"The mixer of all layers, one of {', '.join(MIXERS)}, or a list of these names. A list shorter than the "
            "model repeats: [mesa, mesa, softmax] puts softmax in every third layer.",
            ", or first import the file that registers it (in a recipe: code, in commands: --code FILE)",
        ),
        "conv_size": expect(
            "0 (none) or a whole number of at least 2",
            lambda value: is_whole(value) and value >= 0 and value != 1,
            "Width of the causal depthwise convolution with SiLU on queries and keys of every mixer; 0: none. None: "
            f"the mixer's default, {', '.join(f'{row.conv_size} for {name}' for name, row in MIXERS.items())}.",
            none="the mixer's default",
        ),
        "conv_values": truth("Whether mixers with a convolution also convolve their values."),
        "gates": truth("Whether recurrent mixers have gates per token; if not, gamma = beta = 1, no output gate."),
        "forget_bias": number(
            "", lambda value: True, "Initial bias of the forget gate; gamma starts near sigmoid(forget_bias)."
        ),
        "forget_cap": number(
            "in (0, 1]",
            lambda value: 0 < value <= 1,
            "Cap on the forget gate where the input gate is open, gamma <- gamma (1 - (1 - cap) beta^2), so that a run "
            "of identical tokens cannot make the state grow without bound. None: no cap.",
            none="no cap",
        ),
        "forget_rate": truth("Whether recurrent mixers learn a factor on log gamma per key head."),
        "dpfp": whole(
            0,
            "Order nu of the feature map on queries and keys of recurrent mixers (Schlag et al. 2021, arXiv "
            "2102.11174, section 5.3); it maps head_dim numbers to 2 nu head_dim features. 0: none.",
        ),
        "qk_l2_norm": truth("Whether recurrent mixers scale queries and keys to unit length."),
        "read_norm": truth("Whether recurrent mixers apply an RMS norm per head to their outputs."),
        "read_norm_eps": positive("Epsilon of that norm. None: rms_norm_eps.", none="rms_norm_eps"),
        "ridge_init": positive("Initial ridge of mesa mixers."),
        "ridge_floor": not_negative("Lower bound on the ridge; ridge = ridge_floor + softplus(ridge_bias)."),
        "ridge_per_channel": truth("Whether there is one ridge per key dimension; if not, one per head."),
        "tolerance": number(
            "between 0 and 1, both excluded",
            lambda value: 0 < value < 1,
            "Bound on the relative error of the mesa solve.",
        ),
        "max_steps": whole(
            1,
            "Maximum number of iterations of the mesa solve. None: as many as the operator allows.",
            none="as many as the operator allows",
        ),
        "mesa_backend": choice(BACKENDS, f"Back end of the mesa operator: {', '.join(BACKENDS)}."),
        "block_norms": truth("Whether blocks and head apply an RMS norm to their input."),
        "block_mlps": truth("Whether blocks have an MLP after their mixer."),
        "residual_clip": positive(
            "Bound on every entry of the residual stream after each block. None: no bound.", none="no bound"
        ),
        "hidden_act": choice(sorted(ACT2FN), "The MLP's activation."),
        "mlp_bias": truth("Whether the MLP's projections have biases."),
        "attention_bias": truth("Whether the query, key, value and output projections of every mixer have biases."),
        "qk_norm": truth("Whether attention applies an RMS norm with a gain to queries and keys before rotation."),
        "window": whole(2, "Number of tokens that window mixers see, including the token itself."),
        "max_position_embeddings": whole(1, "The longest sequence the model is meant for."),
        "rope_parameters": table("Rotary embedding of softmax and window mixers."),
        "attention_dropout": number(
            "of at least 0 and below 1", lambda value: 0 <= value < 1, "Dropout of attention weights."
        ),
        "rms_norm_eps": positive("Epsilon of the RMS norms."),
        "initializer_range": not_negative(
            "Standard deviation of the initial weights; for projections back into the residual stream it is divided "
            "by sqrt(2 num_hidden_layers)."
        ),
        "logit_softcap": positive("The cap c in logits <- c tanh(logits / c). None: no cap.", none="no cap"),
        "scale_embeddings": truth(
            "Whether embeddings are multiplied by sqrt(hidden_size) when they enter the residual stream. They start "
            "small because the head shares them; unscaled, the first blocks' outputs would outweigh them."
        ),
        "tie_word_embeddings": truth("Whether the head shares the embedding's weights."),
        "use_cache": truth("Whether a forward pass without labels returns a cache."),
        "pad_token_id": token("The padding token."),
        "bos_token_id": token("The token that begins texts."),
        "eos_token_id": tokens("The token, or the list of tokens, that ends texts."),
    }
    """The meaning and the valid values of each field; every assignment is checked."""

    def __post_init__(self, **kwargs: Any) -> None:
        stated = kwargs.pop("layer_types", None)  # configurations saved by earlier versions have it
        for key in kwargs:
            self._refuse_misspelt(key)
            if not self._is_stored(key):
                logger.warning(f"{key}: {type(self).__name__} has no such field; it is saved but has no effect")
        # values that equal their default follow their source fields again when those are changed
        if self.num_key_value_heads == self.num_attention_heads:
            self.num_key_value_heads = None
        if self.head_dim is not None and self.head_dim * self.num_attention_heads == self.hidden_size:
            self.head_dim = None
        # a copy, since transformers completes it in place and then ignores the rope_theta of older files
        plain = {"rope_type": "default", "rope_theta": kwargs.get("rope_theta", 10000.0)}
        self.rope_parameters = dict(self.rope_parameters or plain)
        super().__post_init__(**kwargs)
        self.check()
        if stated is not None:
            self.layer_types = stated

    def __setattr__(self, name: str, value: Any) -> None:
        wrong = self.field_rules[name].fault(value) if name in self.field_rules else None
        if wrong is not None:
            raise ValueError(f"{name}: {wrong}")
        if not hasattr(type(self), name):
            self._refuse_misspelt(name)  # it would be saved, but loading would fail
        super().__setattr__(name, value)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if value is None and name == "num_key_value_heads":
            return self.num_attention_heads
        if value is None and name == "head_dim":
            return self.hidden_size // self.num_attention_heads
        return value

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Make a configuration from a dictionary; `kwargs` take precedence over its entries (see transformers).

        Raises:
            ValueError: an unknown argument that resembles a field; others may be meant for a model or tokenizer.
        """
        for key in kwargs:
            if key in ROTARY and config_dict.get("rope_parameters"):
                raise ValueError(f"{key}: the saved rope_parameters would override it; give rope_parameters instead")
            cls._refuse_misspelt(key)
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain data, with defaults that follow from other fields filled in."""
        return {**super().to_dict(), "num_key_value_heads": self.num_key_value_heads, "head_dim": self.head_dim}

    def save_pretrained(self, *arguments: Any, **kwargs: Any) -> None:
        """Save the configuration; raise ValueError if it could not be loaded again."""
        self.check()
        super().save_pretrained(*arguments, **kwargs)

    @property
    def layer_types(self) -> list[str]:
        """Return the kind of cache that transformers makes for each layer."""
        return [MIXERS[name].cache_layer(self.conv_size_of(name) > 0) for name in self.layer_mixers]

    @layer_types.setter
    def layer_types(self, stated: list[str]) -> None:
        if stated != self.layer_types:
            logger.warning(f"layer_types: it follows from mixers and conv_size; {stated} is ignored")

    @property
    def layer_mixers(self) -> list[str]:
        """Return the mixer's name for each layer, with the pattern expanded."""
        names = [self.mixers] if isinstance(self.mixers, str) else list(self.mixers)
        return [names[layer % len(names)] for layer in range(self.num_hidden_layers)]

    @property
    def attention_kinds(self) -> list[str]:
        """Return the distinct attention types for which the layers need masks."""
        kinds = [MIXERS[name].attention for name in self.layer_mixers]
        return [kind for kind in ATTENTION if kind in kinds]

    @property
    def has_attention(self) -> bool:
        """Return whether any layer is attention, which keeps keys and values and needs masks and rotary positions."""
        return bool(self.attention_kinds)

    @property
    def has_states(self) -> bool:
        """Return whether any layer is recurrent or convolves; tokens cannot be removed from its state."""
        return any(kind not in ATTENTION for kind in self.layer_types)

    @property
    def sliding_window(self) -> int:
        """Return `window` under transformers' name; AttributeError without a window layer, as in other models."""
        if "sliding_attention" not in self.attention_kinds:
            raise AttributeError("sliding_window: no layer uses one")
        return self.window

    @sliding_window.setter
    def sliding_window(self, window: int) -> None:
        self.window = window

    @property
    def final_logit_softcapping(self) -> float | None:
        """Return `logit_softcap` under transformers' name, which losses that compute their own logits read."""
        return self.logit_softcap

    @property
    def head_shape(self) -> tuple[int, int, int]:
        """Return query heads H, key heads G and head size K, defaults filled in."""
        assert self.num_key_value_heads is not None
        assert self.head_dim is not None
        return self.num_attention_heads, self.num_key_value_heads, self.head_dim

    @property
    def key_size(self) -> int:
        """Return the size of the queries and keys that recurrent mixers pass to their operators."""
        size = self.head_shape[2]
        return 2 * self.dpfp * size if self.dpfp else size

    @property
    def value_size(self) -> int:
        """Return the size of one head's values in recurrent mixers."""
        return self.head_shape[2] if self.value_head_dim is None else self.value_head_dim

    @property
    def solver_settings(self) -> dict[str, Any]:
        """Return the solver's settings as keyword arguments of `mesa_attention`."""
        return {"tolerance": self.tolerance, "max_steps": self.max_steps, "backend": self.mesa_backend}

    @property
    def padding_only_id(self) -> int | None:
        """Return the padding token, whose embedding stays 0; None if it also begins or ends texts and so is trained."""
        ends = self.eos_token_id if isinstance(self.eos_token_id, (list, tuple)) else [self.eos_token_id]
        pad = self.pad_token_id
        if pad is None or pad in (self.bos_token_id, *ends) or not 0 <= pad < self.vocab_size:
            return None
        return pad

    def conv_size_of(self, mixer: str) -> int:
        """Return the width of the short convolution of this mixer, 0 for none."""
        return MIXERS[mixer].conv_size if self.conv_size is None else self.conv_size

    def check(self) -> None:
        """Raise ValueError for inconsistent fields; called when a configuration is made, saved or used."""
        names = [self.mixers] if isinstance(self.mixers, str) else self.mixers
        if len(names) > self.num_hidden_layers:
            raise ValueError(
                f"mixers: {len(names)} names for {self.num_hidden_layers} layers; shorten the list or raise "
                "num_hidden_layers"
            )
        if self.__dict__["head_dim"] is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"head_dim: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}; change one of them or give head_dim"
            )
        heads, groups, size = self.head_shape
        if heads % groups:
            raise ValueError(f"num_key_value_heads: {groups} does not divide num_attention_heads {heads}")
        if not 0 <= self.dpfp < 2 * size:
            raise ValueError(f"dpfp: {self.dpfp} must be 0 (none) or an order below 2 head_dim = {2 * size}")
        if self.ridge_init <= self.ridge_floor:
            raise ValueError(f"ridge_init: {self.ridge_init} must be above ridge_floor {self.ridge_floor}")
        if self.has_attention and size % 2:
            raise ValueError(f"head_dim: {size} must be even for the rotary embedding of softmax mixers")
        self.validate_rope()

    def validate_rope(self) -> None:
        """Raise ValueError for a rotary embedding that softmax mixers cannot have."""
        if not self.has_attention:
            return
        check_rotary(self.rope_parameters or {})
        try:
            super().validate_rope()
        except KeyError as error:
            raise ValueError(f"rope_parameters: {error.args[0]}") from None

    @classmethod
    def _is_stored(cls, key: str) -> bool:
        """Return whether transformers itself, in this or an older release, stores this key in configurations."""
        return (
            key.startswith("_") or key in STORED or hasattr(PreTrainedConfig, key) or hasattr(GenerationConfig(), key)
        )

    @classmethod
    def _refuse_misspelt(cls, key: str) -> None:
        """Raise ValueError for a key that resembles the name of a field or names a derived property."""
        if key in cls.field_rules or key == "layer_types" or cls._is_stored(key):
            return
        meant = misspelt(key, cls.field_rules)
        if meant is not None or hasattr(cls, key):
            hint = f"; did you mean {meant!r}?" if meant is not None else ""
            raise ValueError(f"{key}: {cls.__name__} has no such field{hint}")


__all__ = ["MesaConfig"]
