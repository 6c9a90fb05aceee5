"""The blocks of README.md run in their order, in a new folder, home and cache."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)  # not ```sh: it installs


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path: Path) -> None:
    assert [language for language, _ in BLOCKS] == ["bash", "python", "bash"]  # ```python loads what ```bash trains
    train, load, evaluate = (run(language, code, tmp_path) for language, code in BLOCKS)
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == 10
    assert {"runs/first-mesa", "runs/first-softmax"} <= set(re.findall(r"runs/first-\w+", train))
    sentence, shape = load.strip().splitlines()
    assert "The plum was green, and now the" in sentence  # what ten lines have taught
    assert shape == "torch.Size([1, 16, 2, 8])"
    assert "first-softmax" in evaluate
    assert (tmp_path / "reports/first/report.html").stat().st_size > 1000


def test_the_table_repeats_the_figures_of_the_pages_that_it_names() -> None:
    rows = {row[0]: row[1:] for row in (line.strip("| ").split(" | ") for line in README.splitlines() if "|" in line)}
    context = (ROOT / "docs/results/context.md").read_text(encoding="utf-8")
    cases = {
        "bits per byte of held-out code": context,
        "numbers in the state after 256 tokens": context,
    }
    for name, page in cases.items():
        figures = [re.match(r"\**([\d.,]+\d)", cell)[1] for cell in rows[name] if cell != "–"]
        assert len(figures) in (3, 4)
        assert all(re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", page) for figure in figures), name
