"""Releases of torch and transformers that the tests pass with; any other causes a warning."""

from __future__ import annotations

import importlib.metadata
import warnings

from packaging.specifiers import SpecifierSet

TESTED = {"torch": ">=2.11,<2.16", "transformers": ">=5.17,<5.25"}
"""Must equal the bounds in `pyproject.toml`."""


class UntestedVersionWarning(UserWarning):
    """Warning of a library release that the tests have not covered, so that results may be wrong."""


def check_versions() -> None:
    """Warn once about each library whose installed release is not in `TESTED`."""
    for name, tested in TESTED.items():
        installed = importlib.metadata.version(name)
        if not SpecifierSet(tested).contains(installed, prereleases=True):
            warnings.warn(
                f"mesalm is tested with {name}{tested}, and {installed} is installed: results may be wrong; "
                f"run: pip install '{name}{tested}'",
                UntestedVersionWarning,
                stacklevel=2,
            )
