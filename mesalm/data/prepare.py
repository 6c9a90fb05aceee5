"""The door of the data room: prepared data for settings, from the cache or built anew."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesalm.files import writing

from .corpora import SOURCES
from .data_settings import DataSettings
from .documents import DataError, Source
from .prepared import FORMAT, MANIFEST, Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# These change where and how fast the work is done, not its result; contents stand for file names.
NOT_IN_KEY = {"cache_dir", "processes", "sources"}


def prepare(settings: DataSettings, *, quiet: bool = False) -> Prepared:
    """Return the prepared data of ``settings``, building them if the cache has none.

    The folder is named by a hash of the contents of the sources, the settings and the tokenizer. It
    appears under its name only when it is whole; of processes that want the same data, one builds them
    and the others wait. ``quiet`` hides the progress bars.

    Raises DataError for sources that cannot be read or hold too little, SettingsError for settings.
    """
    from filelock import FileLock

    sources = [SOURCES[source.name](source) for source in settings.sources]
    tokenizer = _given_tokenizer(settings)
    identities = [source.identity() for source in sources]
    key = _cache_key(settings, identities, tokenizer)
    parent = settings.cache_folder() / "prepared"
    folder = parent / key[:24]
    if _is_whole(folder):
        return Prepared(folder)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{parent}: cannot be made ({error.strerror}); set cache_dir to another folder") from error
    with FileLock(parent / f"{folder.name}.lock"):
        if not _is_whole(folder):
            # Holding the lock, what is left here comes from a process that was killed.
            for leftover in [folder, *parent.glob(f".{folder.name}-*")]:
                shutil.rmtree(leftover, ignore_errors=True)
            _build(settings, sources, identities, tokenizer, key, folder, quiet)
    return Prepared(folder)


def _build(
    settings: DataSettings,
    sources: Sequence[Source],
    identities: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None,
    key: str,
    folder: Path,
    quiet: bool,
) -> None:
    from .build import Build

    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    with writing(folder, temporary):
        with _bars(quiet):
            found = Build(settings, sources, tokenizer, temporary, quiet).run()
        if [source.identity() for source in sources] != identities:
            raise DataError("a source changed while it was being read; run prepare again")
        named = zip(settings.sources, identities, strict=True)
        manifest = {
            "format": FORMAT,
            "hash": key,
            "settings": settings.model_dump(mode="json"),
            "sources": [{"name": source.name, **identity} for source, identity in named],
            **found,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.chmod(temporary, 0o755)
        os.replace(temporary, folder)


def _cache_key(
    settings: DataSettings, identities: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase | None
) -> str:
    from .bpe import tokenizer_hash

    content = {
        "format": FORMAT,
        "settings": settings.model_dump(mode="json", exclude=NOT_IN_KEY | {"tokenizer"}),
        "sources": [
            [source.model_dump(mode="json", exclude={"files", "dataset"}), identity]
            for source, identity in zip(settings.sources, identities, strict=True)
        ],
        "tokenizer": settings.tokenizer if tokenizer is None else tokenizer_hash(tokenizer),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _given_tokenizer(settings: DataSettings) -> PreTrainedTokenizerBase | None:
    from .bpe import load_tokenizer

    return None if settings.tokenizer in ("train", "none") else load_tokenizer(settings.tokenizer)


def _is_whole(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


@contextmanager
def _bars(quiet: bool) -> Iterator[None]:
    """Hide the progress bars of datasets, which ours are too, while building quietly."""
    import datasets

    if not quiet or datasets.utils.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
