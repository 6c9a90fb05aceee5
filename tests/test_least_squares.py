"""Regression on the pairs of a sequence, against numpy and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mesalm.least_squares import best_rate, gradient_predictions, ridge_predictions, running_gram


def pairs(rows: int = 3, count: int = 9, size: int = 4, outputs: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, count, size, generator=generator)
    return x.double(), torch.randn(rows, count, outputs, generator=generator).double()


def test_a_lag_beyond_the_sequence_leaves_no_pair() -> None:
    x, _ = pairs()
    assert torch.equal(running_gram(x, lag=12), torch.zeros(3, 9, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_ridge_agrees_with_numpys_least_squares(ridge: float) -> None:
    x, y = pairs()
    ours = ridge_predictions(x, y, x, ridge, lag=1).numpy()
    assert (ours[:, 0] == 0).all()
    for row in range(3):
        for shots in range(1, 9):
            # ridge regression is least squares with sqrt(ridge) I below x and zeros below y
            design = np.vstack([x[row, :shots].numpy(), ridge**0.5 * np.eye(4)])
            wanted = np.vstack([y[row, :shots].numpy(), np.zeros((4, 2))])
            fitted, *_ = np.linalg.lstsq(design, wanted, rcond=1e-10)
            # the gram squares the condition number, some 1e4 here, so that 1e-16 becomes 1e-8
            assert np.allclose(ours[row, shots], x[row, shots].numpy() @ fitted, atol=1e-7)


def test_the_gradient_step_is_autograds_and_its_rate_is_the_best_one() -> None:
    x, y = pairs()
    ours = gradient_predictions(x, y, x, 0.3, lag=1)
    for shots in (1, 5):
        weight = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
        loss = 0.5 * (x[1, :shots] @ weight.T - y[1, :shots]).square().sum()
        (slope,) = torch.autograd.grad(loss, weight)
        torch.testing.assert_close(ours[1, shots], (-0.3 * slope) @ x[1, shots])
    steps = gradient_predictions(x, y, x, 1.0, lag=1)
    rates = best_rate(steps, y, dim=(0, 2)).unsqueeze(-1)
    assert rates[0] == 0  # no pair yet
    torch.testing.assert_close(gradient_predictions(x, y, x, rates, lag=1), rates * steps)
    error = (rates * steps - y).square().sum((0, 2))
    for change in (-1e-3, 1e-3):
        assert (((rates + change) * steps - y).square().sum((0, 2))[1:] > error[1:]).all()
