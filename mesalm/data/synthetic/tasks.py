"""The table of synthetic tasks: one line a task."""

from __future__ import annotations

from .associative_recall import AssociativeRecall
from .automata import Automata
from .compression import Compression
from .context_recall import ContextRecall, NoisyRecall
from .fuzzy_recall import FuzzyRecall
from .memorisation import Memorisation
from .selective_copy import SelectiveCopy
from .token_task import TokenTask

TASKS: dict[str, type[TokenTask]] = {
    "mqar": AssociativeRecall,
    "automata": Automata,
    "compression": Compression,
    "context-recall": ContextRecall,
    "fuzzy-recall": FuzzyRecall,
    "memorisation": Memorisation,
    "noisy-recall": NoisyRecall,
    "selective-copy": SelectiveCopy,
}
"""Name -> settings that draw the rows."""
