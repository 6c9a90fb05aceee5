"""The table of sources: to add a corpus, write a class like those named here and add one line."""

from __future__ import annotations

from .documents import Source
from .read_episodes import EpisodeSource
from .read_files import FileSource
from .read_hub import HubSource
from .read_python import PackageSource, StandardLibrarySource

SOURCES: dict[str, type[Source]] = {
    "python-stdlib": StandardLibrarySource,
    "packages": PackageSource,
    "episodes": EpisodeSource,
    "files": FileSource,
    "hub": HubSource,
}
