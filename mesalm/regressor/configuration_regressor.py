"""The configuration of the model of continuous tokens."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.field_rules import choice, documented, not_negative, truth, whole

TOKENS = ("plain", "constructed")
SLOTS = 4
"""Parts of a constructed token, each of the input's size."""


@documented
@strict
class RegressorConfig(MesaConfig):
    """Configuration of a model that reads vectors and predicts the next vector after each.

    It adds fields to those of `MesaConfig`. The defaults follow the experiments of von Oswald et al. 2023
    (arXiv 2309.05858): mixers without gates, convolution, norms and MLP, and one ridge per head that starts at 1.

    Raises:
        ValueError: an unknown kind of tokens, or a width that does not fit constructed tokens.
    """

    model_type = "mesa_regressor"

    input_size: int = 10
    tokens: str = "plain"
    copy_slot: bool = True
    positions: bool = True
    learned_vectors: int = 0
    learned_range: float = 1.0
    vocab_size: int = 1
    hidden_size: int = 40
    intermediate_size: int = 300
    num_hidden_layers: int = 1
    num_attention_heads: int = 4
    conv_size: int | None = 0
    gates: bool = False
    qk_l2_norm: bool = False
    read_norm: bool = False
    block_norms: bool = False
    block_mlps: bool = False
    hidden_act: str = "gelu"
    ridge_floor: float = 0.0
    ridge_per_channel: bool = False
    initializer_range: float = 0.05

    field_rules = {  # noqa: RUF012 - without annotation, or it would be a field
        **MesaConfig.field_rules,
        "input_size": whole(1, "Size D of the input and output vectors."),
        "tokens": choice(
            TOKENS,
            "plain: linear maps from each vector to the residual stream and back; constructed: tokens [0, x_t, x_t, "
            "x_{t-1}] of width 4 D (hidden_size), with the prediction in the first part.",
        ),
        "copy_slot": truth("Whether the second part of a constructed token is x_t; if not, it is 0."),
        "positions": truth("Whether the first mixer's query and key maps also read sinusoidal positions."),
        "learned_vectors": whole(0, "Number of learned vectors, whose positions each batch gives (separator, prefix)."),
        "learned_range": not_negative("Initial standard deviation of the learned vectors."),
    }

    def check(self) -> None:
        """Raise ValueError where fields do not fit together; see `MesaConfig.check`."""
        super().check()
        if self.tokens == "constructed" and self.hidden_size != SLOTS * self.input_size:
            raise ValueError(
                f"hidden_size: {self.hidden_size} must be {SLOTS} times input_size {self.input_size} for constructed "
                "tokens"
            )
        if self.tokens == "constructed" and self.positions:
            raise ValueError("positions: constructed tokens have none; set it to False")


__all__ = ["RegressorConfig"]
