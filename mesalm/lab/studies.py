"""Studies: measurements beside the claims, on the same nets, without criteria."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mesalm.lab.claims import Claim, Findings, Size
from mesalm.lab.experiments.attention import attention_maps
from mesalm.lab.experiments.copying import longer_binding
from mesalm.lab.experiments.few_shot import continual_aided, few_shot_hybrid
from mesalm.lab.experiments.language import language_order
from mesalm.lab.experiments.linear import fixed_teacher
from mesalm.lab.experiments.linearisation import linearisation
from mesalm.lab.workbench import Workbench
from mesalm.settings import SettingsError


@dataclass(frozen=True)
class Study:
    """One study: its question, the claim whose sizes and nets it uses, and the experiment.

    ``changes`` are the small sizes that differ from the claim's; a study that has them has no paper size.
    """

    question: str
    sizes_of: str
    experiment: Callable[[Workbench, dict[str, Any]], Findings]
    changes: Mapping[str, Any] = field(default_factory=dict)

    def sizes(self, claims: Mapping[str, Claim], size: Size) -> dict[str, Any]:
        """Return the sizes of one of the two scales. Raises SettingsError for a paper size that is not there."""
        if self.changes and size == "paper":
            raise SettingsError(
                f"size: this study changes small sizes; `mesalm lab run {self.sizes_of} --size paper` has the paper's"
            )
        return {**claims[self.sizes_of].sizes(size), **self.changes}


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
    "language-order-deep": Study(
        "Is the order of language models the same with four layers and MLPs?",
        "language-order",
        language_order,
        {"layers": 4},
    ),
    "language-order-dpfp": Study(
        "Is the order of language models the same with DPFP features?", "language-order", language_order, {"dpfp": 1}
    ),
    "language-order-deep-dpfp": Study(
        "Is it the same with four layers, MLPs and DPFP features?",
        "language-order",
        language_order,
        {"layers": 4, "dpfp": 1},
    ),
    "fixed-teacher-longer": Study(
        "Is the one map remembered after five times the training?", "fixed-teacher", fixed_teacher, {"steps": 10000}
    ),
    "longer-binding-longer": Study(
        "Are three tokens bound with the authors' 12 heads after three times the training?",
        "longer-binding",
        longer_binding,
        {"heads": 12, "steps": 12000},
    ),
    "linearisation-longer": Study(
        "Do linear layers replace softmax layers if they learn from ten times the batches?",
        "linearisation",
        linearisation,
        {"linear_steps": 15000},
    ),
}
"""Study -> what it is; `mesalm lab run` takes their names beside those of claims."""
