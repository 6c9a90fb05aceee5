"""Claims about which earlier tokens the first softmax layer copies, decoded from its output."""

from __future__ import annotations

import math

import torch

from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.lab.claims import Curve, Findings
from mesalm.lab.experiments.controls import shuffled
from mesalm.lab.experiments.frame import Sizes, curve, dynamics, fit_and_test
from mesalm.lab.experiments.softmax import plain_net
from mesalm.lab.linear_decoders import decode
from mesalm.lab.workbench import Workbench
from mesalm.regressor.regressor_mesa import MesaRegressor

LAGS = 6
"""Number of lags in figures about the first layer."""


def hybrid_net(bench: Workbench, sizes: Sizes, task: LinearDynamics) -> MesaRegressor:
    """Return the net with the mixers given by the sizes."""
    return bench.net(plain_net(bench, sizes, task, list(sizes["mixers"]), len(sizes["mixers"])))


def copied_lags(
    bench: Workbench, sizes: Sizes, task: LinearDynamics, net: MesaRegressor, at: int | None = None
) -> tuple[list[float], list[float]]:
    """Return R2 by lag of decoding s_{t - lag} from the first layer's output at position t, and its sensitivity.

    Position ``at`` counts from 1 and defaults to the last. The sensitivity is the norm of the gradient of each output
    with respect to s_{t - lag}, averaged over outputs and 64 sequences.
    """
    here = (at or task.sequence_length) - 1
    fit, test = fit_and_test(bench, task, sizes)
    states = [net(batch["inputs"], output_hidden_states=True).hidden_states[1][:, here] for batch in (fit, test)]
    explained = [
        decode((states[0], fit["inputs"][:, here - lag]), (states[1], test["inputs"][:, here - lag])).r2
        for lag in range(LAGS)
    ]
    inputs = test["inputs"][:64].clone().requires_grad_()
    output = net(inputs, output_hidden_states=True).hidden_states[1][:, here]
    norms = []
    for entry in output.sum(dim=0):
        (gradient,) = torch.autograd.grad(entry, inputs, retain_graph=True)
        norms.append(gradient.norm(dim=-1).mean(dim=0))
    sensitivity = torch.stack(norms).mean(dim=0)[: here + 1].flip(0)[:LAGS].tolist()
    return explained, sensitivity


def _lines(explained: list[float], sensitivity: list[float], name: str = "") -> list[Curve]:
    return [curve(f"R2 of decoding{name}", explained, 0), curve(f"sensitivity{name}", sensitivity, 0)]


def copy_layer(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 11: the first layer holds the current and the previous token, and little else.

    Version 2, whose sizes have ``layers``, also tests a deep softmax net and a control, at three positions, of which
    the worst counts.
    """
    task = dynamics(sizes)
    nets, places = {"": hybrid_net(bench, sizes, task)}, [task.length]
    if "layers" in sizes:
        nets[", softmax"] = bench.net(plain_net(bench, sizes, task, "softmax", sizes["layers"]))
        nets[", shuffled weights"] = shuffled(nets[""], bench.seed)
        places = [task.length // 2, 3 * task.length // 4, task.length]
    values, curves = {}, []
    for name, net in nets.items():
        found = [copied_lags(bench, sizes, task, net, at) for at in places]
        values[f"least R2 of lags 0 and 1{name}"] = min(min(explained[:2]) for explained, _ in found)
        values[f"R2 of lag 3{name}"] = max(explained[3] for explained, _ in found)
        values[f"sensitivity of lag 1 over lag 4{name}"] = min(each[1] / each[4] for _, each in found)
        curves += _lines(*found[-1], name)
    return Findings(values, curves=curves, x_label="lag", y_label="R2, norm of the gradient")


def longer_binding(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 12: for states of size n_h observed through n_s numbers, the first layer holds ceil(n_h / n_s) tokens."""
    task = dynamics(sizes)
    net = hybrid_net(bench, sizes, task)
    explained, sensitivity = copied_lags(bench, sizes, task, net)
    needed = math.ceil(sizes["hidden"] / sizes["size"])
    control, _ = copied_lags(bench, sizes, task, shuffled(net, bench.seed))
    return Findings(
        {
            "least R2 of the lags needed": min(explained[:needed]),
            "R2 of the second lag beyond those needed": explained[needed + 1],
            "least R2 of the lags needed, shuffled weights": min(control[:needed]),
        },
        controls={"lags needed": needed},
        curves=_lines(explained, sensitivity),
        x_label="lag",
        y_label="R2, norm of the gradient",
    )
