"""A wheel carries the three packages and the recipes, and works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("mesalm-*.whl")
    return built


def test_the_wheel_holds_three_packages_recipes_and_templates(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"mesalm", "mesa_kernels", "mesa_eval"}
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"mesalm/recipes/{recipe.name}" in names
    for package in tops:
        assert f"{package}/py.typed" in names
    for template in (ROOT / "eval/mesa_eval/report/templates").iterdir():
        assert f"mesa_eval/report/templates/{template.name}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_unpacked_wheel_finds_its_recipes_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import mesalm; from mesalm.train.recipe import load_recipe; "
        "print(mesalm.__file__, load_recipe('demo', arm='softmax-conv').name)"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "site")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    place, name = result.stdout.split()
    assert place.startswith(str(tmp_path / "site"))
    assert name == "demo-softmax-conv"
