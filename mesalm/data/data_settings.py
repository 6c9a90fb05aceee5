"""Settings of the data: which corpora, how they are split, tokenised and packed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from mesalm.settings import LARGEST_SEED, Settings, nearest, without_none_words

from .corpora import SOURCES
from .source_settings import SourceSettings


class KnownSource(SourceSettings):
    """One corpus of a kind that the table of sources has."""

    name: str = Field(description=f"Kind of source: {', '.join(SOURCES)}.")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SOURCES:
            guess = nearest(name, SOURCES)
            hint = f"did you mean {guess!r}?" if guess else f"the sources are {', '.join(SOURCES)}"
            raise ValueError(f"unknown source {name!r}; {hint}")
        return name


class DataSettings(Settings):
    """The prepared data of a run."""

    sources: list[KnownSource] = Field(
        default_factory=lambda: [KnownSource(name="python-stdlib")],
        min_length=1,
        description="Corpora, read one after another.",
    )
    tokenizer: str = Field(
        default="train",
        description="'train' (byte-level BPE on the train split), a folder, a Hub name, or 'none' when "
        "every source has ids_column.",
    )
    vocab_size: int = Field(
        default=4096,
        ge=258,
        lt=2**31,
        description="Size of a trained vocabulary; with tokenizer 'none', the bound on ids.",
    )
    tokenizer_bytes: int = Field(
        default=20_000_000, ge=1, description="Bytes of train text from which the tokenizer is trained."
    )
    sequence_length: int = Field(default=256, ge=2, lt=2**31, description="Tokens in a row.")
    valid_fraction: float = Field(
        default=0.05, ge=0.0, lt=1.0, description="Share of the documents of 'split' sources held out as valid."
    )
    test_fraction: float = Field(
        default=0.05, ge=0.0, lt=1.0, description="Share of the documents of 'split' sources held out as test."
    )
    processes: int | None = Field(
        default=None, ge=1, description="Processes that tokenise; none: one for small corpora, else one a core."
    )
    skip_bad: bool = Field(default=False, description="Count and skip bad files and records instead of stopping.")
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED, description="Seed of the split and of the order of documents.")
    cache_dir: str | None = Field(
        default=None, description="Folder of prepared data; none: $MESALM_CACHE, else ~/.cache/mesalm."
    )

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _none_is_a_choice(cls, tokenizer: Any) -> Any:
        return "none" if without_none_words(tokenizer) is None else tokenizer

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.valid_fraction + self.test_fraction >= 1.0:
            raise ValueError("valid_fraction + test_fraction leave nothing to train on; make them less than 1")
        if self.tokenizer == "train" and any(source.ids_column for source in self.sources):
            raise ValueError(
                "a source with ids_column has its own tokenizer; set tokenizer to that folder or Hub name, "
                "or to 'none' with vocab_size"
            )
        if self.tokenizer == "none" and not all(source.ids_column for source in self.sources):
            raise ValueError("tokenizer 'none' needs ids_column in every source; set a tokenizer or 'train'")
        return self

    def cache_folder(self) -> Path:
        """Return the folder under which prepared data are kept."""
        chosen = self.cache_dir or os.environ.get("MESALM_CACHE") or "~/.cache/mesalm"
        return Path(chosen).expanduser()
