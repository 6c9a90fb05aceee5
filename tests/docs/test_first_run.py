"""The blocks of docs/first-run.md run in their order, and so do the commands in the README of the run they make."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import run

from mesalm.journal import read_journal

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[tuple[str, str]]:
    """Return language and text of a page's blocks, but not ```sh: these need an account."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```(bash|python)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_blocks_run_in_order(tmp_path: Path) -> None:
    for language, code in blocks("first-run.md"):
        run(language, code, tmp_path, seconds=900)
    steps = [line for line in read_journal(tmp_path / "runs/my-model/journal.jsonl") if line["event"] == "step"]
    assert steps[-1]["step"] == 80
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    assert "copy accuracy" in (tmp_path / "published/README.md").read_text(encoding="utf-8")
    page = (tmp_path / "runs/my-model/README.md").read_text(encoding="utf-8")
    commands = [line for line in re.findall(r"^    (mesalm .*)$", page, flags=re.MULTILINE) if "OWNER" not in line]
    assert [line.split()[1] for line in commands] == ["train", "plot", "sample", "eval", "publish"]
    run("bash", "\n".join(commands).replace("quick", "quick --task word_labels"), tmp_path, seconds=900)
    assert (tmp_path / "my-model-published/model.safetensors").exists()
