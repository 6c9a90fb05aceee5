"""The versions of what computes."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("mesalm", "torch", "transformers", "accelerate", "datasets", "tokenizers")


def versions() -> dict[str, str]:
    """Return the versions of python and of the packages that decide what a run computes."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
