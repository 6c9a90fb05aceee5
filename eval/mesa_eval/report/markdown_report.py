"""Render a comparison as Markdown tables with intervals, for a paper or a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from mesa_eval.comparison.record import Comparison, Row
from mesa_eval.measures.scores import SECTIONS
from mesa_eval.report.tables import chance_words, count_words, state_words
from mesa_eval.report.wording import Summary, bracket, number, spread_words, tested_name, tested_score
from mesalm.markdown import code, plain


def render_markdown(comparison: Comparison, summary: Summary) -> str:
    """Return the report as Markdown: summary, tests, models, all rows by section, and provenance."""
    parts = [f"# {plain(' and '.join(comparison.names))}", plain(summary.compared)]
    parts.append(_list(summary.sentences))
    parts.append(plain(" ".join(summary.limits)))
    if comparison.family:
        parts += ["## Declared family of tests", plain(summary.family), _family(comparison)]
    parts += ["## Models", _models(comparison)]
    sections = {row.section: row.task for row in comparison.rows}
    for section, task in sections.items():
        title = task or SECTIONS[section]
        parts += [f"## {plain(title)}", _rows(comparison, comparison.section(section))]
    parts += ["## Provenance", _provenance(comparison)]
    if comparison.notes:
        parts += ["## Notes", _list(comparison.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    """Return a Markdown table whose columns from index `numbers` on are right-aligned."""
    rule = ["---" if place < numbers else "---:" for place in range(len(headings))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [headings, rule, *rows])


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {plain(sentence)}" for sentence in sentences)


def _models(comparison: Comparison) -> str:
    rows = []
    for index, arm in enumerate(comparison.arms):
        first = comparison.members(index)[0]
        card = first.model
        seeds = ", ".join("unknown" if seed is None else str(seed) for seed in arm.seeds)
        trained = [count_words(card.tokens_trained), count_words(card.seconds_trained)]
        state = " ".join(state_words(card.state_numbers, card.state_grows, first.window))
        rows.append([plain(arm.name), plain(card.mixers), f"{card.parameters:,}", *trained, seeds, state])
    return _table(
        ["model", "mixers", "parameters", "tokens trained", "seconds trained", "training seeds", "state, numbers"],
        rows,
        2,
    )


def _rows(comparison: Comparison, rows: Sequence[Row]) -> str:
    others = comparison.compared
    chances = any(row.chance for row in rows)
    headings = ["measure", *(["null"] if chances else []), *map(plain, comparison.names)]
    headings += [plain(f"{comparison.names[index]} less {comparison.base}") for index in others]
    cells = []
    for row in rows:
        better = f", {row.better} is better" if row.better else ""
        line = [plain(f"{row.label} ({row.unit}{better})"), *([chance_words(row)] if chances else [])]
        for value in row.values:
            line.append("" if value is None else f"{number(value.value, row.digits)} {bracket(value, row.digits)}")
        line += [_difference(comparison, row, index) for index in others]
        cells.append(line)
    return _table(headings, cells, 1)


def _difference(comparison: Comparison, row: Row, index: int) -> str:
    difference = row.differences[index]
    if difference.interval is None:
        return plain(difference.reason)
    spreads = "; ".join(spread_words(row, difference))
    text = f"{number(difference.interval.value, row.digits, signed=True)} {spreads}"
    return f"**{text}**" if comparison.verdict(row, index) in ("better", "worse") else text


def _family(comparison: Comparison) -> str:
    rows = [
        [
            plain(comparison.names[test.arm]),
            plain(tested_name(test)),
            plain(tested_score(test)),
            _difference(comparison, test.row, test.arm),
            f"{test.p:.2g}",
            f"{test.adjusted:.2g}",
            test.verdict,
        ]
        for test in comparison.family
    ]
    return _table(["model", "test", "score", "difference", "p", "p after Holm", "verdict"], rows, 3)


def _provenance(comparison: Comparison) -> str:
    rows = []
    for scores in comparison.scores:
        card = scores.model
        seed = "" if card.seed is None else str(card.seed)
        rows.append(
            [plain(card.name), code(card.argument), seed, code(card.fingerprint), code(scores.protocol["command"])]
        )
    return _table(["run", "checkpoint", "seed", "weights sha256", "measured by"], rows, 5)
