"""The table of sequence mixers: one row per mixer."""

from __future__ import annotations

from typing import Any, NamedTuple

from .cache_mesa import ATTENTION
from .mixer_delta import DeltaMixer
from .mixer_gated import GATES, GatedMixer
from .mixer_kalman import MIX, KalmanMixer
from .mixer_linear import LinearMixer
from .mixer_mesa import RIDGE, MesaMixer
from .mixer_softmax import SoftmaxMixer
from .mixer_window import WindowMixer


class Mixer(NamedTuple):
    """A sequence mixer and its properties; the defaults suit subclasses of `GatedMixer`.

    build: the class, called with a configuration and a layer index.
    conv_size: default width of its short convolution; 0: no convolution.
    float32: names of the modules and parameters that stay float32 in a model of another dtype.
    converts: whether `mesalm convert` can replace softmax attention by it.
    """

    build: type[Any]
    conv_size: int = 4
    float32: tuple[str, ...] = GATES
    converts: bool = True

    @property
    def attention(self) -> str | None:
        """Return transformers' layer type for the mixer's attention masks; None for a recurrent mixer."""
        kind: str | None = self.build.attention
        return kind

    @property
    def recurrent(self) -> bool:
        """Return whether the mixer has a state of constant size instead of cached keys and values."""
        return self.attention is None

    def cache_layer(self, convolved: bool) -> str:
        """Return transformers' layer type for the mixer's cache; `convolved`: whether it has a convolution."""
        if self.attention is None:
            return "linear_attention"
        return ATTENTION[self.attention] if convolved else self.attention


MIXERS = {
    "delta": Mixer(DeltaMixer),
    "kalman": Mixer(KalmanMixer, float32=(*GATES, MIX)),
    "linear": Mixer(LinearMixer),
    "mesa": Mixer(MesaMixer, float32=(*GATES, RIDGE)),
    "softmax": Mixer(SoftmaxMixer, conv_size=0, float32=(), converts=False),
    "window": Mixer(WindowMixer, conv_size=0, float32=(), converts=False),
}

OURS = frozenset(MIXERS)
PARTS = ("name", "attention", "forward", "flops", "state_numbers")
"""What the class of a mixer must have."""


def register_mixer(build: type[Any], **row: Any) -> None:
    """Add a mixer of your own to the table, under the name ``build.name``; a later one of this name replaces it.

    The file with this call must be imported before the name is used: ``code`` of a recipe and ``--code`` of the
    commands do so.

    Args:
        build: the class, which derives from `GatedMixer`, or has all of `PARTS`.
        row: the other fields of `Mixer`, if they differ from their defaults. The gates of a `GatedMixer` stay float32
            whatever ``float32`` names besides.

    Raises:
        ValueError: the class lacks one of `PARTS`, or has the name of one of our mixers.
    """
    if lacking := [part for part in PARTS if not hasattr(build, part)]:
        raise ValueError(f"{build.__name__}: has no {lacking[0]}; derive it from GatedMixer, or define {lacking[0]}")
    if build.name in OURS:
        raise ValueError(f"{build.__name__}: {build.name!r} is one of our mixers; give it a name of its own")
    if issubclass(build, GatedMixer):
        row["float32"] = tuple(dict.fromkeys([*GATES, *row.get("float32", ())]))
    MIXERS[build.name] = Mixer(build, **row)
