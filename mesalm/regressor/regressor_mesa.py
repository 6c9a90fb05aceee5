"""The model for sequences of vectors: the language model's blocks between linear maps, or on constructed tokens.

No `from __future__ import annotations` here: transformers needs the class in the annotation `config`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from mesalm.model.model_inputs import attention_masks
from mesalm.model.modeling_mesa import MesaBlock, MesaPreTrainedModel, residual_norm
from mesalm.regressor.configuration_regressor import RegressorConfig


@dataclass
class RegressionOutput(ModelOutput):
    """The mean loss where targets were given, the predictions [B, T, D], and if asked for the residual stream before
    the first block and after each, every one [B, T, hidden]."""

    loss: torch.Tensor | None = None
    predictions: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class PositionedLinear(nn.Linear):
    """A linear map of tokens concatenated with their sinusoidal positions, y_t = W [h_t, p_t]."""

    def __init__(self, width: int, outputs: int):
        super().__init__(2 * width, outputs, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the maps, [B, T, outputs], of tokens [B, T, width]."""
        places = sinusoids(inputs.shape[1], inputs.shape[2], inputs.device).to(inputs.dtype)
        return super().forward(torch.cat((inputs, places.expand_as(inputs)), dim=-1))


def sinusoids(length: int, width: int, device: torch.device) -> torch.Tensor:
    """Return sines, then cosines, of each position in wavelengths from 2 pi to 20000 pi, float32 [length, width].

    Vaswani et al. 2017, section 3.5, with the sines in one half.
    """
    half = (width + 1) // 2
    rates = 10000.0 ** (-torch.arange(half, device=device) / half)
    angles = torch.arange(length, device=device).unsqueeze(-1) * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :width]


def half_squared_error(
    predictions: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return 1/2 |prediction - target|^2, summed over the entries, averaged over batch and time.

    predictions and targets [B, T, D]; weights [B, T] replace the average by a weighted one. The loss of von Oswald
    et al. 2023, section 2, over the length.
    """
    errors = 0.5 * (predictions - targets).square().sum(dim=-1)
    return errors.mean() if weights is None else (errors * weights).sum() / weights.sum()


class MesaRegressor(MesaPreTrainedModel):
    """A model that predicts the next vector after each vector of a sequence.

    Args:
        config: the model's configuration; `mixers` gives the mixer of each block.
    """

    config: RegressorConfig

    def __init__(self, config: RegressorConfig):
        super().__init__(config)
        plain = config.tokens == "plain"
        self.input_map = nn.Linear(config.input_size, config.hidden_size, bias=False) if plain else None
        self.layers = nn.ModuleList([MesaBlock(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = residual_norm(config)
        self.output_map = nn.Linear(config.hidden_size, config.input_size, bias=False) if plain else None
        if config.positions:
            first: Any = self.layers[0].mixer
            first.q_proj = PositionedLinear(config.hidden_size, first.q_proj.out_features)
            first.k_proj = PositionedLinear(config.hidden_size, first.k_proj.out_features)
        self.learned = None
        if config.learned_vectors:
            self.learned = nn.Parameter(torch.zeros(config.learned_vectors, config.input_size))
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MesaRegressor) and module.learned is not None:
            init.normal_(module.learned, mean=0.0, std=self.config.learned_range)

    def forward(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> RegressionOutput:
        """Return predictions [B, T, D], and the mean loss if targets are given (see `half_squared_error`).

        Args:
            inputs: [B, T, D].
            targets: [B, T, D].
            weights: [B, T], the weight of each position in the loss. None: equal weights.
            places: [B, T] integers, 0 for a vector of `inputs`, j for learned vector j, counted from 1.
            output_hidden_states: whether to return the residual stream before the first block and after each.

        Raises:
            ValueError: vectors of another size than the configuration's, places in a model without learned vectors.
        """
        hidden_states = self.embed(inputs, places)
        # neither padding nor a cache, nor documents
        masks = attention_masks(self.config, hidden_states, None, None, None, None)
        stream = [hidden_states]
        for layer in self.layers:
            hidden_states = layer(hidden_states, **masks)
            stream.append(hidden_states)
        hidden_states = self.norm(hidden_states)
        read = hidden_states[..., : self.config.input_size]
        predictions = read if self.output_map is None else self.output_map(hidden_states)
        return RegressionOutput(
            loss=None if targets is None else half_squared_error(predictions, targets, weights),
            predictions=predictions,
            hidden_states=tuple(stream) if output_hidden_states else None,
        )

    def embed(self, inputs: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        """Return the residual stream before the first block, [B, T, hidden]; arguments as `forward`'s."""
        if inputs.dim() != 3 or inputs.shape[-1] != self.config.input_size:
            raise ValueError(f"inputs: shape {list(inputs.shape)} must be [B, T, {self.config.input_size}]")
        if places is not None:
            if self.learned is None:
                raise ValueError("places: the model has no learned vectors; give learned_vectors in its configuration")
            with_zero = torch.cat((self.learned.new_zeros(1, self.config.input_size), self.learned))
            inputs = torch.where((places > 0).unsqueeze(-1), with_zero[places].to(inputs.dtype), inputs)
        return self.construct(inputs) if self.input_map is None else self.input_map(inputs)

    def construct(self, inputs: torch.Tensor) -> torch.Tensor:
        """Lay out constructed tokens [0, x_t, x_t, x_{t-1}], [B, T, 4 D], of vectors [B, T, D]; x_0 is 0."""
        empty = torch.zeros_like(inputs)
        previous = torch.cat((empty[:, :1], inputs[:, :-1]), dim=1)
        return torch.cat((empty, inputs if self.config.copy_slot else empty, inputs, previous), dim=-1)


__all__ = ["MesaRegressor", "RegressionOutput"]
