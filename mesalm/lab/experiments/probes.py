"""Claims about what can be decoded from the residual stream of nets, layer by layer."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from mesalm.lab.claims import Findings
from mesalm.lab.experiments.controls import best_of_rates, shuffled
from mesalm.lab.experiments.frame import FIT_ROWS, Sizes, curve, dynamics, fit_and_test
from mesalm.lab.experiments.linear import constructed_net
from mesalm.lab.linear_decoders import decode
from mesalm.lab.preconditioners import Coefficients, learned_coefficients, momentum_inverse
from mesalm.lab.predictors import previous
from mesalm.lab.workbench import Workbench
from mesalm.least_squares import running_gram
from mesalm.regressor.regressor_mesa import MesaRegressor


def probed_nets(bench: Workbench, sizes: Sizes) -> dict[str, MesaRegressor]:
    """Return the linear net under the name "", and in version 2 a softmax net and two controls.

    The sizes of version 2 have ``softmax_layers``. The controls have not learned to learn in context.
    """
    linear = bench.net(constructed_net(bench, sizes, "linear", sizes["layers"]))
    if "softmax_layers" not in sizes:
        return {"": linear}
    own = {**sizes, "steps": sizes["softmax_steps"]}
    deep = best_of_rates(bench, own, dynamics(sizes), "softmax", sizes["softmax_layers"], sizes["softmax_rates"])
    teacher = constructed_net(bench, sizes, "linear", sizes["layers"], transition="teacher")
    return {
        "": linear,
        ", softmax": bench.net(deep),
        ", shuffled weights": shuffled(linear, bench.seed),
        ", fixed teacher": bench.net(teacher),
    }


def next_token_errors(bench: Workbench, sizes: Sizes, net: MesaRegressor) -> dict[int, list[float]]:
    """Return by position, from 1, the errors of decoding the next token from the input and from every layer."""
    fit, test = fit_and_test(bench, dynamics(sizes), sizes)
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
    values, curves = {}, []
    for name, net in probed_nets(bench, sizes).items():
        errors = next_token_errors(bench, sizes, net)
        last = errors[sizes["length"]]
        values[f"largest ratio of successive errors{name}"] = max(b / a for a, b in pairwise(last))
        values[f"last error relative to the input's{name}"] = last[-1] / last[0]
        if name:
            curves.append(curve(f"{name.removeprefix(', ')}, last position", last, 0))
        else:
            curves += [curve(f"position {position}", found, 0) for position, found in errors.items()]
    return Findings(
        values,
        curves=curves,
        x_label="layer",
        y_label="error of the decoder, fresh sequences",
        logarithmic=True,
    )


def preconditioned(inputs: Tensor, learned: Coefficients, at: int, ridge: float) -> Tensor:
    """Return the preconditioned query at position ``at``, counted from 0, [B, D] float64, of inputs [B, T, D]."""
    states = inputs.double()
    eye = torch.eye(states.shape[-1], dtype=torch.float64, device=states.device)
    gram = running_gram(previous(states))[:, at] + ridge * eye
    return (momentum_inverse(gram, learned) @ states[:, at].unsqueeze(-1)).squeeze(-1)


def preconditioning_errors(
    bench: Workbench, sizes: Sizes, net: MesaRegressor
) -> tuple[list[float], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the errors of decoding the preconditioned query from the input and every layer, and the control's data:
    query and next token of the rows to fit on and to test on.

    The query is preconditioned by six steps with learned coefficients, as in the paper. Sequences in which its norm
    exceeds the mean by two standard deviations are left out.
    """
    at, ridge = sizes["position"] - 1, sizes["ridge"]
    fit, test = fit_and_test(bench, dynamics(sizes), sizes)
    learned = learned_coefficients(fit["inputs"][:FIT_ROWS], fit["targets"][:FIT_ROWS], 6, ridge, 0)
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
    """Claim 10: the preconditioned query decoded layer by layer; control: the next token decoded from it alone."""
    values, curves = {}, []
    for name, net in probed_nets(bench, sizes).items():
        errors, *queries_and_next = preconditioning_errors(bench, sizes, net)
        values[f"least error relative to the input's{name}"] = min(errors[1:]) / errors[0]
        if not name:
            control = decode(*queries_and_next)
            values["error of the control relative to the variance"] = control.error / control.variance
        curves.append(curve(name.removeprefix(", ") or f"position {sizes['position']}", errors, 0))
    return Findings(values, curves=curves, x_label="layer", y_label="error of the decoder, fresh sequences")
