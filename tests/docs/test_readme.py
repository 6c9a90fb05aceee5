"""The blocks of README.md run in their order, in a new folder, home and cache."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from pages import run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)  # not ```sh: it installs

SHOWN = re.findall(r"^```text\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def masked(line: str) -> str:
    """Return a line without what differs between machines: numbers, their signs, and the widths they give columns."""
    line = re.sub(r"[−+-]?\d[\d.,]*(?<=\d)", "#", line)
    return re.sub(r"([\s━])\1*", r"\1", line).strip()


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path: Path) -> None:
    assert [language for language, _ in BLOCKS] == ["bash", "python", "bash"]  # ```python loads what ```bash trains
    train, load, evaluate = (run(language, code, tmp_path, logs=language == "bash") for language, code in BLOCKS)
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == 10
    assert {"runs/first-mesa", "runs/first-softmax"} <= set(re.findall(r"runs/first-\w+", train))
    sentence, shape = load.strip().splitlines()
    shown_train, shown_load, shown_evaluate = SHOWN
    taught = "<|endoftext|>The plum was green, and now the"  # what ten lines have taught
    assert sentence.startswith(taught)
    assert shown_load.splitlines()[0].startswith(taught)
    assert shape == shown_load.splitlines()[1] == "torch.Size([1, 16, 2, 8])"
    for shown, printed in ((shown_train, train), (shown_evaluate, evaluate)):
        rest = iter(masked(line) for line in printed.splitlines())
        for line in shown.splitlines():
            start, dots, _ = masked(line).partition(" ...")
            assert any(other.startswith(start) if dots else other == start for other in rest), line
    assert "first-softmax" in evaluate
    assert (tmp_path / "reports/first/report.html").stat().st_size > 1000


def table(page: str, *columns: str) -> dict[str, list[str]]:
    """Return the rows of the page's only table whose header begins with these columns, by their names.

    An empty name repeats the one above; a row of showings has their number after its name.
    """
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    starts = [
        number for number, line in enumerate(lines) if line.strip("| ").split(" | ")[: len(columns)] == list(columns)
    ]
    assert len(starts) == 1, (page, columns, starts)
    found, name = {}, ""
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        first, *cells = (cell.strip() for cell in line.strip().strip("|").split("|"))
        name = first or name
        key = f"{name}, {cells.pop(0)}" if columns[0] == "showings" else name
        found[key] = cells
    return found


def figures(cell: str, digits: int | None = None) -> list[str]:
    """Return the figures of a cell, rounded to a number of digits after the point if one is given."""
    found = [figure.replace(",", "") for figure in re.findall(r"\d[\d,]*\.?\d*|\.\d+", cell)]
    return found if digits is None else [f"{float(figure):.{digits}f}" for figure in found]


def test_the_table_has_the_figures_of_the_kept_scores() -> None:
    arms = {
        "mesa": "mesa",
        "softmax, with convolution": "softmax-conv",
        "gated delta net": "delta",
        "linear (no solve)": "wide-linear",
    }
    shown = table("README.md", *arms)
    kept = json.loads(gzip.decompress((ROOT / "docs/results/context/float32/scores.json.gz").read_bytes()))["scores"]

    def mean(arm: str, key: str) -> float:
        models = [one for one in kept if re.fullmatch(rf"context(-tuned|-fp32)?-{arm}-s\d", one["model"]["name"])]
        measures = [measure for one in models for measure in one["parts"][0]["measures"] if measure["key"] == key]
        assert len(measures) == (5 if arm in ("mesa", "softmax-conv") else 3)
        return sum(sum(each["numerator"]) / sum(each["denominator"]) for each in measures) / len(measures)

    def check(row: str, keys: list[str], digits: int) -> None:
        wanted = [[f"{mean(arm, key):.{digits}f}" for key in keys] for arm in arms.values()]
        assert [figures(cell, digits) for cell in shown[row]] == wanted

    for row, task in (("known labels", "word_labels"), ("new labels", "new_labels")):
        check(f"{row}: accuracy after 1, 2, 4 showings", [f"task/{task}/{n}/accuracy" for n in (1, 2, 4)], 2)
    check("bits per byte of validation code", ["bits_per_byte"], 3)
    check("nats per token at 1 and 8 times the training length", ["length/129-256", "length/1025-2048"], 2)
    row = "numbers in the state after 256 tokens"
    pages = [("mesa", "softmax", "mesa − softmax"), ("mesa", "gated delta net", "linear, mesa's state")]
    first, second = (table("docs/results/context.md", *columns)[row] for columns in pages)
    assert [figures(cell) for cell in shown[row]] == [figures(cell) for cell in (*first[:2], *second[1:3])]
