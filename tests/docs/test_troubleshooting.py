"""Every line that docs/troubleshooting.md quotes is one that the code prints."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from mesalm.train.progress import event_line
from mesalm.train.recorder import Alarms

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
LINES = re.findall(r"^```text\n(.*?)\n```", PAGE, flags=re.DOTALL | re.MULTILINE)
LEAST, FEWEST = 10, 24
"""Letters that a text in the code must have of its own to be looked for, and that a message must have in all."""


@cache
def messages() -> list[tuple[int, re.Pattern[str]]]:
    """Return a pattern for every text in the code, in which anything stands for what is filled in, and its letters."""
    found = []
    for file in sorted((ROOT / "mesalm").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        constants = {
            node.targets[0].id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        }

        def fixed(part: ast.expr, constants: dict[str, str] = constants) -> str | None:
            if isinstance(part, ast.Constant):
                return str(part.value)
            if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
                return constants.get(part.value.id)
            return None

        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [fixed(part) for part in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [node.value]
            else:
                continue
            if (letters := sum(len(part or "") for part in parts)) >= LEAST:
                pattern = "".join("(.*)" if part is None else re.escape(part) for part in parts)
                found.append((letters, re.compile(pattern)))
    return found


def letters_found(text: str) -> int:
    """Return how many letters of a text stand in the code, those of messages within a message too."""
    matches = [(letters, match) for letters, message in messages() if (match := message.fullmatch(text))]
    return max((own + max(map(letters_found, match.groups()), default=0) for own, match in matches), default=0)


@pytest.mark.parametrize("line", LINES, ids=lambda line: re.sub(r"\W+", "-", line)[:50])
def test_a_quoted_line_is_one_that_the_code_prints(line: str) -> None:
    if (alarm := re.search(r"alarm  alarm (.*)  value (\S+)  layer (\d+)  head (\d+)", line)) is not None:
        place = {"solver_layer": int(alarm[3]), "solver_head": int(alarm[4])}
        keys = {"forget gate shut": "forget_gate", "solutions out of tolerance": "solver_misses"}
        gates = ("input_gate", "forget_gate", "saturated_forget_gates")
        fields = dict.fromkeys(("solver_misses", *gates)) | {"gradient_norm": 1.0} | place
        (raised,) = Alarms().raised({**fields, keys[alarm[1]]: float(alarm[2])})
        assert event_line(1200, "alarm", raised) == line
        return
    said = re.sub(r"^mesalm( \w+)?: (my-model: (?=step))?|^step \d+  upload  checkpoint \S+  failed ", "", line)
    assert letters_found(said) >= FEWEST


def test_a_line_that_nothing_prints_is_noticed() -> None:
    changed = LINES[0].removeprefix("mesalm train: ").replace("another name", "another title")
    assert letters_found(changed) == 0


def test_there_are_twelve_symptoms_at_least() -> None:
    assert len(LINES) >= 12
