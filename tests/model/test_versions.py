"""Warnings of releases that the tests have not seen."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import mesalm.model
from mesalm.model.versions import TESTED, UntestedVersionWarning, check_versions

ROOT = Path(__file__).parents[2]


def test_an_install_takes_the_releases_that_are_not_warned_of() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    taken = {item.name: item.specifier for item in map(Requirement, asked)}
    assert {name: SpecifierSet(tested) for name, tested in TESTED.items()} == {name: taken[name] for name in TESTED}


def install(monkeypatch: pytest.MonkeyPatch, name: str, release: str) -> None:
    """Let `name` be installed as `release`."""
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda asked: release if asked == name else real(asked))


def bounds(name: str) -> list[str]:
    return [item.lstrip("<>=") for item in TESTED[name].split(",")]


@pytest.mark.parametrize("name", TESTED)
@pytest.mark.parametrize("place", ["above", "before", "below"])
def test_an_untested_release_is_warned_of_in_one_line(name: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lower, upper = bounds(name)
    installed = {"above": f"{upper}.0+cu130", "before": f"{upper}.0.dev0", "below": "1.0"}[place]
    install(monkeypatch, name, installed)
    with pytest.warns(UntestedVersionWarning) as caught:
        check_versions()
    message = str(caught[0].message)
    assert len(caught) == 1
    assert "\n" not in message
    for part in (f"{name}>={lower},<{upper}, and {installed} is installed", f"pip install '{name}>={lower},<{upper}'"):
        assert part in message


@pytest.mark.parametrize("name", TESTED)
def test_tested_releases_are_not_warned_of(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lower, upper = bounds(name)
    major, minor = upper.split(".")
    for installed in (lower, f"{major}.{int(minor) - 1}.9+cpu", f"{major}.{int(minor) - 1}.1.dev20260101"):
        install(monkeypatch, name, installed)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_versions()


@pytest.mark.parametrize(
    "with_mesalm", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["mesalm", "published"]
)
def test_an_import_warns_once(with_mesalm: bool, tmp_path: Path) -> None:
    """The warning comes with `import mesalm`, and with the code of a published folder where mesalm is not there."""
    words = "import mesalm, mesalm.model.modeling_mesa, mesalm.model.classifier_mesa"
    if not with_mesalm:
        # transformers imports the copied files as modules of a package
        (tmp_path / "folder").mkdir()
        for file in Path(mesalm.model.__path__[0]).glob("*.py"):
            shutil.copyfile(file, tmp_path / "folder" / file.name)
        words = (
            f"sys.path.insert(0, {str(tmp_path)!r}); sys.modules['mesalm'] = None\n"
            "import folder.modeling_mesa, folder.classifier_mesa"
        )
    change = "real = m.version\nm.version = lambda name: '5.99.0' if name == 'transformers' else real(name)"
    result = subprocess.run(
        [sys.executable, "-c", f"import importlib.metadata as m, sys\n{change}\n{words}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr.count("UntestedVersionWarning: mesalm is tested with transformers") == 1
