"""The notebooks run from top to bottom."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "last"), [("ten-minutes", "mesa ["), ("lab-tour", "relative to ridge': 1.")])
def test_a_notebook_runs(name: str, last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="in the extra dev")
    nbformat = pytest.importorskip("nbformat", reason="in the extra dev")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(DOCS / f"{name}.ipynb", as_version=4)
    kept = [cell["outputs"] for cell in notebook.cells if cell.cell_type == "code"]
    assert any(kept), "the notebook is kept executed"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": os.fspath(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if output.get("text")
    )
    assert last in printed  # the last cell ran
