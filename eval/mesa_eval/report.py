"""Write `report.json` and the self-contained `report.html` of a comparison."""

from __future__ import annotations

import dataclasses
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mesa_eval.bootstrap import DRAWS, Interval
from mesa_eval.compare import Comparison, Row
from mesa_eval.figures import position_figure, task_figure, text_figure, training_figure
from mesa_eval.scores import write_atomically
from mesa_eval.tables import chance_words, state_words
from mesa_eval.wording import ALWAYS, bracket, few_units, number, summary, verdict

DASH = "\u2013"


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write both files into `folder`, each atomically, and return the path of the page."""
    data = report_data(comparison)
    write_atomically(folder / "report.json", json.dumps(data, indent=1, allow_nan=False))
    page = folder / "report.html"
    write_atomically(page, render_page(comparison))
    return page


def report_data(comparison: Comparison) -> dict[str, Any]:
    """Return everything the page says as plain data, with where the raw scores lie."""
    return {
        "format": 1,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "summary": summary(comparison),
        "baseline": comparison.names[comparison.baseline],
        "bootstrap_draws": DRAWS,
        "protocol": comparison.scores[0].protocol,
        "text_fingerprint": comparison.scores[0].text_fingerprint,
        "models": [
            {
                **{k: v for k, v in dataclasses.asdict(scores.model).items() if k != "training"},
                "window": scores.window,
                "tokens_run": scores.tokens_run,
                "seconds": round(scores.seconds, 1),
                "versions": scores.versions,
                "scores": os.path.join("scores", f"{scores.model.name}.json"),
                "answers_encoded_apart": {task.name: task.pairs_apart for task in scores.tasks},
            }
            for scores in comparison.scores
        ],
        "rows": [dataclasses.asdict(row) for row in comparison.rows],
        "notes": comparison.notes,
    }


def render_page(comparison: Comparison) -> str:
    """Return the page as HTML text without any reference to a resource outside it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mesa_eval"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tasks = [
        {
            "name": task.name,
            "kind": task.kind,
            "queries": task.queries,
            "draws": task.draws,
            "majority": task.majority,
            "example": task.example,
            "figure": _markup(task_figure(comparison, f"task/{task.name}")),
            "table": _table(comparison, comparison.section(f"task/{task.name}")),
        }
        for task in comparison.scores[0].tasks
        if comparison.section(f"task/{task.name}")
    ]
    return environment.get_template("report.html.j2").render(
        names=comparison.names,
        base=comparison.names[comparison.baseline],
        baseline=comparison.baseline,
        summary=summary(comparison),
        caution=ALWAYS,
        few=few_units(comparison),
        notes=comparison.notes,
        models=[_model_row(comparison, index) for index in range(len(comparison.names))],
        headline=_table(comparison, _headline(comparison)),
        text=_table(comparison, comparison.section("text")),
        text_bytes=comparison.scores[0].text_bytes,
        documents=comparison.scores[0].documents,
        positions=_table(comparison, comparison.section("position")),
        windows=_window_words(comparison),
        context=_table(comparison, comparison.section("context")),
        tasks=tasks,
        training_figure=_markup(training_figure(comparison)),
        text_figure=_markup(text_figure(comparison)),
        position_figure=_markup(position_figure(comparison)),
        protocol=comparison.scores[0].protocol,
        versions=comparison.scores[0].versions,
        text_fingerprint=comparison.scores[0].text_fingerprint,
        draws=DRAWS,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _headline(comparison: Comparison) -> list[Row]:
    keys = ("bits_per_byte", "perplexity", "in_context", "copy_score", "copy_accuracy")
    return [row for key in keys for row in comparison.starting(key) if row.key == key or key == "in_context"]


def _model_row(comparison: Comparison, index: int) -> dict[str, str]:
    scores = comparison.scores[index]
    card = scores.model
    return {
        "name": card.name,
        "mixers": card.mixers,
        "argument": card.argument,
        "parameters": f"{card.parameters:,}",
        "trained": "unknown" if card.tokens_trained is None else f"{card.tokens_trained:,}",
        "state": state_words(card.state_numbers, card.state_grows, scores.window),
        "window": str(scores.window),
        "read": f"{scores.tokens_run:,}",
        "seconds": f"{scores.seconds:.0f}",
        "fingerprint": card.fingerprint,
        "vocabulary": f"{card.vocab_size:,}",
    }


def _window_words(comparison: Comparison) -> str:
    words = []
    for scores in comparison.scores:
        measure = scores.measure("position/1")
        if measure is not None:
            windows, documents = sum(row[0] for row in measure.denominator), len(measure.units)
            words.append(f"{windows:.0f} windows of {scores.window} tokens from {documents} documents")
    return "; ".join(dict.fromkeys(words))


def _table(comparison: Comparison, rows: list[Row]) -> dict[str, Any]:
    """Return headings and cells for the template."""
    others = comparison.compared
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
                "differences": [_difference(row, index) for index in others],
            }
            for row in rows
        ],
    }


def _value(row: Row, value: Interval | None) -> dict[str, str]:
    if value is None:
        return {"value": DASH, "interval": ""}
    return {"value": number(value.value, row.digits), "interval": bracket(value, row.digits)}


def _difference(row: Row, index: int) -> dict[str, str]:
    difference = row.differences[index]
    if difference.interval is None:
        return {"value": "", "interval": difference.reason, "verdict": "", "words": ""}
    words = verdict(row, difference.interval)
    return {
        "value": number(difference.interval.value, row.digits, signed=True),
        "interval": bracket(difference.interval, row.digits, signed=True),
        "verdict": words.split()[0],
        "words": words,
    }


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)
