"""Settings of one corpus."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mesalm.settings import Settings

from .episodes import EpisodeSettings


class SourceSettings(Settings):
    """One corpus: where it is and how to read it."""

    name: str = Field(description="Kind of source.")
    files: str | list[str] = Field(
        default_factory=list,
        description="files: paths, globs and folders of .txt, .jsonl, .json, .csv (each also with .gz or .zst) and "
        ".parquet. hub: data files, if dataset is a format such as json or parquet.",
    )
    packages: list[str] = Field(
        default_factory=list,
        description="packages: installed distributions to read the Python source of, as NAME or NAME==VERSION.",
    )
    episodes: EpisodeSettings | None = Field(default=None, description="episodes: their kind and number.")
    dataset: str | None = Field(default=None, description="hub: name on the Hub, a local folder, or a format name.")
    subset: str | None = Field(default=None, description="hub: name of the dataset's configuration.")
    split: str = Field(default="train", description="hub: split of the dataset to read.")
    revision: str | None = Field(default=None, description="hub: branch, tag or commit of the dataset.")
    streaming: bool = Field(default=False, description="hub: stream over the network instead of downloading.")
    limit: int | None = Field(default=None, ge=1, description="Maximum number of documents to read.")
    text_column: str = Field(default="text", description="Column with a document's text.")
    ids_column: str | None = Field(
        default=None, description="Column with token ids, used instead of text; needs data.tokenizer."
    )
    domain_column: str = Field(default="domain", description="Column that names a document's domain, if present.")
    id_column: str = Field(default="id", description="Column that names a document, if present.")
    domain: str | None = Field(default=None, description="Domain of every document; overrides domain_column.")
    weight: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Share of the training rows, relative to the other weights; a source that runs out is repeated. "
        "none: each epoch reads all sources once, mixed by size.",
    )
    licence: str | None = Field(default=None, description="Licence of the text, for the corpus card.")
    use: Literal["split", "train", "valid", "test"] = Field(
        default="split", description="Where documents go: split by the fractions, or all into one split."
    )

    def file_patterns(self) -> list[str]:
        """Return ``files`` as a list."""
        return [self.files] if isinstance(self.files, str) else list(self.files)
