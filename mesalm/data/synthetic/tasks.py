"""The registry of synthetic tasks."""

from __future__ import annotations

from .associative_recall import AssociativeRecall
from .automata import Automata
from .context_regression import ContextRegression
from .linear_dynamics import LinearDynamics
from .mad import Compression, ContextRecall, FuzzyRecall, Memorisation, NoisyRecall, SelectiveCopy
from .markov import Markov
from .token_task import TokenTask
from .vector_task import VectorTask

SyntheticTask = TokenTask | VectorTask

TASKS: dict[str, type[TokenTask] | type[VectorTask]] = {
    "mqar": AssociativeRecall,
    "automata": Automata,
    "compression": Compression,
    "context-recall": ContextRecall,
    "fuzzy-recall": FuzzyRecall,
    "linear-dynamics": LinearDynamics,
    "markov": Markov,
    "memorisation": Memorisation,
    "noisy-recall": NoisyRecall,
    "regression": ContextRegression,
    "selective-copy": SelectiveCopy,
}
"""Name of each task -> the class of its settings, which draws the rows."""
