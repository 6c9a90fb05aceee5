"""Warnings of releases that the tests have not seen."""

from __future__ import annotations

import importlib.metadata
import shutil
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


def test_an_import_warns_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's files in a folder of their own, which transformers imports as a package; mesalm need not be there."""
    (tmp_path / "untested").mkdir()
    for file in Path(mesalm.model.__path__[0]).glob("*.py"):
        shutil.copyfile(file, tmp_path / "untested" / file.name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "mesalm", None)
    install(monkeypatch, "transformers", "5.99.0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("modeling_mesa", "classifier_mesa"):
            importlib.import_module(f"untested.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "untested"]:
        del sys.modules[name]
    assert [str(warning.message).split(",")[0] for warning in caught] == [
        f"mesalm is tested with transformers{TESTED['transformers'].split(',')[0]}"
    ]
