"""Draw context.svg: how often a word must be shown with its label until a model knows the label.

python docs/results/context_figure.py

Reads the scores by prompt in docs/results/context/; bars are 95 % Wilson intervals over prompts.
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
PANELS = [
    ("report.json.gz", "word_labels", "labels known from training"),
    ("labels.json.gz", "new_labels", "labels never seen in training"),
]
MODELS = {
    "context-cpu-mesa": "mesa",
    "context-cpu-softmax-conv": "softmax with convolution",
    "context-cpu-linear": "linear (no solve)",
}
SHOWINGS = (0, 1, 2, 4, 8)


def interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share of `count` prompts."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5 / (1 + z * z / count)
    return centre - half, centre + half


def accuracies(scores: dict[str, Any], task: str) -> list[tuple[float, int]]:
    """Return accuracy and number of prompts for each number of showings."""
    measures = {measure["key"]: measure for part in scores["parts"] for measure in part["measures"]}
    found = []
    for shown in SHOWINGS:
        right = [row[0] for row in measures[f"task/{task}/{shown}/accuracy"]["numerator"]]
        found.append((sum(right) / len(right), len(right)))
    return found


def draw(figure: Figure) -> None:
    """Draw a panel per task and a line per model."""
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for panel, (file, task, title) in zip(panels, PANELS, strict=True):
        stored = json.loads(gzip.decompress((HERE / "context" / file).read_bytes()))["scores"]
        by_name = {scores["model"]["name"]: scores for scores in stored}
        for index, (name, label) in enumerate(MODELS.items()):
            points = accuracies(by_name[name], task)
            places = [place + (index - 1) * 0.06 for place in range(len(SHOWINGS))]
            ends = [interval(*point) for point in points]
            colour = svg.series_colour(index)
            panel.vlines(places, [low for low, _ in ends], [high for _, high in ends], color=colour, linewidth=1)
            panel.plot(
                places, [share for share, _ in points], color=colour, marker=svg.series_marker(index), label=label
            )
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
