"""Draw context.svg: how often a word must be shown with its label until a model knows the label.

python docs/results/context_figure.py

Reads the scores by prompt in docs/results/context/best/. A point is the mean over seeds; a bar reaches from the worst
seed to the best.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mesa_eval.report import svg

HERE = Path(__file__).parent
SHEET = Path(svg.__file__).parent / "templates/report.css"
PANELS = {"word_labels": "labels known from training", "new_labels": "labels never seen in training"}
ARMS = {"mesa": "mesa", "softmax-conv": "softmax with convolution", "linear": "linear (no solve)"}
SHOWINGS = (0, 1, 2, 4, 8)


def accuracies(scores: dict[str, Any], task: str) -> list[float]:
    """Return the accuracy for each number of showings."""
    measures = {measure["key"]: measure for part in scores["parts"] for measure in part["measures"]}
    rows = [measures[f"task/{task}/{shown}/accuracy"]["numerator"] for shown in SHOWINGS]
    return [sum(row[0] for row in right) / len(right) for right in rows]


def draw(figure: Figure) -> None:
    """Draw a panel per task and a line per model."""
    panels = figure.subplots(1, len(PANELS), sharey=True)
    stored = json.loads(gzip.decompress((HERE / "context/best/report.json.gz").read_bytes()))["scores"]
    for panel, (task, title) in zip(panels, PANELS.items(), strict=True):
        for index, (arm, label) in enumerate(ARMS.items()):
            seeds = [
                accuracies(one, task) for one in stored if one["model"]["name"].startswith(f"context-best-{arm}-s")
            ]
            by_showing = list(zip(*seeds, strict=True))
            places = [place + (index - 1) * 0.06 for place in range(len(SHOWINGS))]
            means = [sum(shares) / len(shares) for shares in by_showing]
            colour = svg.series_colour(index)
            panel.vlines(places, [min(x) for x in by_showing], [max(x) for x in by_showing], color=colour, linewidth=1)
            panel.plot(places, means, color=colour, marker=svg.series_marker(index), label=label)
        panel.axhline(0.25, color=svg.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        panel.set(title=title, xticks=range(len(SHOWINGS)), xticklabels=SHOWINGS, ylim=(0, 1.04))
        panel.set_xlabel("times the word was shown with its label")
    panels[0].set_ylabel("accuracy among four labels")
    panels[0].text(4.1, 0.19, "chance", color=svg.MUTED, ha="right", va="top")
    panels[1].legend(loc="upper left")


def main() -> None:
    """Write the figure as a file that stands alone, light or dark as the reader's page is."""
    light, dark = re.findall(r":root \{(.*?)\}", SHEET.read_text(encoding="utf-8"), flags=re.DOTALL)
    plain = f"svg {{ font-family: sans-serif; background: var(--page); {light} }}"
    style = f"{plain} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    style = " ".join(f"<style>{style}</style>".split())
    label = "Accuracy by showings of mesa, softmax and linear models, with known and with new labels"
    text = svg.draw_svg(draw, (8.2, 3.6), label)
    text = text.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"', 1)
    text = text.replace(">", f">{style}", 1).replace(" href=", " xlink:href=")
    (HERE / "context.svg").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
