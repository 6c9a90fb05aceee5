"""Read episodes: documents that are generated at random."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from .documents import Document, Faults, Source
from .episode_words import ATTRIBUTES
from .episodes import TRAINING, TRAINING_WORDS, EpisodeSettings, draw_examples, draw_mapping
from .source_settings import SourceSettings


class EpisodeSource(Source):
    """Episodes made of the training words, as documents of domain "episodes"; see `EpisodeSettings`."""

    def __init__(self, settings: SourceSettings) -> None:
        super().__init__(settings)
        self.episodes = settings.episodes or EpisodeSettings()

    def identity(self) -> dict[str, Any]:
        """Return a sha256 of the words; the settings are part of every identity anyway."""
        pool = repr([asdict(TRAINING), ATTRIBUTES])
        return {"words": hashlib.sha256(pool.encode()).hexdigest()}

    def read(self, faults: Faults) -> Iterator[Document]:
        """Yield the episodes in the order of their numbers; each depends only on the seed and its number."""
        settings = self.episodes
        pool = TRAINING_WORDS if settings.label_pool == "words" else TRAINING
        for number in range(settings.count):
            taught = number % settings.mappings if settings.mappings else number
            mapping = draw_mapping(settings, pool, np.random.RandomState([settings.seed, 0, taught]))
            random = np.random.RandomState([settings.seed, 1, number])
            lines = draw_examples(mapping, settings.lines, random, settings.noise)
            text = "".join(line.text() for line in lines)
            yield Document(f"episode-{number}", self.settings.domain or "episodes", text)
