"""Names, lengths and places of files."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    file
    for room in ("mesalm", "kernels", "eval", "tests")
    for file in sorted((ROOT / room).rglob("*.py"))
    if "__pycache__" not in file.parts
]


def dependencies() -> set[str]:
    """Return the import names of what pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *(item for items in project["optional-dependencies"].values() for item in items),
    ]
    names = {re.match(r"[A-Za-z0-9_.-]+", item).group().lower().replace("-", "_") for item in asked}
    return names | {"yaml", "hf", "kernels", "eval"}


def test_there_are_sources() -> None:
    assert len(SOURCES) > 30


def test_every_file_can_be_read_in_one_sitting() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in SOURCES}
    assert {file: lines for file, lines in lengths.items() if lines > 400} == {}


def test_every_name_says_what_is_inside_and_hides_nothing() -> None:
    taken = {"utils", "common", "helpers", "misc"} | sys.stdlib_module_names | dependencies()
    named = [file for file in SOURCES if not file.stem.startswith("__")]
    assert [str(file.relative_to(ROOT)) for file in named if file.stem in taken] == []


@pytest.mark.parametrize("shelf", ["kernels", "eval", "tests", "recipes"])
def test_a_shelf_is_a_plain_folder(shelf: str) -> None:
    assert (ROOT / shelf).is_dir()
    assert not (ROOT / shelf / "__init__.py").exists()


def test_a_shelf_holds_one_package() -> None:
    for shelf, package in {"kernels": "mesa_kernels", "eval": "mesa_eval"}.items():
        packages = [folder.name for folder in (ROOT / shelf).iterdir() if (folder / "__init__.py").exists()]
        assert packages == [package]


def test_tests_are_not_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_recipes_hold_data_only() -> None:
    assert not list((ROOT / "recipes").rglob("*.py"))


def test_the_model_folder_is_flat() -> None:
    assert [entry.name for entry in (ROOT / "mesalm/model").iterdir() if entry.is_dir()] in (
        [],
        ["__pycache__"],
    )
