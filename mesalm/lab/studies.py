"""Studies: what is measured beside the claims, on the same nets, with nothing that must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mesalm.lab.attention_experiments import attention_maps
from mesalm.lab.claims import Findings
from mesalm.lab.few_shot_experiments import continual_aided, few_shot_hybrid
from mesalm.lab.workbench import Workbench


@dataclass(frozen=True)
class Study:
    """Hold one study: what is asked, the claim whose sizes and nets it takes, and the experiment."""

    question: str
    sizes_of: str
    experiment: Callable[[Workbench, dict[str, Any]], Findings]


STUDIES = {
    "attention-maps": Study("Where does the first softmax layer look?", "copy-layer", attention_maps),
    "attention-maps-partial": Study(
        "Where does the first softmax layer look when states are partly observed?", "longer-binding", attention_maps
    ),
    "few-shot-hybrid": Study(
        "Does a softmax layer followed by a mesa layer learn from pairs too?", "few-shot", few_shot_hybrid
    ),
    "continual-aided": Study(
        "Do the separator and the prefix, tuned on one task, help with two in one sequence?",
        "continual",
        continual_aided,
    ),
}
"""Study -> what it is; `mesalm lab run` takes their names beside those of claims."""
