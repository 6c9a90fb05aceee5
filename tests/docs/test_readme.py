"""The blocks of README.md run in their order, in a new folder, home and cache."""

from __future__ import annotations

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


def test_the_table_repeats_the_figures_of_the_pages_that_it_names() -> None:
    arms = ("mesa", "softmax", "linear", "hybrid")
    shown = table("README.md", "mesa", "softmax, with convolution", "linear (no solve)", "hybrid")
    showings = table("docs/results/context.md", "showings", *arms)
    losses = table("docs/results/context.md", *arms)

    def check(row: str, sources: list[list[str]], digits: int | None = None) -> None:
        for column, arm in enumerate(arms):
            wanted = [figure for source in sources for figure in figures(source[column], digits)]
            assert figures(shown[row][column], digits) == wanted, (row, arm)

    for row, name in (("known labels", "labels of training"), ("new labels", "new labels")):
        check(f"{row}: accuracy after 1, 2, 4 showings", [showings[f"{name}, {count}"] for count in (1, 2, 4)], 2)
    check("bits per byte of held-out code", [losses["bits per byte, 27 held-out files of code"]])
    places = ("129 to 256", "1,025 to 2,048")
    read = table("docs/results/context.md", "nats per token at", "windows", "tokens")
    columns = {"": (2, 6, 3, 4), "the same, softmax layers read through a window of the training length": (2, 7, 3, 5)}
    for row, chosen in columns.items():
        row = row or "nats per token at 1 and 8 times the training length"
        check(row, [[read[place][column] for column in chosen] for place in places], 2)
    check("numbers in the state after 256 tokens", [losses["numbers in the state after 256 tokens"]])
