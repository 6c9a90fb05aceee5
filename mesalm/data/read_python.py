"""Python source that is already on the machine: the standard library and installed packages."""

from __future__ import annotations

import hashlib
import io
import platform
import sysconfig
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from mesalm.settings import SettingsError

from .documents import DataError, Document, Faults, Source
from .source_settings import SourceSettings

# Tests are numerous, repetitive and full of odd literals. Installed packages are not the standard library. A tenth
# of all bytes are the character tables of `encodings`, which are nearly identical, so that held-out documents
# would be copies of training text.
EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}
)

TELLING_LENGTH = 20
"""Shorter lines occur in many files by chance and are no sign of a copy."""

COPIED_SHARE = 0.5
"""A file is a near-copy if more than this share of its telling lines occurred in earlier files."""


class StandardLibrarySource(Source):
    """The ``.py`` files of the standard library, one document of domain "python" each.

    A file whose bytes do not match its declared encoding is skipped and counted, never an error: users did not
    choose these files and cannot repair them.
    """

    licence = "PSF-2.0"

    def __init__(self, settings: SourceSettings) -> None:
        super().__init__(settings)
        root = Path(sysconfig.get_paths()["stdlib"])
        self.files = _own_files({path.relative_to(root).as_posix(): path for path in root.rglob("*.py")})
        if not self.files:
            raise DataError(f"{root}: this interpreter has no standard library source; use source 'files'")

    def identity(self) -> dict[str, Any]:
        """Return the interpreter's version and a sha256 of the names and contents of the files."""
        interpreter = f"{platform.python_implementation()} {platform.python_version()}"
        return {"interpreter": interpreter, "sha256": _digest(self.files)}

    def read(self, faults: Faults) -> Iterator[Document]:
        """Yield the files in the order of their paths."""
        for name, text in _decoded(self.files, faults):
            yield Document(name, self.settings.domain or "python", text)


@dataclass(frozen=True)
class Package:
    """An installed distribution: name as requested, version, licence if stated, and files by their relative path."""

    name: str
    version: str
    licence: str | None
    files: dict[str, Path]


class PackageSource(Source):
    """The ``.py`` files of the named distributions, one document each, whose domain is the distribution's name.

    Tests and near-copies of earlier files are left out: some packages contain the same few hundred lines dozens of
    times. A file whose bytes do not match its declared encoding is skipped and counted.

    Raises SettingsError if no packages are set, and DataError for one that is not installed, has a version other than
    the one requested, or has no Python source.
    """

    def __init__(self, settings: SourceSettings) -> None:
        super().__init__(settings)
        if not settings.packages:
            raise SettingsError("source 'packages' has no packages; set packages, such as ['sympy==1.14.0']")
        self.packages = [find_package(asked) for asked in settings.packages]

    @property
    def licence(self) -> str | None:
        """The licences stated by the packages."""
        return ", ".join(f"{package.name} {package.licence}" for package in self.packages if package.licence) or None

    def identity(self) -> dict[str, Any]:
        """Return each package's name, version and a sha256 of the names and contents of its files."""
        packages = [
            {"name": package.name, "version": package.version, "sha256": _digest(package.files)}
            for package in self.packages
        ]
        return {"packages": packages}

    def read(self, faults: Faults) -> Iterator[Document]:
        """Yield the files, package by package, in the order of their paths."""
        seen: set[bytes] = set()
        for package in self.packages:
            for name, text in _decoded(package.files, faults):
                lines = telling_lines(text)
                if sum(line in seen for line in lines) > COPIED_SHARE * len(lines):
                    faults.near_copies += 1
                    continue
                seen.update(lines)
                yield Document(name, self.settings.domain or package.name, text)


def find_package(asked: str) -> Package:
    """Return the installed distribution given by "NAME" or "NAME==VERSION"."""
    name, _, version = asked.partition("==")
    try:
        found = distribution(name)
    except (PackageNotFoundError, ValueError) as error:
        raise DataError(f"packages: {name!r} is not installed; pip install '{asked}'") from error
    if version and found.version != version:
        raise DataError(
            f"packages: {name} is installed at version {found.version}, not {version}; pip install '{asked}'"
        )
    files = _package_files(found)
    if not files:
        raise DataError(f"packages: {name} has no Python source here; install a wheel of it, or leave it out")
    classifiers = found.metadata.get_all("Classifier") or []
    named = [line.rpartition(":: ")[2] for line in classifiers if line.startswith("License ::")]
    licences = found.metadata.get_all("License-Expression") or named
    return Package(name, found.version, ", ".join(licences) or None, files)


def telling_lines(text: str) -> set[bytes]:
    """Return digests of the stripped lines that are long enough to distinguish files."""
    lines = (line.strip() for line in text.splitlines())
    return {hashlib.blake2b(line.encode(), digest_size=8).digest() for line in lines if len(line) >= TELLING_LENGTH}


def _decoded(files: Mapping[str, Path], faults: Faults) -> Iterator[tuple[str, str]]:
    """Yield names and texts of Python files, decoded by byte-order mark or coding line; count those that fail."""
    for name, path in files.items():
        content = path.read_bytes()
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            text = content.decode(encoding)
        except (SyntaxError, UnicodeDecodeError, LookupError):
            faults.undecodable += 1
        else:
            yield name, text


def _package_files(found: Distribution) -> dict[str, Path]:
    paths = [path for path in found.files or () if path.suffix == ".py" and ".." not in path.parts]
    return _own_files({path.as_posix(): Path(str(path.locate())) for path in paths})


def _own_files(files: Mapping[str, Path]) -> dict[str, Path]:
    """Return the existing files outside excluded folders, sorted by name."""
    own = {name for name in files if EXCLUDED_FOLDERS.isdisjoint(name.split("/")[:-1])}
    return {name: files[name] for name in sorted(own) if files[name].is_file()}


def _digest(files: Mapping[str, Path]) -> str:
    total = hashlib.sha256()
    for name, path in files.items():
        content = path.read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()
