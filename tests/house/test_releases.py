"""What `make test-newest` and `make test-oldest` install."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("which", ["newest", "oldest"])
def test_every_dependency_is_asked_for(which: str) -> None:
    program = [sys.executable, ".ci/releases.py", which]
    printed = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = {asked.name: asked for asked in map(Requirement, printed.splitlines())}
    extras = PROJECT["optional-dependencies"]
    needed = [*map(Requirement, [*PROJECT["dependencies"], *extras["eval"]])]
    assert found.keys() == {asked.name for asked in [*needed, *map(Requirement, extras["dev"])]}
    for asked in needed:
        lower = next(part.version for part in asked.specifier if part.operator == ">=")
        assert str(found[asked.name].specifier) == (f"=={lower}" if which == "oldest" else "")
        assert (found[asked.name].extras, found[asked.name].marker) == (asked.extras, asked.marker)
