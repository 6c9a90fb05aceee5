"""Claims that need no training: propositions 1 and 2, the mesa layer and its gradients, the curse of dimension."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from mesalm.data.synthetic.drawn_stream import drawn_batch, step_generator
from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.data.synthetic.vector_task import normal
from mesalm.lab.claims import Curve, Findings
from mesalm.lab.constructions import (
    gradient_step_head,
    linear_net,
    neumann_coefficients,
    polynomial_heads,
    set_products,
)
from mesalm.lab.experiments.frame import Sizes, curve, dynamics
from mesalm.lab.preconditioners import neumann_inverse
from mesalm.lab.predictors import kernel_predictions, mean_loss, pairs, previous
from mesalm.lab.workbench import Workbench
from mesalm.least_squares import gradient_predictions, ridge_predictions, running_cross, running_gram
from mesalm.model.operator_linear import linear_attention
from mesalm.model.operator_mesa import mesa_attention
from mesalm.train.activations import counted_storages


def largest(difference: Tensor) -> float:
    """Return the largest absolute value."""
    return float(difference.abs().max())


def relative(value: Tensor, reference: Tensor) -> float:
    """Return the 2-norm of the difference divided by that of the reference."""
    return float(torch.linalg.vector_norm(value - reference) / torch.linalg.vector_norm(reference))


def gradient_step(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 1: proposition 1's weights against the gradient step itself, with random starts and rates."""
    task = dynamics(sizes)
    found, curves = {}, []
    for dtype, name in ((torch.float32, "float32"), (torch.float64, "float64")):
        inputs = drawn_batch(task, sizes["rows"], bench.seed)["inputs"].to(dtype)
        worst = torch.zeros(task.sequence_length, dtype=dtype)
        for trial, rate in enumerate((0.001, 0.05, 0.2), start=1):  # 0 has drawn the inputs
            generator = step_generator(bench.seed, trial, "test")
            start = normal((task.size, task.size), 0.5, generator).to(dtype)
            net = set_products(linear_net(1, 1, task.size, dtype=dtype), [[gradient_step_head(start, rate)]])
            tokens = net.embed(inputs)
            tokens[..., : task.size] = inputs @ start.mT
            predicted = net.layers[0](tokens)[..., : task.size]
            exact = gradient_predictions(*pairs(inputs), rate, start=start)
            by_position = (predicted - exact).abs().amax(dim=(0, 2)) / max(1.0, largest(exact))
            worst = torch.maximum(worst, by_position)
        found[f"difference in {name}"] = float(worst.max())
        curves.append(curve(name, worst))
    return Findings(
        found,
        curves=curves,
        y_label="largest difference",
        logarithmic=True,
        notes=["differences are divided by the largest prediction where that is above 1"],
    )


def preconditioning(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 2: the truncated Neumann series by attention layers, against the matrix recursion and exact ridge."""
    size, ridge = sizes["size"], sizes["ridge"]
    inputs = drawn_batch(dynamics(sizes), sizes["rows"], bench.seed)["inputs"].double()
    keys = previous(inputs)
    gram = running_gram(keys) + ridge * torch.eye(size, dtype=torch.float64)
    cross = running_cross(inputs, keys)
    # the largest eigenvalue over all sequences and positions, which share one scale
    scale = float(torch.linalg.eigvalsh(gram).max())
    exact = ridge_predictions(*pairs(inputs), ridge)
    gaps, errors = [], []
    for depth in sizes["depths"]:
        heads = polynomial_heads(*neumann_coefficients(depth, scale, ridge), size)
        built = set_products(linear_net(depth, 2, size, dtype=torch.float64), heads)(inputs).predictions
        matrices = (cross @ neumann_inverse(gram, scale, depth) @ inputs.unsqueeze(-1)).squeeze(-1)
        gaps.append(largest(built - matrices))
        errors.append(relative(built, exact))
    ratios = [after / before for before, after in pairwise(errors)]
    return Findings(
        {
            "difference of layers and recursion": max(gaps),
            "largest ratio of successive errors": max(ratios),
            "error of the deepest": errors[-1],
        },
        curves=[Curve("layers by construction", [float(depth) for depth in sizes["depths"]], errors)],
        x_label="layers",
        y_label="distance to ridge regression",
        logarithmic=True,
    )


def batch_ridge(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 3: recursion, dense solve and operator on the same operands; a large ridge; the first token."""
    shape = (sizes["rows"], sizes["length"], sizes["heads"], sizes["size"])
    generator = step_generator(bench.seed, 0, "test")
    query, key, value = (normal(shape, 1.0, generator) for _ in range(3))
    inverse_ridge = 1.5
    exact = mesa_by_solve(query.double(), key.double(), value.double(), inverse_ridge)
    by_operator = mesa_attention(query, key, value, ridge=1 / inverse_ridge, tolerance=1e-6, backend="torch")
    by_recursion = sherman_morrison(query, key, value, inverse_ridge)
    first_key = key[:, 0].double()
    gain = inverse_ridge / (1 + inverse_ridge * first_key.square().sum(-1, keepdim=True))
    first = value[:, 0] * gain * (first_key * query[:, 0]).sum(-1, keepdim=True)
    plain = linear_attention(query.double(), key.double(), value.double())
    small = [1e-2, 1e-3, 1e-4, 1e-5]
    unit = 1.0 / sizes["size"] ** 0.5  # keys of about unit length, as the layer normalises them
    gaps = []
    for each in small:
        scaled = mesa_by_solve(query.double(), unit * key.double(), value.double(), each)
        gaps.append(relative(scaled / (unit * each), plain))
    return Findings(
        {
            "difference of recursion and solve in float32": relative(by_recursion, exact),
            "difference of operator and solve in float32": relative(by_operator, exact),
            "difference of the first token and its formula": relative(by_operator[:, 0], first),
            "distance to linear attention at lambda 1e-4": gaps[small.index(1e-4)],
        },
        curves=[Curve("mesa layer over lambda, to linear attention", small, gaps)],
        x_label="lambda",
        y_label="relative distance",
        logarithmic=True,
    )


def sherman_morrison(query: Tensor, key: Tensor, value: Tensor, inverse_ridge: float) -> Tensor:
    """Return Phi_t q_t, [B, T, H, V], with Phi_t the ridge regression of the values on the keys up to t.

    R_t = R_{t-1} - R_{t-1} k k' R_{t-1} / (1 + k' R_{t-1} k), R_0 = inverse_ridge I (the paper's lambda);
    Phi_t = sum_{t' <= t} v_{t'} k_{t'}' R_t. query and key [B, T, H, K], value [B, T, H, V], computed in their dtype;
    differentiable. von Oswald et al. 2023 (arXiv 2309.05858), section 3.
    """
    batch, length, heads, size = key.shape
    inverse = inverse_ridge * torch.eye(size, dtype=key.dtype, device=key.device).expand(batch, heads, size, size)
    cross = value.new_zeros(batch, heads, value.shape[-1], size)
    outputs = []
    for t in range(length):
        k, v, q = key[:, t].unsqueeze(-1), value[:, t].unsqueeze(-1), query[:, t].unsqueeze(-1)
        along = inverse @ k
        inverse = inverse - along @ along.mT / (1.0 + k.mT @ along)
        cross = cross + v @ k.mT
        outputs.append((cross @ (inverse @ q)).squeeze(-1))
    return torch.stack(outputs, dim=1)


def mesa_by_solve(query: Tensor, key: Tensor, value: Tensor, inverse_ridge: float) -> Tensor:
    """Return the mesa layer's output by one batched dense solve per token; shapes as in `sherman_morrison`."""
    gram = (key.unsqueeze(-1) * key.unsqueeze(-2)).cumsum(dim=1)
    gram = gram + torch.eye(key.shape[-1], dtype=key.dtype) / inverse_ridge
    cross = (value.unsqueeze(-1) * key.unsqueeze(-2)).cumsum(dim=1)
    return (cross @ torch.linalg.solve(gram, query.unsqueeze(-1))).squeeze(-1)


def mesa_gradients(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 4: the operator's gradients, including lambda's and gamma's, against autodiff of dense solves."""
    found = {}
    for dtype, name, tolerance in ((torch.float32, "float32", 1e-6), (torch.float64, "float64", 1e-13)):
        exact = _gradients(bench.seed, sizes, torch.float64, "exact", 1e-4)
        found[f"difference to autodiff in {name}"] = max(
            relative(ours.double(), theirs)
            for ours, theirs in zip(_gradients(bench.seed, sizes, dtype, "torch", tolerance), exact, strict=True)
        )
    size, longest = sizes["memory_size"], sizes["memory_length"]
    lengths = [longest // 4, longest // 2, longest]
    kept = [_kept_numbers(bench.seed, size, length) / (length * size**2) for length in lengths]
    found["matrices kept a token"] = kept[-1]
    return Findings(
        found,
        curves=[
            Curve("the operator", [float(length) for length in lengths], kept),
            Curve("one matrix per token (autodiff)", [float(length) for length in lengths], [1.0] * len(lengths)),
        ],
        x_label="tokens",
        y_label="matrices kept per token",
        notes=["gradients of query, key, value, log gamma, beta and ridge; the worst is shown"],
    )


def _gradients(seed: int, sizes: Sizes, dtype: torch.dtype, backend: str, tolerance: float) -> list[Tensor]:
    shape = (sizes["rows"], sizes["length"], sizes["heads"], sizes["size"])
    generator = step_generator(seed, 1, "test")
    query, key, value = (normal(shape, 1.0 / shape[-1] ** 0.5, generator) for _ in range(3))
    log_forget = torch.nn.functional.logsigmoid(normal(shape[:3], 1.0, generator) + 3)
    input_gate = normal(shape[:3], 1.0, generator).sigmoid()
    ridge = 1.0 + normal((shape[2],), 0.1, generator)
    operands = [each.to(dtype).requires_grad_() for each in (query, key, value, log_forget, input_gate, ridge)]
    output = mesa_attention(*operands, backend=backend, tolerance=tolerance)
    output.backward(normal(shape, 1.0, generator).to(dtype))
    return [each.grad for each in operands if each.grad is not None]


def _kept_numbers(seed: int, size: int, length: int) -> int:
    """Return how many numbers autograd saves between the operator's forward and backward pass, once per storage."""
    generator = step_generator(seed, 2, "test")
    query, key, value = (normal((1, length, 1, size), 1.0 / size**0.5, generator).requires_grad_() for _ in range(3))
    kept: list[int] = []
    with counted_storages(lambda tensor: kept.append(tensor.untyped_storage().nbytes() // tensor.element_size())):
        output = mesa_attention(query, key, value, backend="torch")
    assert output.requires_grad
    return sum(kept)


def dimension_curse(bench: Workbench, sizes: Sizes) -> Findings:
    """Claim 14: softmax kernel regression against ridge regression, on sequences four times as long as the size."""
    losses = []
    for size in sizes["sizes"]:
        batch = drawn_batch(LinearDynamics(size=size, length=4 * size), sizes["rows"], bench.seed)
        inputs, targets = batch["inputs"], batch["targets"]
        # the best sharpness of a grid; the loss is flat around it, so a finer grid would change little
        kernel = min(mean_loss(kernel_predictions(inputs, 0.25 * 2 ** (power / 2)), targets) for power in range(16))
        fitted = [ridge_predictions(*pairs(inputs.double()), sizes["ridge"], lag) for lag in (1, 0)]
        losses.append([loss / size for loss in (kernel, *(mean_loss(each, targets) for each in fitted))])
    ratios = {size: kernel / late for size, (kernel, late, _) in zip(sizes["sizes"], losses, strict=True)}
    fresh = {size: kernel / all_ for size, (kernel, _, all_) in zip(sizes["sizes"], losses, strict=True)}
    labels = ("kernel regression", "ridge without the newest pair", "ridge with all pairs")
    x = [float(size) for size in sizes["sizes"]]
    return Findings(
        {f"kernel loss over ridge loss at size {size}": ratios[size] for size in (4, 40)},
        controls={f"ratio at size {size} with the newest pair": fresh[size] for size in (4, 40)},
        curves=[Curve(label, x, list(own)) for label, own in zip(labels, zip(*losses, strict=True), strict=True)],
        x_label="dimension",
        y_label="loss per dimension",
    )
