"""Turn a comparison into `report.html`: one page that refers to nothing outside it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from markupsafe import Markup

from mesa_eval.comparison.record import PRIMARY, Comparison, Row
from mesa_eval.measures.scores import TaskRecord
from mesa_eval.report.figures import position_figure, task_figure, tested_figure, text_figure, training_figure
from mesa_eval.report.tables import chance_words, count_words, state_words
from mesa_eval.report.templating import render
from mesa_eval.report.wording import (
    Summary,
    bracket,
    documents_words,
    number,
    p_words,
    spread_words,
    tested_name,
    tested_score,
)
from mesa_eval.uncertainty.bootstrap import DRAWS, effective_units
from mesa_eval.uncertainty.intervals import Interval

DASH = "\u2013"
GLANCE = (PRIMARY, "bits_per_byte", "perplexity", "in_context", "length_growth", "copy_score", "copy_accuracy")


def render_page(comparison: Comparison, summary: Summary) -> str:
    """Return the page as HTML text without any reference to a resource outside it."""
    first = comparison.scores[0]
    tasks = _tasks(comparison)
    opening = None  # a report on one task opens with its figure
    if len(tasks) == 1:
        opening, tasks[0]["figure"] = tasks[0]["figure"], None
    whole = [row for row in comparison.rows if not row.task and not row.group]
    glance = [row for metric in GLANCE for row in whole if row.metric == metric]
    return render(
        "report.html.j2",
        names=comparison.names,
        base=comparison.base,
        baseline=comparison.baseline,
        seeded=comparison.seeded,
        summary=summary,
        notes=comparison.notes,
        models=[_model_row(comparison, index) for index in range(len(comparison.arms))],
        runs=[_run_row(comparison, place) for place in range(len(comparison.scores))],
        glance=_table(comparison, glance),
        text=_table(comparison, comparison.section("text")),
        text_bytes=first.text_bytes,
        documents=documents_words(comparison),
        positions=_table(comparison, comparison.section("position")),
        windows=_window_words(comparison, "position"),
        length=_table(comparison, comparison.section("length")),
        length_windows=_window_words(comparison, "length"),
        context=_table(comparison, comparison.section("context")),
        recall=_table(comparison, comparison.section("recall")),
        tasks=tasks,
        opening_figure=opening,
        tests=_tests(comparison),
        skipped=[task for task in _records(comparison).values() if not comparison.of_task(task.name)],
        seeds=_seed_rows(comparison, glance),
        training_figure=_markup(training_figure(comparison)),
        text_figure=_markup(text_figure(comparison)),
        position_figure=_markup(position_figure(comparison, "position", "Loss by position")),
        length_figure=_markup(position_figure(comparison, "length", "Loss past the window")),
        tested_figure=_markup(tested_figure(comparison)),
        protocol=first.protocol,
        versions=first.versions,
        text_fingerprint=first.text_fingerprint,
        draws=DRAWS,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _records(comparison: Comparison) -> dict[str, TaskRecord]:
    """Return one record per task: of the first model that could be asked, else of one that could not."""
    records: dict[str, TaskRecord] = {}
    for scores in comparison.scores:
        for task in scores.tasks:
            if task.name not in records or (records[task.name].skipped and not task.skipped):
                records[task.name] = task
    return records


def _tasks(comparison: Comparison) -> list[dict[str, Any]]:
    tasks = []
    for task in _records(comparison).values():
        rows = comparison.of_task(task.name)
        if rows:
            figure = _markup(task_figure(comparison, task.name))
            tasks.append({"record": task, "figure": figure, "table": _table(comparison, rows)})
    return tasks


def _model_row(comparison: Comparison, index: int) -> dict[str, Any]:
    arm, scores = comparison.arms[index], comparison.members(index)[0]
    card = scores.model
    return {
        "name": arm.name,
        "mixers": card.mixers,
        "seeds": ", ".join(DASH if seed is None else str(seed) for seed in arm.seeds),
        "parameters": f"{card.parameters:,}",
        "trained": count_words(card.tokens_trained),
        "took": count_words(card.seconds_trained),
        "vocabulary": f"{card.vocab_size:,}",
        "window": str(scores.window),
        "state": state_words(card.state_numbers, card.state_grows, scores.window),
    }


def _run_row(comparison: Comparison, place: int) -> dict[str, Any]:
    """Return what stands behind the numbers of one model: checkpoint, weights, training, command."""
    scores = comparison.scores[place]
    card = scores.model
    return {
        "name": card.name,
        "arm": next(index for index, arm in enumerate(comparison.arms) if place in arm.members),
        "argument": card.argument,
        "seed": DASH if card.seed is None else str(card.seed),
        "trained": count_words(card.tokens_trained),
        "took": count_words(card.seconds_trained),
        "state": state_words(card.state_numbers, card.state_grows, scores.window),
        "read": f"{scores.tokens_run:,}",
        "seconds": f"{scores.seconds:.0f}",
        "fingerprint": card.fingerprint,
        "command": scores.protocol["command"],
    }


def _window_words(comparison: Comparison, section: str) -> str:
    words = []
    for scores in comparison.scores:
        own = [measure for measure in scores.measures if measure.section == section and measure.last]
        for measure in own[-1:]:  # the last bin ends where the window does
            counts = np.array(measure.denominator)
            documents = f"{len(counts)} documents (effective number {effective_units(counts):.1f})"
            words.append(f"{counts.sum():.0f} windows of {measure.last} tokens from {documents}")
    return "; ".join(dict.fromkeys(words))


def _table(comparison: Comparison, rows: list[Row]) -> dict[str, Any]:
    """Return headings and cells for the template."""
    found = {index: [row.differences[index] for row in rows] for index in comparison.compared}
    others = [index for index, own in found.items() if any(one.interval is not None or one.reason for one in own)]
    return {
        "others": [comparison.names[index] for index in others],
        "chance": any(row.chance for row in rows),
        "rows": [
            {
                "label": row.label,
                "unit": row.unit,
                "better": row.better,
                "chance": chance_words(row) or DASH,
                "values": [_value(row, value) for value in row.values],
                "differences": [_difference(comparison, row, index) for index in others],
            }
            for row in rows
        ],
    }


def _value(row: Row, value: Interval | None) -> dict[str, str]:
    if value is None:
        return {"value": DASH, "interval": "", "sort": ""}
    return {
        "value": number(value.value, row.digits),
        "interval": bracket(value, row.digits) if value.low is not None or value.freedom is None else "",
        "sort": repr(value.value),
    }


def _difference(comparison: Comparison, row: Row, index: int) -> dict[str, Any]:
    difference = row.differences[index]
    if difference.interval is None:
        return {"value": "", "intervals": [difference.reason], "verdict": "", "words": "", "sort": ""}
    words = comparison.verdict(row, index)
    return {
        "value": number(difference.interval.value, row.digits, signed=True),
        "intervals": spread_words(row, difference),
        "verdict": words.split()[0] if words else "",
        "words": words,
        "sort": repr(difference.interval.value),
    }


def _tests(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "arm": test.arm,
            "model": comparison.names[test.arm],
            "name": tested_name(test),
            "score": tested_score(test),
            "chance": chance_words(test.row) or DASH,
            "own": _value(test.row, test.row.values[test.arm]),
            "base": _value(test.row, test.row.values[comparison.baseline]),
            "difference": _difference(comparison, test.row, test.arm),
            "p": p_words(test.p),
            "holm": p_words(test.adjusted),
            "p_sort": repr(test.p),
            "holm_sort": repr(test.adjusted),
            "verdict": test.verdict,
        }
        for test in comparison.family
    ]


def _seed_rows(comparison: Comparison, rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return one line per measure, arm and seed: the single differences behind the intervals."""
    found = []
    for row in rows:
        for index in comparison.compared:
            difference = row.differences[index]
            for seed, value in difference.by_seed if len(difference.by_seed) > 1 else ():
                found.append(
                    {
                        "label": row.label,
                        "name": comparison.names[index],
                        "seed": str(seed),
                        "value": number(value, row.digits, signed=True),
                        "sort": repr(value),
                    }
                )
    return found


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)
