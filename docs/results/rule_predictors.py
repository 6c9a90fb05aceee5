"""Print what predictors that are told the attributes reach on the rules that models are asked for.

python docs/results/rule_predictors.py

Ridge regression is the task's own ceiling. Nearest: the label of the shown things with the fewest other attributes,
by majority, a half where they tie. 300 episodes, those of suite full-1.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from mesa_eval.tasks.attribute_rules import RULES, RuleTask, _signs

EPISODES = 300
SEED = 0

Told = dict[str, dict[str, dict[int, float]]]
"""Accuracies by task, predictor and number of examples."""


def nearest(task: RuleTask, shots: int) -> float:
    """Return the accuracy of a vote of the nearest combinations shown."""
    right = []
    for index in range(EPISODES):
        shown, asked, _ = task._episode(index, SEED)
        seen = shown[len(shown) - shots :]
        apart = [int((_signs(example.item) != _signs(asked.item)).sum()) for example in seen]
        votes = [
            1 if example.shown == asked.label else -1
            for example, far in zip(seen, apart, strict=True)
            if far == min(apart)
        ]
        right.append(0.5 + 0.5 * np.sign(sum(votes)))
    return float(np.mean(right))


@cache
def told() -> Told:
    """Return the accuracies of both predictors."""
    found: Told = {}
    for task in RULES:
        numbers = (2, 4, 6) if task.attributes == 3 else (8, 32)
        found[task.name] = {
            "vote of the nearest": {shots: nearest(task, shots) for shots in numbers},
            "ridge regression": {shots: task.ceiling(range(EPISODES), shots, SEED) for shots in numbers},
        }
    return found


def main() -> None:
    """Print a Markdown table."""
    print("| task | examples | nearest | ridge |\n|---|---|---|---|")
    for task, predictors in told().items():
        for shots, accuracy in predictors["vote of the nearest"].items():
            print(f"| {task} | {shots} | {accuracy:.2f} | {predictors['ridge regression'][shots]:.2f} |")


if __name__ == "__main__":
    main()
