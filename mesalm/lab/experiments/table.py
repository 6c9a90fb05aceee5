"""The table of experiments: one line per claim and version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesalm.lab.claims import Findings
from mesalm.lab.experiments.controls import tuned_hybrid
from mesalm.lab.experiments.copying import copy_layer, copy_layer_of_nets, longer_binding
from mesalm.lab.experiments.few_shot import continual, few_shot
from mesalm.lab.experiments.language import language_order
from mesalm.lab.experiments.linear import (
    chebyshev,
    chebyshev_by_predictions,
    depth,
    depth_to_the_end,
    fixed_teacher,
    interpolation,
    one_layer,
)
from mesalm.lab.experiments.linearisation import linearisation
from mesalm.lab.experiments.probes import (
    preconditioning_probe,
    preconditioning_probe_of_nets,
    target_probe,
    target_probe_of_nets,
)
from mesalm.lab.experiments.softmax import nonlinear, shallow_hybrid
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
    "one-layer-v2": one_layer,
    "depth-v2": depth_to_the_end,
    "chebyshev-v2": chebyshev_by_predictions,
    "target-probe-v2": target_probe_of_nets,
    "preconditioning-probe-v2": preconditioning_probe_of_nets,
    "copy-layer-v2": copy_layer_of_nets,
    "longer-binding-v2": longer_binding,
    "linearisation-v2": linearisation,
    "fixed-teacher-v2": fixed_teacher,
    "shallow-hybrid-v2": tuned_hybrid,
    "few-shot-v2": few_shot,
    "continual-v2": continual,
    "language-order-v2": language_order,
    "language-order-deep-v2": language_order,
    "nonlinear-v2": nonlinear,
}
"""Claim -> function(bench, sizes) -> findings of one seed."""
