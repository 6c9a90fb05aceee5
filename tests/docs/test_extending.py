"""docs/extending.md, followed to the letter in a copy of the code."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
CHANGE = re.compile(r'^```(python|diff) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def changed(text: str, diff: str) -> str:
    """Return a text with the added lines of a diff, each behind the lines that the diff shows before it.

    Raises ValueError for a line that the diff shows and the text has not.
    """
    lines, place = text.splitlines(), 0
    for line in diff.splitlines():
        if line.startswith("+"):
            lines.insert(place, line[1:])
            place += 1
        else:
            place = lines.index(line[1:], place) + 1
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the code with every change of the page."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("mesalm", "eval", "kernels", "recipes", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for kind, name, text in CHANGE.findall(PAGE):
        file = folder / name
        assert file.exists() == (kind == "diff"), name
        file.write_text(changed(file.read_text(encoding="utf-8"), text) if kind == "diff" else text, encoding="utf-8")
    return folder


def test_the_changes_fit_the_code(copy: Path) -> None:
    changes = CHANGE.findall(PAGE)
    assert [name for kind, name, _ in changes if kind == "diff"] == [
        "mesalm/data/corpora.py",
        "mesalm/train/schedule.py",
        "eval/mesa_eval/tasks/__init__.py",
    ]
    for _, name, _ in changes:
        for node in ast.walk(ast.parse((copy / name).read_text(encoding="utf-8"), name)):
            if isinstance(node, ast.ImportFrom) and (node.level or node.module.startswith("mesa")):
                root = copy / "eval" if node.module.startswith("mesa_eval") else copy
                module = ((copy / name).parent if node.level else root) / f"{node.module.replace('.', '/')}.py"
                text = (module if module.exists() else module.with_suffix("") / "__init__.py").read_text("utf-8")
                for alias in node.names:
                    assert re.search(rf"\b{alias.name}\b", text), f"{name}: {node.module} has no {alias.name}"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # eight processes that each import torch, on a busy machine
def test_the_commands_run(copy: Path) -> None:
    """In the order of the page, since its later commands use the model that an earlier one trains."""
    commands = [line for block in COMMANDS.findall(PAGE) for line in block.splitlines()]
    assert len(commands) == 8
    places = [os.environ["PATH"], str(copy), str(copy / "eval"), str(copy / "kernels")]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), places[0]]),
        "PYTHONPATH": os.pathsep.join(places[1:]),
        "MESALM_CACHE": str(copy / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    printed = []
    for command in commands:
        result = subprocess.run(
            ["bash", "-c", command], cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        printed.append(result.stdout)
    assert re.search(r"\b(\d\d+) passed", printed[3])
    assert "last_letter" in printed[-1]
