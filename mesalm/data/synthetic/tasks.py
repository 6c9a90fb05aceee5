"""The table of synthetic tasks: one line per task."""

from __future__ import annotations

from .associative_recall import AssociativeRecall
from .automata import Automata
from .compression import Compression
from .context_recall import ContextRecall, NoisyRecall
from .context_regression import ContextRegression
from .fuzzy_recall import FuzzyRecall
from .linear_dynamics import LinearDynamics
from .markov import Markov
from .memorisation import Memorisation
from .selective_copy import SelectiveCopy
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
"""Name -> settings that draw the rows."""
