"""Claims about what can be read from the residual stream of nets, layer by layer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.lab.claims import Curve, Findings
from mesalm.lab.experiments.controls import best_of_rates, shuffled
from mesalm.lab.experiments.linear import constructed_net
from mesalm.lab.linear_decoders import decode
from mesalm.lab.preconditioners import Coefficients, learned_coefficients, momentum_inverse
from mesalm.lab.predictors import previous
from mesalm.lab.workbench import Workbench
from mesalm.least_squares import running_gram
from mesalm.regressor.regressor_mesa import MesaRegressor

Sizes = dict[str, Any]


def other_nets(bench: Workbench, sizes: Sizes) -> dict[str, MesaRegressor]:
    """Return the softmax net of version 2 and its two controls, which have not learned to learn in context."""
    task = LinearDynamics(size=sizes["size"], length=sizes["length"])
    own = {**sizes, "steps": sizes["softmax_steps"]}
    deep = best_of_rates(bench, own, task, "softmax", sizes["softmax_layers"], sizes["softmax_rates"])
    teacher = constructed_net(bench, sizes, "linear", sizes["layers"], transition="teacher")
    linear = constructed_net(bench, sizes, "linear", sizes["layers"])
    return {
        "softmax": bench.net(deep),
        "shuffled weights": shuffled(bench.net(linear), bench.seed),
        "fixed teacher": bench.net(teacher),
    }


def next_token_errors(bench: Workbench, sizes: Sizes, net: MesaRegressor) -> dict[int, list[float]]:
    """Return for several positions, from 1, the error of decoding the next token from the input and every layer."""
    task = LinearDynamics(size=sizes["size"], length=sizes["length"])
    fit, test = (bench.batch(task, sizes[f"{name}_rows"], step) for step, name in ((1, "fit"), (0, "test")))
    streams = [net(batch["inputs"], output_hidden_states=True).hidden_states for batch in (fit, test)]
    return {
        position: [
            decode(
                (a[:, position - 1], fit["targets"][:, position - 1]),
                (b[:, position - 1], test["targets"][:, position - 1]),
            ).error
            for a, b in zip(*streams, strict=True)
        ]
        for position in sorted({sizes["length"] // 4, sizes["length"] // 2, sizes["length"]})
    }


def target_probe(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 9: the next token decoded from the residual stream at the last position, layer by layer."""
    net = bench.net(constructed_net(bench, sizes, "linear", sizes["layers"]))
    errors = next_token_errors(bench, sizes, net)
    last = errors[sizes["length"]]
    return Findings(
        {
            "largest ratio of successive errors": max(b / a for a, b in pairwise(last)),
            "last error relative to the input's": last[-1] / last[0],
        },
        curves=[by_layer(f"position {position}", found) for position, found in errors.items()],
        x_label="layer",
        y_label="error of the decoder, fresh sequences",
        logarithmic=True,
    )


def by_layer(label: str, values: list[float]) -> Curve:
    """Return values of the input and every layer as a line."""
    return Curve(label, [float(layer) for layer in range(len(values))], values)


def target_probe_of_nets(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 9, version 2: beside version 1's, a softmax net and two controls, all at the last position."""
    found = target_probe(bench, sizes)
    for name, net in other_nets(bench, sizes).items():
        last = next_token_errors(bench, sizes, net)[sizes["length"]]
        found.values[f"largest ratio of successive errors, {name}"] = max(b / a for a, b in pairwise(last))
        found.values[f"last error relative to the input's, {name}"] = last[-1] / last[0]
        found.curves.append(by_layer(f"{name}, last position", last))
    return found


def preconditioned(inputs: Tensor, learned: Coefficients, at: int, ridge: float) -> Tensor:
    """Return the preconditioned query at a position, from 0, [B, D] float64 of inputs [B, T, D]."""
    states = inputs.double()
    eye = torch.eye(states.shape[-1], dtype=torch.float64, device=states.device)
    gram = running_gram(previous(states))[:, at] + ridge * eye
    return (momentum_inverse(gram, learned) @ states[:, at].unsqueeze(-1)).squeeze(-1)


def preconditioning_errors(
    bench: Workbench, sizes: Sizes, net: MesaRegressor
) -> tuple[list[float], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the error of decoding the preconditioned query from the input and every layer, and what the control
    needs: query and next token of the rows to fit on and to test on.

    The query is preconditioned by six steps with learned coefficients, as in the paper; sequences where its norm is
    two standard deviations above the mean are left out.
    """
    task = LinearDynamics(size=sizes["size"], length=sizes["length"])
    at, ridge = sizes["position"] - 1, sizes["ridge"]
    fit, test = (bench.batch(task, sizes[f"{name}_rows"], step) for step, name in ((1, "fit"), (0, "test")))
    learned = learned_coefficients(fit["inputs"][:512].double(), fit["targets"][:512].double(), 6, ridge, 0)
    parts = []
    for batch in (fit, test):
        query = preconditioned(batch["inputs"], learned, at, ridge)
        norm = query.norm(dim=-1)
        kept = norm < norm.mean() + 2 * norm.std()
        stream = net(batch["inputs"], output_hidden_states=True).hidden_states
        parts.append((query[kept], batch["targets"][kept, at], [state[kept, at] for state in stream]))
    (fit_query, fit_next, fit_stream), (test_query, test_next, test_stream) = parts
    errors = [decode((a, fit_query), (b, test_query)).error for a, b in zip(fit_stream, test_stream, strict=True)]
    return errors, (fit_query, fit_next), (test_query, test_next)


def preconditioning_probe(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 10: the preconditioned query decoded layer by layer, and the control: the next token from it alone."""
    net = bench.net(constructed_net(bench, sizes, "linear", sizes["layers"]))
    errors, *queries_and_next = preconditioning_errors(bench, sizes, net)
    control = decode(*queries_and_next)
    return Findings(
        {
            "least error relative to the input's": min(errors[1:]) / errors[0],
            "error of the control relative to the variance": control.error / control.variance,
        },
        curves=[by_layer(f"position {sizes['position']}", errors)],
        x_label="layer",
        y_label="error of the decoder, fresh sequences",
    )


def preconditioning_probe_of_nets(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 10, version 2: beside version 1's, a softmax net and two nets that cannot precondition."""
    found = preconditioning_probe(bench, sizes)
    for name, net in other_nets(bench, sizes).items():
        errors, *_ = preconditioning_errors(bench, sizes, net)
        found.values[f"least error relative to the input's, {name}"] = min(errors[1:]) / errors[0]
        found.curves.append(by_layer(name, errors))
    return found
