"""Propositions 1 and 2 and the controls, against arithmetic that shares nothing with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mesalm.lab.compressed import averaged, block_scalars, compressed, diagonal_mass, with_products
from mesalm.lab.constructions import HeadProducts, linear_net, placed, products_of, set_products
from mesalm.lab.experiments.theory import sherman_morrison
from mesalm.lab.linear_decoders import decode
from mesalm.lab.preconditioners import Coefficients, learned_coefficients, momentum_inverse, momentum_predictions
from mesalm.lab.predictors import best_step, kernel_predictions, mean_loss, pairs, position_losses
from mesalm.least_squares import gradient_predictions, ridge_predictions


def states(rows: int = 3, length: int = 9, size: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, length, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("lag", [0, 1])
def test_ridge_predictions_are_numpys_least_squares(lag: int) -> None:
    s, ridge = states(), 0.3
    predictions = ridge_predictions(*pairs(s), ridge, lag).numpy()
    for row, t in np.ndindex(3, 9):
        seen = np.concatenate((np.zeros((1, 4)), s[row].numpy()))[: t + 2 - lag]
        keys = np.concatenate((seen[:-1], np.sqrt(ridge) * np.eye(4)))
        answers = np.concatenate((seen[1:], np.zeros((4, 4))))
        fitted = np.linalg.lstsq(keys, answers, rcond=None)[0]
        np.testing.assert_allclose(predictions[row, t], s[row, t].numpy() @ fitted, atol=1e-10)


@pytest.mark.parametrize("lag", [0, 1])
def test_a_gradient_step_is_autograds(lag: int) -> None:
    s = states()
    start = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for begin in (start, None):
        predictions = gradient_predictions(*pairs(s), 0.07, lag, start=begin)
        for t in (0, 3, 8):
            phi = (torch.zeros_like(start) if begin is None else begin).repeat(3, 1, 1).requires_grad_()
            seen = torch.cat((torch.zeros(3, 1, 4, dtype=torch.float64), s), dim=1)[:, : t + 2 - lag]
            loss = 0.5 * (seen[:, 1:] - seen[:, :-1] @ phi.mT).square().sum()
            (gradient,) = torch.autograd.grad(loss, phi)
            expected = ((phi - 0.07 * gradient) @ s[:, t].unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(predictions[:, t], expected.detach(), atol=1e-12, rtol=0)


def test_the_best_rate_is_the_best_of_its_neighbours() -> None:
    s = states()
    step = best_step(s[:, :-1], s[:, 1:])
    losses = [mean_loss(factor * step, s[:, 1:]) for factor in (0.99, 1.0, 1.01)]
    assert losses[1] < min(losses[0], losses[2])


def test_kernel_regression_weighs_what_followed() -> None:
    s = states(1)[0]
    predictions = kernel_predictions(s[None], 0.7)[0]
    assert not predictions[0].any()
    for t in range(1, 9):
        weights = np.exp([0.7 * float(s[i] @ s[t]) for i in range(t)])
        expected = sum(w * s[i + 1] for i, w in enumerate(weights)) / weights.sum()
        torch.testing.assert_close(predictions[t], expected)


def test_momentum_steps_without_momentum_are_a_product_of_factors() -> None:
    matrix = states(1, 9, 4)[0].mT @ states(1, 9, 4)[0]
    scaled = matrix / torch.linalg.matrix_norm(matrix)
    eye = torch.eye(4, dtype=torch.float64)
    steps = torch.tensor([1.1, 0.7], dtype=torch.float64)
    expected = eye + (eye - 1.1 * scaled) + (eye - 1.1 * scaled) @ (eye - 0.7 * scaled)
    found = momentum_inverse(matrix, Coefficients(steps, torch.zeros_like(steps)))
    torch.testing.assert_close(found, expected / torch.linalg.matrix_norm(matrix))


def test_learned_coefficients_beat_those_they_start_from() -> None:
    s = states(64, 13)
    inputs, targets = s[:, :-1], 0.5 * s[:, :-1].flip(-1)
    plain = Coefficients(torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    found = learned_coefficients(inputs, targets, 3, 0.1, 0)
    losses = [mean_loss(momentum_predictions(inputs, each, 0.1, 0), targets) for each in (plain, found)]
    assert losses[1] < losses[0]


def test_the_recursion_solves_the_normal_equations() -> None:
    query, key, value = (states(2, 12, 3 * 4).unflatten(-1, (3, 4)) + shift for shift in (0.0, 0.1, 0.2))
    output = sherman_morrison(query, key, value, 0.5)
    for row, t, head in np.ndindex(2, 12, 3):
        k, v = key[row, : t + 1, head], value[row, : t + 1, head]
        phi = v.mT @ k @ torch.linalg.inv(k.mT @ k + 2.0 * torch.eye(4, dtype=torch.float64))
        torch.testing.assert_close(output[row, t, head], phi @ query[row, t, head])


def test_products_are_read_as_they_were_written() -> None:
    generator = torch.Generator().manual_seed(2)
    layers = [[HeadProducts(*torch.randn(2, 8, 8, generator=generator).unbind()) for _ in range(3)] for _ in range(2)]
    net = set_products(linear_net(2, 3, 2), layers)
    for heads, read in zip(layers, products_of(net), strict=True):
        for head, again in zip(heads, read, strict=True):
            torch.testing.assert_close(again.query_key, head.query_key)
            torch.testing.assert_close(again.output_value, head.output_value)
    inputs = states(2, 6, 2).float()
    tokens = net.embed(inputs)
    # one layer, by the sum that defines it
    added = sum(
        torch.einsum("tu,bue->bte", torch.ones(6, 6).tril(), torch.zeros_like(tokens))
        + ((tokens @ head.query_key.mT) @ tokens.mT).tril() @ (tokens @ head.output_value.mT)
        for head in layers[0]
    )
    torch.testing.assert_close(net.layers[0](tokens), tokens + added, atol=1e-3, rtol=1e-4)


def test_compressing_keeps_multiples_of_the_identity_and_nothing_else() -> None:
    exact = placed(3, {(0, 2): 0.5, (3, 1): -2.0})
    noise = torch.zeros(12, 12, dtype=torch.float64)
    noise[0, 7] = 1.0  # off the diagonal of block (0, 2)
    layers = [[HeadProducts(exact, exact + noise)]]
    for matrix in compressed(layers)[0][0]:
        torch.testing.assert_close(matrix, exact)
    assert block_scalars(exact)[3, 1] == -2.0
    whole = float(exact.square().sum())
    assert diagonal_mass(layers) == pytest.approx(2 * whole / (2 * whole + 1))
    torch.testing.assert_close(averaged(layers, compressed(layers))[0][0].output_value, exact + noise / 2)


def test_a_net_with_its_own_products_is_the_same_net() -> None:
    net = linear_net(2, 2, 2, clip=4.0)
    for parameter in net.parameters():
        parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    net.config.copy_slot = False
    inputs = states(2, 6, 2).float()
    again = with_products(net, products_of(net))
    torch.testing.assert_close(again(inputs).predictions, net(inputs).predictions, atol=1e-4, rtol=1e-4)


def test_a_decoder_is_scored_on_rows_it_has_not_seen() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(400, 5, generator=generator)
    targets = torch.cat((features[:, :2] @ torch.ones(2, 2), torch.randn(400, 1, generator=generator)), dim=1)
    features[:, 4] = 0.0  # an empty part must not matter
    first = decode((features[:200], targets[:200, :2]), (features[200:], targets[200:, :2]))
    assert first.r2 == pytest.approx(1.0, abs=1e-9)
    noise = decode((features[:200], targets[:200, 2:]), (features[200:], targets[200:, 2:]))
    assert noise.r2 < 0.1
    assert noise.variance == pytest.approx(0.5, rel=0.3)


def test_losses_by_position_average_to_the_mean() -> None:
    predictions, targets = states(), states().flip(0)
    assert float(position_losses(predictions, targets).mean()) == pytest.approx(mean_loss(predictions, targets))
    assert mean_loss(predictions, predictions + 1.0) == pytest.approx(0.5 * 4)
