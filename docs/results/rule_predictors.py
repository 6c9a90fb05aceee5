"""Print what predictors that are told the attributes reach on the rules that models are asked for.

python docs/results/rule_predictors.py

Ridge regression is the task's own ceiling. Counting: the label shown less often, because an episode gives both labels
to equally many of its combinations and shows none twice. Nearest: the label of the shown things with the fewest other
attributes, by majority. Nearest and counting: the same, with ties decided by counting. A tie counts a half. 300
episodes, those of suite full-1.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from mesa_eval.tasks.attribute_rules import RULES, RuleTask, _signs

EPISODES = 300
SEED = 0

Told = dict[str, dict[str, dict[int, float]]]
"""Accuracies by task, predictor and number of examples."""


def votes(task: RuleTask, index: int, shots: int) -> tuple[int, int]:
    """Return the votes of all shown examples and of the nearest: those for the asked label minus those against it."""
    shown, asked, _ = task._episode(index, SEED)
    seen = shown[len(shown) - shots :]
    apart = [int((_signs(example.item) != _signs(asked.item)).sum()) for example in seen]
    same = [1 if example.shown == asked.label else -1 for example in seen]
    return sum(same), sum(vote for vote, far in zip(same, apart, strict=True) if far == min(apart))


def predictors(task: RuleTask, shots: int) -> dict[str, float]:
    """Return the accuracies of counting, of the nearest, and of the nearest with ties decided by counting."""
    both = [votes(task, index, shots) for index in range(EPISODES)]
    margins = {
        "counting": [-whole for whole, _ in both],
        "vote of the nearest": [near for _, near in both],
        "nearest, then counting": [near or -whole for whole, near in both],
    }
    return {name: float(np.mean([0.5 + 0.5 * np.sign(margin) for margin in found])) for name, found in margins.items()}


@cache
def balanced(name: str, shots: int) -> np.ndarray:
    """Return the numbers of the episodes that show both labels equally often, where counting tells nothing, [N]."""
    task = next(task for task in RULES if task.name == name)
    return np.flatnonzero([votes(task, index, shots)[0] == 0 for index in range(EPISODES)])


@cache
def told() -> Told:
    """Return the accuracies of all predictors."""
    found: Told = {}
    for task in RULES:
        numbers = (2, 4, 6) if task.attributes == 3 else (8, 32)
        by_shots = {shots: predictors(task, shots) for shots in numbers}
        found[task.name] = {
            name: {shots: values[name] for shots, values in by_shots.items()} for name in by_shots[numbers[0]]
        } | {"ridge regression": {shots: task.ceiling(range(EPISODES), shots, SEED) for shots in numbers}}
    return found


def main() -> None:
    """Print a Markdown table."""
    names = list(next(iter(told().values())))
    print(f"| task | examples | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    for task, found in told().items():
        for shots in found[names[0]]:
            print(f"| {task} | {shots} | {' | '.join(f'{found[name][shots]:.2f}' for name in names)} |")


if __name__ == "__main__":
    main()
