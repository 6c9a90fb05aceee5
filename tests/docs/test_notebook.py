"""The notebook runs from top to bottom."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs/ten-minutes.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="in the extra dev")
    nbformat = pytest.importorskip("nbformat", reason="in the extra dev")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = [cell["outputs"] for cell in notebook.cells if cell.cell_type == "code"]
    assert any(kept), "the notebook is kept executed"
    nbclient.NotebookClient(notebook, timeout=280, resources={"metadata": {"path": os.fspath(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if output.get("text")
    )
    assert "mesa [" in printed  # the last cell ran
