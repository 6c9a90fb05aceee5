"""Terminal tables of a comparison."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mesa_eval.compare import Comparison, Row
from mesa_eval.wording import ALWAYS, bracket, few_units, number, summary, verdict

STYLES = {"better": "green", "worse": "red"}


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print models, text, context and few-shot tables, then the summary in words."""
    out = console or Console()
    out.print(_models(comparison))
    sections = [
        ("text", "Text"),
        ("position", "Loss by position (nats per token)"),
        ("context", "Use of the context"),
    ]
    sections += [
        (name, f"Few-shot: {name.removeprefix('task/')}")
        for name in dict.fromkeys(row.section for row in comparison.rows)
        if name.startswith("task/")
    ]
    for section, title in sections:
        rows = comparison.section(section)
        if rows:
            out.print(_rows(comparison, rows, title))
    for line in [*summary(comparison), ALWAYS, few_units(comparison) or "", *comparison.notes]:
        if line:
            out.print(line, highlight=False, markup=False)


def _models(comparison: Comparison) -> Table:
    table = Table(title="Models", title_justify="left")
    for heading in ("model", "mixers", "parameters", "tokens trained", "window", "state, numbers"):
        table.add_column(heading, justify="left" if heading in ("model", "mixers") else "right")
    for scores in comparison.scores:
        card = scores.model
        table.add_row(
            card.name,
            card.mixers,
            f"{card.parameters:,}",
            "unknown" if card.tokens_trained is None else f"{card.tokens_trained:,}",
            str(scores.window),
            state_words(card.state_numbers, card.state_grows, scores.window),
        )
    return table


def state_words(numbers: int | None, grows: bool | None, window: int) -> str:
    """Say how large a model's state is, and whether it grows with the text."""
    if numbers is None:
        return "unknown"
    return f"{numbers:,} at {window} tokens, growing" if grows else f"{numbers:,}, constant"


def _rows(comparison: Comparison, rows: list[Row], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("unit")
    if any(row.chance for row in rows):
        table.add_column("chance", justify="right")
    compared = [i for i in range(len(comparison.names)) if any(row.differences[i].interval for row in rows)]
    for name in comparison.names:
        table.add_column(name, justify="right")
    for index in compared:
        table.add_column(f"{comparison.names[index]} less {comparison.names[comparison.baseline]}")
    for row in rows:
        cells = [row.label, row.unit + (f", {row.better} is better" if row.better else "")]
        if any(other.chance for other in rows):
            cells.append(chance_words(row))
        for value in row.values:
            cells.append("" if value is None else number(value.value, row.digits))
        for index in compared:
            difference = row.differences[index]
            if difference.interval is None:
                cells.append(difference.reason)
                continue
            text = number(difference.interval.value, row.digits, signed=True)
            words = verdict(row, difference.interval)
            style = STYLES.get(words)
            text = f"{text} {bracket(difference.interval, row.digits, signed=True)}".replace("[", r"\[")
            cells.append(f"[{style}]{text} {words}[/{style}]" if style else f"{text} {words}")
        table.add_row(*cells)
    return table


def chance_words(row: Row) -> str:
    """Return the score of chance for a row, or an empty string where there is none."""
    found = {chance for chance in row.chance if chance is not None}
    return ", ".join(f"{chance:.3f}" if chance == 0 or chance >= 0.001 else f"{chance:.0e}" for chance in sorted(found))
