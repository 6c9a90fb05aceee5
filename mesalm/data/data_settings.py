"""Settings of the data: which corpora, how they are split, tokenised and packed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from mesalm.settings import LARGEST_SEED, Settings, nearest, without_none_words

from .corpora import SOURCES
from .episodes import EpisodeSettings


class SourceSettings(Settings):
    """Describe one corpus."""

    name: str = Field(description=f"Kind of source: {', '.join(SOURCES)}.")
    files: str | list[str] = Field(
        default_factory=list,
        description="files: paths or globs of .txt, .jsonl, .parquet (.txt and .jsonl also with .gz). "
        "hub: data files, when dataset is a format such as json or parquet.",
    )
    packages: list[str] = Field(
        default_factory=list,
        description="packages: installed distributions whose Python source is read, as NAME or NAME==VERSION.",
    )
    episodes: EpisodeSettings | None = Field(default=None, description="episodes: what they teach, and how many.")
    dataset: str | None = Field(default=None, description="hub: name on the Hub, a local folder, or a format name.")
    subset: str | None = Field(default=None, description="hub: name of the dataset's configuration.")
    split: str = Field(default="train", description="hub: split of the dataset that is read.")
    revision: str | None = Field(default=None, description="hub: branch, tag or commit of the dataset.")
    streaming: bool = Field(default=False, description="hub: read over the network without downloading first.")
    limit: int | None = Field(default=None, ge=1, description="Most documents read from this source.")
    text_column: str = Field(default="text", description="Column that holds a document's text.")
    ids_column: str | None = Field(
        default=None, description="Column of ready-made token ids, used instead of text; needs data.tokenizer."
    )
    domain_column: str = Field(default="domain", description="Column that names a document's domain, if present.")
    id_column: str = Field(default="id", description="Column that names a document, if present.")
    domain: str | None = Field(default=None, description="Domain of every document; overrides domain_column.")
    use: Literal["split", "train", "valid", "test"] = Field(
        default="split", description="Where documents go: split by the fractions, or all into one split."
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SOURCES:
            guess = nearest(name, SOURCES)
            hint = f"did you mean {guess!r}?" if guess else f"the sources are {', '.join(SOURCES)}"
            raise ValueError(f"unknown source {name!r}; {hint}")
        return name

    def file_patterns(self) -> list[str]:
        """Return ``files`` as a list."""
        return [self.files] if isinstance(self.files, str) else list(self.files)


class DataSettings(Settings):
    """Describe the prepared data of a run."""

    sources: list[SourceSettings] = Field(
        default_factory=lambda: [SourceSettings(name="python-stdlib")],
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
