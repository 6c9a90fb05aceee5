"""Terminal tables of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mesa_eval.comparison.record import CORRECTION, NOT_SIGNIFICANT, Comparison, Row
from mesa_eval.measures.scores import SECTIONS
from mesa_eval.report.wording import Summary, number, p_words, spread_words, tested_name, tested_score
from mesalm.wording import plural

STYLES = {"better": "green", "worse": "red", NOT_SIGNIFICANT: "dim"}
MARKS = {"better": " +", "worse": " -"}  # not every reader or log shows colours
LEAST_WIDTH = 16  # characters of a column of words or of differences
SHOWN = ("accuracy", "greedy", "contains", "exact", "answer")  # per task; "exact" only without the metrics before it


class ArmCells(NamedTuple):
    """A line of a table: what is measured, its null score, and each arm's value and difference; all formatted."""

    measure: str
    null: str
    values: list[str]
    differences: list[str]


def print_comparison(comparison: Comparison, summary: Summary, console: Console | None = None) -> None:
    """Print models, text, context and few-shot tables, then the summary in words."""
    out = console or Console()
    _print_arms(out, comparison, "Models", _models(comparison))
    for section, title in SECTIONS.items():
        rows = comparison.section(section)
        if rows:
            _print_arms(out, comparison, *_rows(comparison, rows, title))
    if comparison.tasks:
        title = "Few-shot tasks, fewest to most shots"
        title += " (difference at the most)" * bool(comparison.compared)
        _print_arms(out, comparison, title, _tasks(comparison))
    if comparison.compared:
        out.print("Differences with 95 % intervals, each by itself.", style="dim", markup=False)
    if comparison.family:
        out.print(_family(comparison))
    limits = [summary.family, *summary.limits] if comparison.compared else []
    for line in [summary.compared, *summary.sentences, *limits, *comparison.notes]:
        out.print(f"- {line}", highlight=False, markup=False)


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """Make a table with columns of text and, after them, columns of numbers."""
    table = Table(title=title, title_justify="left")
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(escape(heading), justify="right", overflow="fold")
    return table


def _family(comparison: Comparison) -> Table:
    tests = plural(len(comparison.family), "test")
    title = f"Declared family of {tests}, p adjusted by {CORRECTION} over all (+ better, - worse)"
    several = len(comparison.compared) > 1
    words = ("test", "model", "score") if several else ("test", "score")
    table = _table(title, words, (f"less {comparison.base}", "p", f"p, {CORRECTION}"))
    table.add_column("verdict", overflow="fold")
    for test in comparison.family:
        table.add_row(
            escape(tested_name(test)),
            *([escape(comparison.names[test.arm])] if several else []),
            escape(tested_score(test)),
            _difference(comparison, test.row, test.arm),
            p_words(test.p),
            p_words(test.adjusted),
            test.verdict,
        )
    return table


def _models(comparison: Comparison) -> list[ArmCells]:
    """Return the lines of the table of models: what each arm is, from its first model."""
    firsts = [comparison.members(index)[0] for index in range(len(comparison.arms))]
    cards = [scores.model for scores in firsts]
    states = [
        state_words(card.state_numbers, card.state_grows, of.window) for of, card in zip(firsts, cards, strict=True)
    ]
    facts = {
        "mixers": [escape(card.mixers) for card in cards],
        "training seeds": [", ".join("" if s is None else str(s) for s in arm.seeds) for arm in comparison.arms],
        "parameters": [f"{card.parameters:,}" for card in cards],
        "tokens trained": [count_words(card.tokens_trained) for card in cards],
        "seconds trained": [count_words(card.seconds_trained) for card in cards],
        "window": [str(scores.window) for scores in firsts],
        "state, numbers": [" ".join(words) for words in states],
    }
    return [ArmCells(name, "", values, [""] * len(cards)) for name, values in facts.items()]


def count_words(count: float | None) -> str:
    """Format a number of tokens or seconds, rounded to an integer; None gives "unknown"."""
    return "unknown" if count is None else f"{count:,.0f}"


def state_words(numbers: int | None, grows: bool | None, window: int) -> tuple[str, str]:
    """Format the size of a model's state, and the context length it applies to: one window if it grows, else any."""
    if numbers is None:
        return "unknown", ""
    return f"{numbers:,}", f"at {window} tokens, growing" if grows else "at any length"


def _print_arms(out: Console, comparison: Comparison, title: str, lines: Sequence[ArmCells]) -> None:
    """Print a table with a column for each arm or, where the terminal is too narrow for that, with a row for each."""
    names = [escape(name) for name in comparison.names]
    nulls = ["null"] if any(line.null for line in lines) else []
    compared = [index for index in comparison.compared if any(line.differences[index] for line in lines)]
    wide = _table(title, [], [])
    wide.add_column("measure", min_width=LEAST_WIDTH, overflow="fold")
    for heading in (*nulls, *names):
        wide.add_column(heading, justify="right", overflow="fold")
    for index in compared:
        heading = escape(f"{comparison.names[index]} less {comparison.base}")
        wide.add_column(heading, min_width=LEAST_WIDTH, overflow="fold")
    for line in lines:
        differences = [line.differences[index] for index in compared]
        wide.add_row(line.measure, *[line.null for _ in nulls], *line.values, *differences)
    if out.measure(wide, options=out.options.update(max_width=10_000)).minimum <= out.width:
        out.print(wide)
        return
    base = [f"less {comparison.base}"] if compared else []
    table = _table(title, ["measure", "model"], [*nulls, "value", *base])
    for line in lines:
        for index, name in enumerate(names):
            head, null = ("", "") if index else (line.measure, line.null)
            cells = [name, *[null for _ in nulls], line.values[index], *[line.differences[index] for _ in base]]
            table.add_row(head, *cells, end_section=index == len(names) - 1)
    out.print(table)


def _rows(comparison: Comparison, rows: list[Row], title: str) -> tuple[str, list[ArmCells]]:
    """Return the title of a table of rows, which contains the unit if all rows share it, and its lines."""
    units = {_unit_words(row) for row in rows}
    shared = len(units) == 1
    lines = [
        ArmCells(
            escape(row.label if shared else f"{row.label} ({_unit_words(row)})"),
            chance_words(row),
            ["" if value is None else number(value.value, row.digits) for value in row.values],
            [_difference(comparison, row, index) for index in range(len(comparison.names))],
        )
        for row in rows
    ]
    return title + (f" ({units.pop()})" if shared else ""), lines


def _tasks(comparison: Comparison) -> list[ArmCells]:
    """Return the lines of all tasks: scores at the fewest and the most shots, differences at the most shots."""
    lines = []
    for task in comparison.tasks:
        rows_of = [row for row in comparison.of_task(task) if not row.variant and not row.group]
        named = False
        for metric in SHOWN:
            rows = [row for row in rows_of if row.metric == metric]
            if not rows or (metric == "exact" and named):
                continue
            ends = [rows[0], rows[-1]] if len(rows) > 1 else rows
            shots = " to ".join([*(str(row.shots) for row in ends[:-1]), ends[-1].label])
            line = ArmCells(
                escape(f"  {rows[0].unit}" if named else f"{task}, {shots}: {rows[0].unit}"),
                chance_words(rows[-1]),
                [
                    " to ".join("" if (value := row.values[i]) is None else number(value.value, 2) for row in ends)
                    for i in range(len(comparison.names))
                ],
                [_difference(comparison, rows[-1], i, between="\n") for i in range(len(comparison.names))],
            )
            lines.append(line)
            named = True
    return lines


def _unit_words(row: Row) -> str:
    return row.unit + (f", {row.better} is better" if row.better else "")


def _difference(comparison: Comparison, row: Row, index: int, between: str = " ") -> str:
    difference = row.differences[index]
    if difference.interval is None:
        return f"[dim]{difference.reason}[/dim]"
    text = number(difference.interval.value, row.digits, signed=True)
    verdict = comparison.verdict(row, index)
    text = f"{text}{between}{chr(10).join(spread_words(row, difference))}{MARKS.get(verdict, '')}".replace("[", r"\[")
    style = STYLES.get(verdict)
    return f"[{style}]{text}[/{style}]" if style else text


def chance_words(row: Row) -> str:
    """Format the null score of a row; return an empty string if it has none."""
    found = sorted({chance for chance in row.chance if chance is not None})
    return ", ".join("0" if chance == 0 else f"{chance:.2g}" for chance in found)
