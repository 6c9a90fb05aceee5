"""Python source of installed packages: tens of millions of tokens of code that anyone with pip has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from mesalm.settings import SettingsError

from .documents import DataError, Document, Faults
from .read_stdlib import EXCLUDED_FOLDERS, decode_python
from .source_settings import SourceSettings

TELLING_LENGTH = 20
"""Lines shorter than this stand in many files by chance and do not mark a copy."""

COPIED_SHARE = 0.5
"""A file is a near-copy when more than this share of its telling lines stood in files before it."""


@dataclass(frozen=True)
class Package:
    """An installed distribution: name as asked for, version, licence if stated, and files by their path in it."""

    name: str
    version: str
    licence: str | None
    files: dict[str, Path]


class PackageSource:
    """The ``.py`` files of the named distributions, one document each; the distribution's name is its domain.

    Tests are left out, and so are near-copies of files that came before: some packages hold the same few hundred
    lines dozens of times. A file whose declared encoding does not fit its bytes is skipped and counted.

    Raises SettingsError without packages, DataError for one that is not installed, has another version than asked
    for, or has no Python source.
    """

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        if not settings.packages:
            raise SettingsError("source 'packages' has no packages; set packages, such as ['sympy==1.14.0']")
        self.packages = [find_package(asked) for asked in settings.packages]

    @property
    def licence(self) -> str | None:
        """The licences that the packages state."""
        return ", ".join(f"{package.name} {package.licence}" for package in self.packages if package.licence) or None

    def identity(self) -> dict[str, Any]:
        """Return name, version and a sha256 over names and contents of the files of each package."""
        return {"packages": [_identity(package) for package in self.packages]}

    def documents(self, faults: Faults) -> Iterator[Document]:
        """Yield up to ``limit`` files, package by package, in the order of their paths."""
        seen: set[bytes] = set()
        count = 0
        for package in self.packages:
            for name, path in package.files.items():
                text = decode_python(path.read_bytes())
                if text is None:
                    faults.undecodable += 1
                    continue
                lines = telling_lines(text)
                if sum(line in seen for line in lines) > COPIED_SHARE * len(lines):
                    faults.near_copies += 1
                    continue
                seen.update(lines)
                yield Document(name, self.settings.domain or package.name, text)
                count += 1
                if count == self.settings.limit:
                    return


def find_package(asked: str) -> Package:
    """Return the installed distribution that "NAME" or "NAME==VERSION" asks for."""
    name, _, version = asked.partition("==")
    try:
        found = distribution(name)
    except (PackageNotFoundError, ValueError) as error:
        raise DataError(f"packages: {name!r} is not installed; pip install '{asked}'") from error
    if version and found.version != version:
        raise DataError(
            f"packages: {name} is installed at version {found.version}, not {version}; pip install '{asked}'"
        )
    files = _python_files(found)
    if not files:
        raise DataError(f"packages: {name} has no Python source here; install a wheel of it, or leave it out")
    classifiers = found.metadata.get_all("Classifier") or []
    named = [line.rpartition(":: ")[2] for line in classifiers if line.startswith("License ::")]
    licences = found.metadata.get_all("License-Expression") or named
    return Package(name, found.version, ", ".join(licences) or None, files)


def telling_lines(text: str) -> set[bytes]:
    """Return digests of the lines that tell one file from another: stripped, and not short."""
    lines = (line.strip() for line in text.splitlines())
    return {hashlib.blake2b(line.encode(), digest_size=8).digest() for line in lines if len(line) >= TELLING_LENGTH}


def _python_files(found: Distribution) -> dict[str, Path]:
    paths = [path for path in found.files or () if path.suffix == ".py" and ".." not in path.parts]
    own = [path for path in paths if EXCLUDED_FOLDERS.isdisjoint(path.parts[:-1])]
    located = {path.as_posix(): Path(str(path.locate())) for path in sorted(own, key=lambda path: path.as_posix())}
    return {name: path for name, path in located.items() if path.is_file()}


def _identity(package: Package) -> dict[str, Any]:
    total = hashlib.sha256()
    for name, path in package.files.items():
        content = path.read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return {"name": package.name, "version": package.version, "sha256": total.hexdigest()}
