"""Print what predictors that are told the attributes reach on the rules that models are asked for.

python docs/results/rule_predictors.py

Ridge regression is the task's own ceiling. Nearest: the label of the shown things with the fewest other attributes,
by majority, a half where they tie. 300 episodes, those of suite full-1.
"""

from __future__ import annotations

import numpy as np

from mesa_eval.tasks.attribute_rules import RULES, RuleTask, _signs

EPISODES = 300
SEED = 0


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


def main() -> None:
    """Print a Markdown table."""
    print("| task | examples | nearest | ridge |\n|---|---|---|---|")
    for task in RULES:
        for shots in (2, 4, 6) if task.attributes == 3 else (8, 32):
            ridge = task.ceiling(range(EPISODES), shots, SEED)
            print(f"| {task.name} | {shots} | {nearest(task, shots):.2f} | {ridge:.2f} |")


if __name__ == "__main__":
    main()
