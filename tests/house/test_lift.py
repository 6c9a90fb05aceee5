"""The model folder is what is published, flat; tests/hub/test_published_code.py has a stranger use it."""

from __future__ import annotations

import ast
from pathlib import Path

from mesalm.hub.publish import AUTO_MAP

ROOT = Path(__file__).parents[2]


def test_the_model_folder_holds_what_the_published_classes_need_and_no_more() -> None:
    files = {file.stem: file for file in (ROOT / "mesalm/model").glob("*.py") if file.name != "__init__.py"}
    needed, left = set(), {name.split(".")[0] for name in AUTO_MAP.values()}
    while left:
        name = left.pop()
        needed.add(name)
        statements = ast.walk(ast.parse(files[name].read_text(encoding="utf-8")))
        left |= {str(node.module) for node in statements if isinstance(node, ast.ImportFrom) and node.level} - needed
    assert needed == set(files)
