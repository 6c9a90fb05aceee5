"""The table of sequence mixers: one line a mixer."""

from __future__ import annotations

from .mixer_linear import LinearMixer
from .mixer_mesa import MesaMixer
from .mixer_softmax import SoftmaxMixer

MIXERS = {
    "linear": LinearMixer,
    "mesa": MesaMixer,
    "softmax": SoftmaxMixer,
}
