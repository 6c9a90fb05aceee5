"""Write a comparison's files: `report.json` with every raw score, `report.md` and the self-contained `report.html`."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mesa_eval.comparison.record import CORRECTION, FAMILY, LEAST, Comparison
from mesa_eval.report.markdown_report import render_markdown
from mesa_eval.report.page import render_page
from mesa_eval.report.wording import Summary
from mesa_eval.uncertainty.bootstrap import DRAWS
from mesalm.files import write_text


def write_report(comparison: Comparison, summary: Summary, folder: Path) -> Path:
    """Write the three files into `folder`, each atomically, and return the path of the HTML page."""
    write_text(folder / "report.json", json.dumps(report_data(comparison, summary), allow_nan=False))
    write_text(folder / "report.md", render_markdown(comparison, summary))
    page = folder / "report.html"
    write_text(page, render_page(comparison, summary))
    return page


def report_data(comparison: Comparison, summary: Summary) -> dict[str, Any]:
    """Return the content of the page as plain data, with the raw scores from which `--from-scores` rebuilds it."""
    return {
        "format": 2,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "summary": {
            "compared": summary.compared,
            "family": summary.family,
            "told": summary.significant,
            "untold": summary.insignificant,
            "limits": summary.limits,
        },
        "baseline": comparison.base,
        "bootstrap_draws": DRAWS,
        "arms": [
            {
                "name": arm.name,
                "models": [comparison.scores[place].model.name for place in arm.members],
                "seeds": arm.seeds,
            }
            for arm in comparison.arms
        ],
        "rows": [dataclasses.asdict(row) for row in comparison.rows],
        "family": {
            "declared": [*FAMILY, "one score per task"],
            "tests": len(comparison.family),
            "correction": CORRECTION,
            "level": LEAST,
            "claims": [
                {
                    "arm": comparison.names[test.arm],
                    "task": test.task,
                    "key": test.row.key,
                    "p": test.p,
                    "adjusted": test.adjusted,
                    "verdict": test.verdict,
                }
                for test in comparison.family
            ],
        },
        "notes": comparison.notes,
        "scores": [scores.to_dict() for scores in comparison.scores],
    }
