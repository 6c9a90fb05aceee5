"""The table of sequence mixers: one row per mixer."""

from __future__ import annotations

from typing import Any, NamedTuple

from .mixer_gated import GATES
from .mixer_linear import LinearMixer
from .mixer_mesa import RIDGE, MesaMixer
from .mixer_softmax import SoftmaxMixer


class Mixer(NamedTuple):
    """A sequence mixer and what the rest of the code must know of it; the defaults suit subclasses of `GatedMixer`.

    build: the class, made from a configuration and the number of its layer.
    recurrent: whether it keeps a state of constant size; else it keeps the keys and values of every token, and is given
        a causal mask and rotary positions.
    conv_size: width of its short convolution where the configuration names none; 0: no convolution.
    float32: names of the modules and parameters that stay float32 in a model of another dtype.
    converts: whether `mesalm convert` can put it in the place of softmax attention.
    """

    build: type[Any]
    recurrent: bool = True
    conv_size: int = 4
    float32: tuple[str, ...] = GATES
    converts: bool = True

    def cache_layer(self, convolved: bool) -> str:
        """Return the layer type by which transformers makes its cache; `convolved`: whether it has a convolution."""
        if self.recurrent:
            return "linear_attention"
        return "hybrid" if convolved else "full_attention"


MIXERS = {
    "linear": Mixer(LinearMixer),
    "mesa": Mixer(MesaMixer, float32=(*GATES, RIDGE)),
    "softmax": Mixer(SoftmaxMixer, recurrent=False, conv_size=0, float32=(), converts=False),
}
