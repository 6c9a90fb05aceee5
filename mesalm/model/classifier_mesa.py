"""The mesa model with a sequence classification head."""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.import_utils import is_tracing

from .cache_mesa import CACHE, one_cache
from .configuration_mesa import MesaConfig
from .keywords import check_keywords
from .modeling_mesa import MesaModel, MesaPreTrainedModel


class MesaForSequenceClassification(MesaPreTrainedModel):
    """A mesa model with a head that predicts `config.num_labels` classes, or numbers, from the last token.

    The last token is the last one that `attention_mask` keeps, or without a mask the last one that is not the padding
    token. So padding may be on the left or right. (transformers' own heads look for the padding token even if a mask is
    given, and pick the wrong token if the padding token also ends texts.)
    """

    # the losses are means over sequences, so Trainer must divide them by its accumulation steps
    accepts_loss_kwargs = False

    def __init__(self, config: MesaConfig):
        super().__init__(config)
        self.num_labels = len(config.id2label or {})
        self.model = MesaModel(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Return logits [B, labels], and the mean loss if labels are given.

        Args:
            attention_mask: [B, T], 0 at padding, left or right.
            labels: [B] classes, [B] or [B, labels] regression targets, or [B, labels] zeros and ones, according to
                `config.problem_type`; if that is None, transformers infers it from the number of labels and the dtype.

        The other arguments are those of `MesaModel.forward`.

        Raises:
            ValueError: several sequences without a mask or padding token to tell where they end; empty sequences, also
                of padding alone.
        """
        check_keywords(self, kwargs)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=one_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=False if labels is not None and use_cache is None else use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        last = self._last_tokens(hidden_states, input_ids, attention_mask)
        logits = self.score(hidden_states[torch.arange(len(last), device=last.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        returned: dict[str, Any] = {CACHE: getattr(outputs, CACHE)}
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **returned,
        )

    def _last_tokens(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the index of each sequence's last token, [B]."""
        batch, length, _ = hidden_states.shape
        if length == 0:
            raise ValueError(f"input_ids: {batch} empty sequences have no last token to score")
        places = torch.arange(length, device=hidden_states.device)
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            real = attention_mask[:, -length:] != 0
        elif input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
        elif batch == 1:
            return places[-1:]
        else:
            raise ValueError(
                f"attention_mask: needed to tell where {batch} sequences end; give it, or input_ids and a "
                "config.pad_token_id"
            )
        if not is_tracing(real) and not bool(real.any(dim=-1).all()):
            raise ValueError("attention_mask: a sequence of padding alone has no last token to score; leave it out")
        return (places * real.to(places)).argmax(-1)


__all__ = ["MesaForSequenceClassification"]
