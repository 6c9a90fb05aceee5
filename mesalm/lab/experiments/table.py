"""The table of experiments: one line per claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesalm.lab.claims import Findings
from mesalm.lab.experiments.few_shot import continual, few_shot
from mesalm.lab.experiments.language import language_order
from mesalm.lab.experiments.linear import (
    chebyshev,
    depth,
    fixed_teacher,
    interpolation,
    one_layer,
    preconditioning_probe,
    target_probe,
)
from mesalm.lab.experiments.linearisation import linearisation
from mesalm.lab.experiments.softmax import copy_layer, longer_binding, nonlinear, shallow_hybrid
from mesalm.lab.experiments.theory import batch_ridge, dimension_curse, gradient_step, mesa_gradients, preconditioning
from mesalm.lab.workbench import Workbench

EXPERIMENTS: dict[str, Callable[[Workbench, dict[str, Any]], Findings]] = {
    "gradient-step": gradient_step,
    "preconditioning": preconditioning,
    "batch-ridge": batch_ridge,
    "mesa-gradients": mesa_gradients,
    "one-layer": one_layer,
    "interpolation": interpolation,
    "depth": depth,
    "chebyshev": chebyshev,
    "target-probe": target_probe,
    "preconditioning-probe": preconditioning_probe,
    "copy-layer": copy_layer,
    "longer-binding": longer_binding,
    "dimension-curse": dimension_curse,
    "fixed-teacher": fixed_teacher,
    "shallow-hybrid": shallow_hybrid,
    "few-shot": few_shot,
    "continual": continual,
    "linearisation": linearisation,
    "language-order": language_order,
    "nonlinear": nonlinear,
}
"""Claim -> function(bench, sizes) -> findings of one seed."""
