"""Return the prepared data of settings, from the cache or newly built."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mesalm.files import expanded, file_hash, fingerprints, whole_folder, write_sealed, write_text
from mesalm.locks import locked
from mesalm.settings import SettingsError

from .bpe import folder_hash, load_tokenizer, tokenizer_hash
from .build import Build
from .corpora import SOURCES
from .corpus_card import CARD, corpus_card
from .data_settings import DataSettings
from .documents import DataError
from .prepared import FORMAT, MANIFEST, Prepared, changed_sources, hidden_bars
from .read_files import matching_files

# These settings do not affect the result; files enter the key by their contents instead of their names.
NOT_IN_KEY = {"cache_dir", "decontaminate", "prepared", "processes", "sources"}


class ChangedDataError(DataError):
    """Data differ from those expected."""


class Inputs:
    """The inputs of preparing: the sources, the identity of each, and the tokenizer if one is given."""

    def __init__(self, settings: DataSettings) -> None:
        self.settings = settings.sampled()
        self.sources = [SOURCES[source.name](source) for source in self.settings.sources]
        self.identities = [source.identity() for source in self.sources]
        trained = settings.tokenizer in ("train", "none")
        self.tokenizer = None if trained else load_tokenizer(settings.tokenizer)

    def key(self) -> str:
        """Return a sha256 over everything that affects the prepared data."""
        settings = self.settings
        content = {
            "format": FORMAT,
            "settings": settings.model_dump(mode="json", exclude=NOT_IN_KEY | {"tokenizer"}),
            "sources": [
                [source.model_dump(mode="json", exclude={"files", "dataset"}), identity]
                for source, identity in zip(settings.sources, self.identities, strict=True)
            ],
            "tokenizer": settings.tokenizer if self.tokenizer is None else folder_hash(self.tokenizer),
            "decontaminate": [file_hash(path) for path in matching_files(settings.decontaminate)],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def folder(self) -> Path:
        """Return the folder of the data, which may not exist yet."""
        return self.settings.cache_folder() / "prepared" / self.key()[:24]

    def named(self) -> list[dict[str, Any]]:
        """Return the identity of each source, with its name."""
        pairs = zip(self.settings.sources, self.identities, strict=True)
        return [{"name": source.name, **identity} for source, identity in pairs]

    def compare(self, expected: Mapping[str, Any]) -> None:
        """Raise ChangedDataError if ``expected`` was prepared from other inputs."""
        change = changed_sources(expected["sources"], self.named(), in_order=self.settings.stream)
        if change is not None:
            raise ChangedDataError(change)
        if self.tokenizer is not None and tokenizer_hash(self.tokenizer) != expected["tokenizer"]:
            raise ChangedDataError(f"the tokenizer {self.settings.tokenizer} has changed")


def prepare(settings: DataSettings, *, quiet: bool = False, expected: Mapping[str, Any] | None = None) -> Prepared:
    """Return the prepared data of ``settings``, building them if the cache has none.

    The folder is named by a hash of the contents of the sources, the settings and the tokenizer. It
    gets this name only when it is complete. If several processes need the same data, one builds them
    and the others wait. Data in the cache, or in the folder ``settings.prepared`` if that is given, are checked
    against their digests. Unless ``quiet``, one line per stage is printed, and
    on a terminal a bar.

    Raises DataError for unreadable or too small sources and for damaged data, SettingsError for invalid settings, and
    ChangedDataError if the data differ from ``expected``, the `Prepared.contents` of earlier data; if possible before
    anything is built.
    """
    if settings.prepared is not None:
        return _given(settings, expected)
    inputs = Inputs(settings)
    if expected is not None:
        inputs.compare(expected)
    folder = inputs.folder()
    parent = folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{parent}: cannot be created ({error.strerror}); set cache_dir to another folder") from error
    _sweep(parent)
    if not _is_whole(folder):

        def busy(holder: str) -> None:
            if not quiet:
                print(f"waiting for {holder}, which is preparing the same data", file=sys.stderr)

        with locked(parent / f"{folder.name}.lock", busy):
            if not _is_whole(folder):
                _build(inputs, folder, quiet)
    prepared = Prepared(folder)
    with hidden_bars(quiet):
        prepared.check()
    if expected is not None:
        _compare_results(prepared.contents(), expected)
    return prepared


def already_prepared(settings: DataSettings) -> Prepared | None:
    """Return the prepared data of ``settings`` if they are in the cache, else None.

    Data of hub sources count as not prepared, since checking them would need the network.
    """
    if settings.prepared is not None:
        folder = expanded(settings.prepared)
        return Prepared(folder) if _is_whole(folder) else None
    if any(source.name == "hub" for source in settings.sources) or settings.tokenizer not in ("train", "none"):
        return None
    try:
        folder = Inputs(settings).folder()
    except ValueError:
        return None
    return Prepared(folder) if _is_whole(folder) else None


def _given(settings: DataSettings, expected: Mapping[str, Any] | None) -> Prepared:
    """Return the data in the folder ``settings.prepared``; of its sources only those that are streamed are checked."""
    prepared = Prepared(expanded(str(settings.prepared)))
    if prepared.sequence_length != settings.sequence_length:
        raise SettingsError(
            f"data.sequence_length: is {settings.sequence_length}, but the rows of {prepared.path} have "
            f"{prepared.sequence_length} tokens; set it to {prepared.sequence_length}"
        )
    prepared.check()
    if expected is not None:
        change = changed_sources(expected["sources"], prepared.contents()["sources"])
        if change is not None:
            raise ChangedDataError(change)
        _compare_results(prepared.contents(), expected)
    change = _changed_stream(settings, prepared) if settings.stream else None
    if change is not None and expected is not None:
        raise ChangedDataError(change)
    if change is not None:
        raise DataError(f"data.prepared: {prepared.path} is of other sources than are streamed, {change}; leave it out")
    return prepared


def _changed_stream(settings: DataSettings, prepared: Prepared) -> str | None:
    """Describe how the streamed sources differ from those of which ``prepared`` has the held-out text."""
    now = [{"name": source.name, **SOURCES[source.name](source).identity()} for source in settings.training_sources()]
    before = zip(prepared.manifest["settings"]["sources"], prepared.manifest["sources"], strict=True)
    was = [identity for source, identity in before if source["use"] in ("split", "train")]
    return changed_sources(was, now, in_order=True)


def check_inputs(settings: DataSettings, expected: Mapping[str, Any]) -> None:
    """Raise ChangedDataError if `prepare` would read other inputs than those of ``expected``."""
    if settings.prepared is not None:
        _given(settings, expected)
    else:
        Inputs(settings).compare(expected)


def _compare_results(contents: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if contents["tokenizer"] != expected["tokenizer"]:
        raise ChangedDataError("the tokenizer has changed")
    if contents["weights"] != expected.get("weights", contents["weights"]):  # older checkpoints do not have them
        raise ChangedDataError("the weights of its sources have changed")
    for split, digest in expected["rows"].items():
        if contents["rows"][split] != digest:
            raise ChangedDataError(f"the rows of {split} have changed, though the sources have not")


def _sweep(parent: Path) -> None:
    """Delete incomplete folders of killed processes; those of running ones are locked."""
    for leftover in parent.glob("*.partial"):
        with suppress(OSError), locked(leftover.with_suffix(".lock")):
            shutil.rmtree(leftover, ignore_errors=True)


def _build(inputs: Inputs, folder: Path, quiet: bool) -> None:
    with whole_folder(folder) as temporary:
        with hidden_bars(quiet):
            found = Build(inputs.settings, inputs.sources, inputs.tokenizer, temporary, quiet).run()
        if [source.identity() for source in inputs.sources] != inputs.identities:
            raise DataError("a source changed while it was being read; run prepare again")
        manifest = {
            "format": FORMAT,
            "hash": inputs.key(),
            "settings": inputs.settings.model_dump(mode="json"),
            "sources": inputs.named(),
            **found,
        }
        write_text(temporary / CARD, corpus_card(manifest))
        manifest["files"] = fingerprints(temporary)
        write_sealed(temporary / MANIFEST, manifest)


def _is_whole(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()
