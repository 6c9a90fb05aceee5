"""Any dataset that `datasets.load_dataset` can read: a Hub name, a local folder, or a format with files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from mesalm.files import file_hash
from mesalm.pretrained import asking_hub
from mesalm.settings import SettingsError

from .documents import DataError, Document, Faults, Source, record_document
from .source_settings import SourceSettings


class HubSource(Source):
    """The rows of one split of a dataset, loaded or streamed; with ``part`` (count, index), one shard of a stream."""

    def __init__(self, settings: SourceSettings, part: tuple[int, int] | None = None) -> None:
        if not settings.dataset:
            raise SettingsError("source 'hub' has no dataset; set dataset to a Hub name or a local folder")
        super().__init__(settings)
        self.files = settings.file_patterns() or None
        self.part = part

    def shards(self) -> list[Source]:
        """Return a source for each file of the streamed dataset; a source opens its file only when it is read."""
        streamed = self.settings.model_copy(update={"streaming": True})
        count = self._call("load_dataset", split=self.settings.split, streaming=True).num_shards
        return [HubSource(streamed, (count, index)) for index in range(count)]

    def identity(self) -> dict[str, Any]:
        """Return the dataset's name with the hash of each local file or the address of each remote file.

        A remote address contains the commit, so a changed dataset has a different identity.
        """
        builder = self._call("load_dataset_builder")
        settings = self.settings
        named = {"dataset": settings.dataset, "subset": settings.subset, "split": settings.split}
        data_files = builder.config.data_files or {}
        split = settings.split.split("[")[0]
        # A combined split such as "train+test" is not a key; then every file counts.
        chosen = [data_files[split]] if split in data_files else list(data_files.values())
        if not chosen:
            return {**named, "builder": builder.config_id, "hash": builder.hash}
        files = [entry for group in chosen for entry in zip(group, _origins(group), strict=True)]
        return {**named, "files": [_file_identity(str(file), origin) for file, origin in files]}

    @property
    def licence(self) -> str | None:
        """The licence stated on the dataset card, if any."""
        return self._call("load_dataset_builder").info.license or None

    def read(self, faults: Faults) -> Iterator[Document]:
        """Yield the documents in the dataset's order."""
        settings = self.settings
        name = str(settings.dataset)
        rows = self._call("load_dataset", split=settings.split, streaming=settings.streaming)
        if self.part is not None:
            rows = rows.shard(*self.part)
        columns = rows.column_names
        main = settings.ids_column or settings.text_column
        if columns is not None and main in columns:
            # Other columns may hold images or audio, whose decoding needs additional packages.
            wanted = {main, settings.domain_column, settings.id_column}
            rows = rows.select_columns([column for column in columns if column in wanted])
        for number, record in enumerate(_read(rows, name), 1):
            where, default_id = f"{name}: row {number}", f"{Path(name).name}:{number}"
            document = record_document(record, where, default_id, settings, faults)
            if document is not None:
                yield document

    def _call(self, function: str, **options: Any) -> Any:
        settings, name = self.settings, str(self.settings.dataset)
        try:
            # a format with files, such as json, asks the Hub for nothing
            with asking_hub(name if self.files is None or "/" in name else "."):
                return getattr(datasets, function)(
                    settings.dataset,
                    settings.subset,
                    data_files=self.files,
                    revision=settings.revision,
                    **options,
                )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(
                f"{settings.dataset}: the dataset cannot be loaded ({_first_line(error)}); "
                "check dataset, subset, split and the network"
            ) from error


def _read(rows: Any, name: str) -> Iterator[Any]:
    """Yield the rows of a dataset; raises DataError where its files or the network do not give the next one."""
    count = 0
    try:
        for row in rows:
            yield row
            count += 1
    except Exception as error:  # its type depends on the file's format and on the HTTP library
        raise DataError(
            f"{name}: reading ended after row {count} ({_first_line(error)}); check the dataset's files and the "
            "network, and repeat the command"
        ) from error


def _origins(group: Any) -> list[Any]:
    """Return the origin of each file of a split; all origins for each file if files of other formats were left out."""
    origins = list(group.origin_metadata)
    return origins if len(origins) == len(group) else [[part for origin in origins for part in origin]] * len(group)


def _file_identity(name: str, origin: Any) -> dict[str, Any]:
    path = Path(name)
    if path.is_file():
        return {"name": path.name, "sha256": file_hash(path)}
    return {"name": name, "origin": [str(part) for part in origin]}


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = str(cause).splitlines() or str(error).splitlines()
    return lines[0] if lines else type(error).__name__
