"""Releases of the libraries under the model that its tests pass with; others are warned of."""

from __future__ import annotations

import importlib.metadata
import warnings

from packaging.specifiers import SpecifierSet

TESTED = {"torch": ">=2.11,<2.16", "transformers": ">=5.17,<5.25"}
"""The releases that an install takes too: `pyproject.toml` says the same."""


class UntestedVersionWarning(UserWarning):
    """A library's release that the tests have not covered, with which results may be wrong."""


def check_versions() -> None:
    """Warn once of each library whose installed release is not among `TESTED`."""
    for name, tested in TESTED.items():
        installed = importlib.metadata.version(name)
        if not SpecifierSet(tested).contains(installed, prereleases=True):
            warnings.warn(
                f"mesalm is tested with {name}{tested}, and {installed} is installed: results may be wrong; "
                f"run: pip install '{name}{tested}'",
                UntestedVersionWarning,
                stacklevel=2,
            )
