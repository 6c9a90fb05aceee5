"""The causal language model with any mixers.

No `from __future__ import annotations` here: transformers needs the class in the annotation `config: MesaConfig`.
"""

import math
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .cache_mesa import CACHE, CountedTokens, MesaCache, check_cache, count_tokens, counting, one_cache, tokens_seen
from .configuration_mesa import MesaConfig
from .context_parallel import share_of_loss
from .keywords import BASE_KEYWORDS, LOSS_KEYWORDS, attention_keywords, check_custom_generate, check_keywords
from .layers import GateProjection, ResidualProjection, ScaledEmbedding, ShortConvolution
from .measures import Measures
from .mixer_gated import RATE
from .mixer_softmax import SoftmaxMixer
from .mixers import MIXERS
from .model_inputs import (
    attention_masks,
    check_embeddings,
    check_ids,
    check_masks,
    find_shard,
    find_tokens,
    read_segments,
)
from .versions import check_versions

check_versions()


def residual_norm(config: MesaConfig) -> nn.Module:
    """Make the input norm of blocks and head; the identity without `block_norms`."""
    return LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps) if config.block_norms else nn.Identity()


class MesaBlock(GradientCheckpointingLayer):
    """A block: h + mixer(norm(h)), then h + mlp(norm(h)).

    `MesaConfig` can leave out the norms or the MLP and clamp the result.
    """

    def __init__(self, config: MesaConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = residual_norm(config)
        self.mixer = MIXERS[config.layer_mixers[layer_idx]].build(config, layer_idx)
        self.mlp = None
        if config.block_mlps:
            self.post_attention_layernorm = residual_norm(config)
            self.mlp = LlamaMLP(config)
            self.mlp.down_proj = ResidualProjection(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.clip = config.residual_clip

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return the hidden states after this block, [B, T, hidden]; `kwargs` are passed to the mixer."""
        mixed, _ = self.mixer(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + mixed
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states if self.clip is None else hidden_states.clamp(-self.clip, self.clip)


class MesaPreTrainedModel(Measures, PreTrainedModel):
    """The base class of mesa models: initialisation, loading and saving."""

    config: MesaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MesaBlock"]  # noqa: RUF012 - the library's own form
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": MesaBlock, "attentions": SoftmaxMixer}  # noqa: RUF012

    def __init__(self, config: MesaConfig):
        config.check()
        super().__init__(config)
        # assisted generation must remove tokens, which a recurrent state does not allow
        self._is_stateful = config.has_states
        words = {word for name in config.layer_mixers for word in MIXERS[name].float32}
        words |= {RATE} if words and config.gates and config.forget_rate else set()
        # 16-bit weights use the strict names, quantisers the others, which some match at the start of a name
        self._keep_in_fp32_modules_strict = words
        self._keep_in_fp32_modules = {f".*{word}" for word in words}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ResidualProjection):
            # each block adds two terms to the residual stream; this keeps its initial variance independent of depth
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, GateProjection):
            init.constant_(module.bias, module.start)
        elif isinstance(module, ShortConvolution):
            # near the identity, so that a mixer starts almost like one without convolution; without this the loss was
            # much worse after 300 steps (docs/log.md)
            start = torch.randn_like(module.weight) / (2 * module.size)
            start[:, 0] = 1.0
            init.copy_(module.weight, start)
        elif callable(own_start := getattr(module, "init_parameters", None)):
            own_start()

    def save_pretrained(self, *arguments: Any, **kwargs: Any) -> None:
        """Save the model, by default under the current weight names; see transformers."""
        super().save_pretrained(*arguments, **{"save_original_format": False, **kwargs})


class MesaModel(MesaPreTrainedModel):
    """The mesa model without a head: token ids to hidden states.

    Args:
        config: the model's configuration; `mixers` gives the mixer of each block.
    """

    def __init__(self, config: MesaConfig):
        super().__init__(config)
        self.embed_tokens = ScaledEmbedding(
            config.vocab_size,
            config.hidden_size,
            config.padding_only_id,
            scale=config.hidden_size**0.5 if config.scale_embeddings else 1.0,
        )
        self.layers = nn.ModuleList([MesaBlock(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = residual_norm(config)
        self.has_attention = config.has_attention
        # LlamaRotaryEmbedding reads rope_parameters, head_dim and max_position_embeddings, which MesaConfig has too
        self.rotary_emb = LlamaRotaryEmbedding(config) if self.has_attention else None  # type: ignore[arg-type]
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        context: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states, [B, T, hidden].

        Args:
            input_ids: [B, T] token ids; or give `inputs_embeds` [B, T, hidden] instead.
            attention_mask: [B, past + T], 1 at tokens and 0 at padding, which may be anywhere; or a dictionary of masks
                by layer type.
            position_ids: [B, T] or [1, T]. Without a cache, a position that is not its predecessor's plus one begins
                a new document, and documents do not see each other (the packed rows of transformers' collators).
            cache: the cache to continue from.
            use_cache: whether to return a cache. Rows of several documents return none. Neither does a traced graph
                with positions, unless it is given a cache.
            past_key_values: the name of `cache` before transformers 5.24.
            context: a `torch.distributed` process group whose N processes share the rows. All are given the same rows;
                each reads its N-th part and returns the hidden states of it, [B, T / N, hidden]. No cache.

        Other keyword arguments are those that transformers passes to every model (`BASE_KEYWORDS`).

        Raises:
            TypeError: an unknown keyword argument.
            ValueError: both or neither of input_ids and inputs_embeds; ids, mask, positions or cache invalid, or not
                supported with `context` (details in `model_inputs.py`); a cache under both names, or with gradient
                checkpointing.
        """
        check_keywords(self, kwargs)
        kwargs = attention_keywords(kwargs, position_ids, self._is_stateful)
        cache = one_cache(cache, past_key_values)
        rows = self._checked_rows(input_ids, inputs_embeds, cache)
        shard = find_shard(context, self.config, rows.shape[1], attention_mask, cache, self.training)
        hidden_states = rows if shard is None else shard.cut(rows)
        if inputs_embeds is None:
            hidden_states = self.embed_tokens(hidden_states)
        if cache is not None and self._is_stateful:
            check_cache(cache, self.config.layer_types or [])
        seen = self._tokens_seen(cache)
        check_masks(attention_mask, self.config)
        tokens = find_tokens(attention_mask, hidden_states, seen)
        segments = read_segments(position_ids, rows, tokens, cache is not None)
        if use_cache and cache is None and segments is None and shard is None:
            cache = MesaCache(config=self.config)
        mixing: dict[str, Any] = {**kwargs, "padding_mask": tokens, "segments": segments}
        if shard is not None:
            mixing["shard"] = shard
        if self.rotary_emb is not None:
            mixing |= attention_masks(self.config, hidden_states, attention_mask, cache, tokens, segments, shard)
            if position_ids is None:
                position_ids = torch.arange(rows.shape[1], device=hidden_states.device).unsqueeze(0) + seen
            angles = self.rotary_emb(hidden_states, position_ids)  # some kinds depend on the row's last position
            mixing["position_embeddings"] = angles if shard is None else tuple(map(shard.cut, angles))
        for layer in self.layers:
            hidden_states = layer(hidden_states, cache=cache, **mixing)
        if cache is not None and not self.has_attention:
            count_tokens(cache, seen, hidden_states.shape[1])
        returned: dict[str, Any] = {CACHE: cache if use_cache else None}
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **returned)

    def _checked_rows(self, input_ids: Any, inputs_embeds: Any, cache: Cache | None) -> torch.Tensor:
        """Check ids or embeddings, whichever is given, and return it."""
        if cache is not None and self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            raise ValueError("cache: gradient checkpointing would write it twice; call model.eval(), or leave it out")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("forward: give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            check_ids(input_ids, self.config.vocab_size)
            return input_ids
        check_embeddings(inputs_embeds, self.config.hidden_size)
        return inputs_embeds

    def _tokens_seen(self, cache: Cache | None) -> Any:
        if cache is None:
            return 0
        return cache.get_seq_length() if self.has_attention else tokens_seen(cache)

    def masks_by_layer_type(
        self, attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor, cache: Cache | None
    ) -> dict[str, Any]:
        """Return the masks by layer type for `forward`, so that a compiled step does not have to make them."""
        tokens = find_tokens(attention_mask, inputs_embeds, self._tokens_seen(cache))
        masks: dict[str, Any] = {"linear_attention": tokens}
        if self.has_attention:
            masks |= attention_masks(self.config, inputs_embeds, attention_mask, cache, tokens, None)["attention_mask"]
        return masks


class MesaForCausalLM(MesaPreTrainedModel, GenerationMixin):
    """The mesa model with a head that predicts the next token.

    Example:
        >>> model = MesaForCausalLM(MesaConfig(mixers="mesa"))            # doctest: +SKIP
        >>> baseline = MesaForCausalLM(MesaConfig(mixers="softmax"))      # doctest: +SKIP
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - the library's own form

    def __init__(self, config: MesaConfig):
        super().__init__(config)
        self.model = MesaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.token_loss: Any = None  # if set, computes the loss in `forward`, which then returns no logits
        self.post_init()

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the logits [..., vocabulary] of hidden states [..., hidden]."""
        logits = self.lm_head(hidden_states)
        if self.config.logit_softcap is not None:
            logits = self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)
        return logits

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor | slice = 0,
        past_key_values: Cache | None = None,
        context: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits [B, T, vocabulary], the cache, and the mean loss in nats if labels are given.

        Args:
            labels: [B, T] token ids, shifted here; -100 is ignored. Keyword arguments of transformers' loss are
                accepted too: `shift_labels` (already shifted), `ignore_index`, and `num_items_in_batch`, the divisor,
                by default the number of scored tokens. If no token is scored, that default makes the loss NaN, as in
                transformers' own models.
            logits_to_keep: 0 for all positions, n for the last n, or a tensor or slice of positions.
            context: as in `MesaModel.forward`; labels are those of whole rows. The logits are those of this process;
                the loss is its share of the rows' loss times the number of processes, so that the mean of losses and
                gradients over the processes equals that of the rows.

        The other arguments are those of `MesaModel.forward`.
        """
        check_keywords(self, kwargs, (*BASE_KEYWORDS, *LOSS_KEYWORDS))
        loss_options = {name: kwargs.pop(name) for name in LOSS_KEYWORDS if name in kwargs}
        scored = labels is not None or loss_options.get("shift_labels") is not None
        if scored and use_cache is None:
            use_cache = False
        if scored and context is not None:
            labels, loss_options = None, share_of_loss(context, labels, **loss_options)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=one_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            context=context,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if not isinstance(logits_to_keep, (torch.Tensor, slice)):
            logits_to_keep = slice(-logits_to_keep, None)
        hidden_states = hidden_states[:, logits_to_keep]
        loss = logits = None
        loss_options["vocab_size"] = self.config.vocab_size
        if scored and self.token_loss is not None:
            loss = self.token_loss(self.logits, hidden_states, labels, **loss_options)
        else:
            logits = self.logits(hidden_states)
            if scored:
                loss = self.loss_function(logits=logits, labels=labels, **loss_options)
        returned: dict[str, Any] = {CACHE: getattr(outputs, CACHE)}
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **returned,
        )

    @wraps(GenerationMixin.generate)
    def generate(self, *arguments: Any, **options: Any) -> Any:
        check_custom_generate(options)
        return super().generate(*arguments, **options)

    def prepare_inputs_for_generation(self, input_ids: Any, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        """Return the inputs of the next step, with the cache under its older name, which PEFT needs.

        Without it PEFT 0.21 prepends a learned prompt to every new token. `generate` looks for `inputs_embeds` here.
        With a cache that holds the whole prompt it would read all of it again: a ValueError.
        """
        unread = kwargs.get("next_sequence_length")
        if unread is not None and unread < 1:
            raise ValueError(f"{CACHE}: it already holds all tokens given; fill it with all but the last, or give more")
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        inputs["past_key_values"] = inputs.pop(CACHE, None)
        return inputs

    def create_masks_for_generate(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the masks by layer type that `generate` passes to a compiled step.

        transformers' own function makes no mask for recurrent layers on a single token. That token may be padding: in a
        prompt read token by token, or in a row that is empty in a conversation's next turn.
        """
        return self.model.masks_by_layer_type(attention_mask, inputs_embeds, kwargs.get(CACHE))

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *rest: Any, **more: Any
    ) -> None:
        if self._is_stateful and generation_config.is_assistant:
            raise ValueError(
                "assistant_model: rejected tokens cannot be removed from its recurrent state; use "
                "mesalm.hub.speculate.draft_model to draft with it, or a softmax model"
            )
        # the parent's parameters differ between releases of transformers, so they are passed through
        parent: Any = super()
        parent._prepare_cache_for_generation(generation_config, model_kwargs, *rest, **more)
        cache = model_kwargs.get(CACHE)
        if isinstance(cache, Cache) and not isinstance(cache, CountedTokens) and not self.model.has_attention:
            model_kwargs[CACHE] = counting(cache)

    def flops_per_token(self, sequence_length: int, solver_steps: float = 0.0) -> float:
        """Return the floating-point operations per token of one training step, forward and backward.

        This is three times the forward pass: two operations per weight of every linear map and of the head, plus the
        mixers' own products, with this mean number of solver steps in mesa layers (`solver_steps()` measures it).
        """
        embeddings = self.model.embed_tokens.weight.numel()
        weights = sum(parameter.numel() for parameter in self.parameters()) - embeddings
        if self.config.tie_word_embeddings:
            weights += embeddings  # a tied head still computes its product
        mixers = sum(layer.mixer.flops(sequence_length, solver_steps) for layer in self.model.layers)
        return 3.0 * (2.0 * weights + mixers)


# Trainer's label smoothing shifts labels only for classes in this table
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault("mesa", "MesaForCausalLM")

__all__ = ["MesaForCausalLM", "MesaModel", "MesaPreTrainedModel"]
