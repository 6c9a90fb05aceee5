"""The model of the compression task: a whole sequence read back from the state after its last token.

No `from __future__ import annotations` here: transformers reads the class behind the annotation `config: MesaConfig`.
"""

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.modeling_mesa import MesaModel, MesaPreTrainedModel


class MesaForCompression(MesaPreTrainedModel):
    """A mesa model that encodes tokens, and a decoder of each from the last hidden state and its position alone.

    The decoder is two layers that see one vector, h_last + position t, so whatever it knows of the tokens went
    through h_last (the compression task of MAD, Poli et al. 2024, arXiv 2403.17844).
    """

    def __init__(self, config: MesaConfig):
        super().__init__(config)
        width = config.hidden_size
        self.model = MesaModel(config)
        self.positions = nn.Embedding(config.max_position_embeddings, width)
        self.decoder = nn.Sequential(
            LlamaRMSNorm(width, eps=config.rms_norm_eps),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, config.vocab_size),
        )
        self.post_init()

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> CausalLMOutput:
        """Return logits [B, T, vocabulary] of each token, and the mean loss in nats where labels are given.

        Args:
            input_ids: [B, T].
            labels: [B, T] token ids, each at its own position, not shifted; -100 is not scored.
        """
        last = self.model(input_ids=input_ids, use_cache=False).last_hidden_state[:, -1:]
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        # as in ScaledEmbedding: without the factor the state would drown the positions, which start small
        logits = self.decoder(last + self.positions(places) * self.config.hidden_size**0.5)
        loss = None if labels is None else nn.functional.cross_entropy(logits.transpose(1, 2).float(), labels)
        return CausalLMOutput(loss=loss, logits=logits)


__all__ = ["MesaForCompression"]
