"""Settings of the data: which corpora, how they are split, tokenised and packed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator

from mesalm.files import expanded
from mesalm.settings import LARGEST_SEED, Settings, known, without_none_words

from .corpora import SOURCES
from .source_settings import SourceSettings

WITHOUT_FILES = ("python-stdlib", "packages", "episodes")
"""Sources that read neither `files` nor `dataset`."""
PLACES = {
    "files": ("files", "hub"),
    "dataset": ("hub",),
    "ids_column": ("files", "hub"),
    "packages": ("packages",),
    "episodes": ("episodes",),
}
"""Settings that select the text, with the sources that read them."""


class KnownSource(SourceSettings):
    """One corpus of a known kind."""

    name: Annotated[str, known(lambda: SOURCES, "a source")] = Field(
        description=f"Kind of source: {', '.join(SOURCES)}."
    )

    def _check(self) -> None:
        for field, kinds in PLACES.items():
            if self.name in WITHOUT_FILES and self.name not in kinds and getattr(self, field):
                raise ValueError(
                    f"{field} is not read by source {self.name!r}; set name={' or '.join(kinds)}, or leave {field} out"
                )


FEWEST_TOKENS = 258
"""Tokens of the smallest tokenizer that `mesalm.data.bpe` trains: all bytes, end of text, and padding."""


class DataSettings(Settings):
    """The prepared data of a run."""

    sources: list[KnownSource] = Field(
        default_factory=lambda: [KnownSource(name="python-stdlib")],
        min_length=1,
        description="Corpora.",
    )
    tokenizer: str = Field(
        default="train",
        description="'train' (byte-level BPE on the train split), a folder, a Hub name, or 'none' if every "
        "source has ids_column.",
    )
    vocab_size: int = Field(
        default=4096,
        ge=2,
        lt=2**31,
        description="Vocabulary size of a trained tokenizer, at least 258; with tokenizer 'none', the bound on ids.",
    )
    tokenizer_bytes: int = Field(
        default=20_000_000, ge=1, description="Bytes of training text to train the tokenizer on."
    )
    sequence_length: int = Field(default=256, ge=2, lt=2**31, description="Tokens per row.")
    valid_fraction: float = Field(
        default=0.05, ge=0.0, lt=1.0, description="Fraction of documents of 'split' sources held out as valid."
    )
    test_fraction: float = Field(
        default=0.05, ge=0.0, lt=1.0, description="Fraction of documents of 'split' sources held out as test."
    )
    processes: int | None = Field(
        default=None, ge=1, description="Processes that tokenise; none: one for small corpora, else one per core."
    )
    skip_bad: bool = Field(default=False, description="Count and skip bad files and records instead of stopping.")
    deduplicate: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="Drop a document whose 5-grams of words have at least this Jaccard similarity with an earlier one, "
        "estimated by MinHash; 0.8 is usual. none: drop only exact copies.",
    )
    decontaminate: list[str] = Field(
        default_factory=list,
        description="Evaluation files; training documents that share 13 consecutive words with one are dropped.",
    )
    stream: bool = Field(
        default=False,
        description="Read and tokenise training text during training, without writing rows; tokenizer and held-out "
        "rows come from stream_sample.",
    )
    stream_sample: int = Field(
        default=10_000, ge=1, description="stream: number of documents of each source to prepare in advance."
    )
    prepared: str | None = Field(
        default=None,
        description="Folder written by mesalm prepare, used as it is; of the other settings of data only "
        "sequence_length is checked, and sources are not read unless they are streamed.",
    )
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED, description="Seed of the splits and the document order.")
    cache_dir: str | None = Field(
        default=None, description="Cache of prepared data; none: $MESALM_CACHE, else ~/.cache/mesalm."
    )

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _none_is_a_choice(cls, tokenizer: Any) -> Any:
        return "none" if without_none_words(tokenizer) is None else tokenizer

    def _check(self) -> None:
        if self.valid_fraction + self.test_fraction >= 1.0:
            raise ValueError("valid_fraction + test_fraction leave nothing to train on; make them less than 1")
        if self.tokenizer == "train" and self.vocab_size < FEWEST_TOKENS:
            raise ValueError(
                f"vocab_size: {self.vocab_size} is less than the {FEWEST_TOKENS} tokens of all bytes, end of text and "
                "padding; set it higher"
            )
        if self.tokenizer == "train" and any(source.ids_column for source in self.sources):
            raise ValueError(
                "a source with ids_column has its own tokenizer; set tokenizer to that folder or Hub name, "
                "or to 'none' with vocab_size"
            )
        if self.tokenizer == "none" and not all(source.ids_column for source in self.sources):
            raise ValueError("tokenizer 'none' needs ids_column in every source; set a tokenizer or 'train'")
        for name in ("deduplicate", "decontaminate"):
            if self.tokenizer == "none" and getattr(self, name):
                raise ValueError(
                    f"{name} needs text, which ids give only with a tokenizer; set tokenizer, or leave it out"
                )
        self._check_weights()
        if self.stream:
            self._check_stream()

    def _check_weights(self) -> None:
        training = self.training_sources()
        for source in self.sources:
            if source.weight is not None and source not in training:
                raise ValueError(f"source {source.name!r} is only used for {source.use}; leave out its weight")
        if 0 < sum(source.weight is not None for source in training) < len(training):
            raise ValueError("only some training sources have a weight; give each of them a weight, or none")

    def _check_stream(self) -> None:
        training = self.training_sources()
        if self.deduplicate is not None:
            raise ValueError("deduplicate must see all documents first; leave it out, or set stream to false")
        if any(source.ids_column for source in self.sources):
            raise ValueError("stream reads text; leave out ids_column, or set stream to false")
        if any(source.limit for source in training):
            raise ValueError("a streamed training source has no limit; leave it out, or set stream to false")
        if len(training) > 1 and training[0].weight is None:
            raise ValueError("streamed sources are mixed by weight; give each training source a weight")

    def training_sources(self) -> list[KnownSource]:
        """Return the sources with text to train on."""
        return [source for source in self.sources if source.use in ("split", "train")]

    def sampled(self) -> Self:
        """Return the settings for preparing; ``stream`` limits them to the first documents of each training source."""
        if not self.stream:
            return self
        sample = {"limit": self.stream_sample, "streaming": True}
        training = self.training_sources()
        sources = [source.model_copy(update=sample) if source in training else source for source in self.sources]
        return self.model_copy(update={"sources": sources})

    def cache_folder(self) -> Path:
        """Return the cache folder of prepared data."""
        chosen = self.cache_dir or os.environ.get("MESALM_CACHE") or "~/.cache/mesalm"
        return expanded(chosen)
