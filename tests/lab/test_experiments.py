"""Every experiment with trained nets, at sizes of no meaning: it gives the quantities that its criteria ask for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mesalm.lab.claims import judge, load_claims
from mesalm.lab.findings_figure import draw_findings
from mesalm.lab.workbench import Workbench

TINY: dict[str, Any] = {"size": 2, "length": 8, "fit_rows": 64, "test_rows": 64, "steps": 2, "batch": 4, "layers": 2}
OWN: dict[str, dict[str, Any]] = {
    "depth": {"steps": [2, 2, 2, 2]},
    "preconditioning-probe": {"position": 4},
    "nonlinear": {"features_width": 4, "width": 8},
    "few-shot": {"length": 16, "tuning_steps": 2, "prefix": 2},
    "continual": {"length": 16, "first_pairs": 2, "second_pairs": 9},
    "longer-binding": {"hidden": 5, "width": 8},
    "depth-v2": {"steps": [2, 2, 2, 2]},
    "copy-layer-v2": {"length": 14},
    "longer-binding-v2": {"hidden": 5, "width": 8},
    **{
        name: {"softmax_layers": 1, "softmax_steps": 2, "softmax_rates": [1e-3, 1e-2], "position": 4}
        for name in ("target-probe-v2", "preconditioning-probe-v2")
    },
    "shallow-hybrid-v2": {"linear_steps": 2, "learning_rates": [1e-3, 1e-2]},
    "few-shot-v2": {"length": 16, "tuning_steps": 2, "prefix": 2},
    "continual-v2": {"length": 16, "first_pairs": 2, "second_pairs": 9},
    "nonlinear-v2": {"features_width": 4, "width": 8},
}
CLAIMS = load_claims()
ELSEWHERE = {  # test_claims.py, test_linearisation.py, test_language_order.py
    *("gradient-step", "preconditioning", "batch-ridge", "mesa-gradients", "dimension-curse"),
    *("linearisation", "linearisation-v2", "language-order", "language-order-v2", "language-order-deep-v2"),
}
NEWER = {name: CLAIMS[f"{name}-v2"].experiment for name in CLAIMS if f"{name}-v2" in CLAIMS}
TRAINED = [  # an older version of the same experiment has other sizes alone
    pytest.param(name, marks=pytest.mark.slow if NEWER.get(name) is claim.experiment else ())
    for name, claim in CLAIMS.items()
    if name not in ELSEWHERE
]


@pytest.mark.parametrize("name", TRAINED)
def test_an_experiment_gives_what_its_criteria_ask_for(name: str, tmp_path: Path) -> None:
    claim = CLAIMS[name]
    sizes = {**claim.small, **{key: value for key, value in TINY.items() if key in claim.small}, **OWN.get(name, {})}
    findings = claim.experiment(Workbench(0, tmp_path, quiet=True), sizes)
    rulings = judge(claim, [findings.values])
    assert len(findings.values) >= len(rulings) == len(claim.criteria)
    assert all(math.isfinite(value) for value in (*findings.values.values(), *findings.controls.values()))
    assert draw_findings(findings, name).startswith("<svg")
