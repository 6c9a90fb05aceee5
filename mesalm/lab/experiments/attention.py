"""The attention maps of a net's first layer: where it attends when it copies earlier tokens."""

from __future__ import annotations

import torch

from mesalm.lab.claims import Findings
from mesalm.lab.experiments.copying import LAGS, hybrid_net
from mesalm.lab.experiments.frame import Sizes, curve, dynamics
from mesalm.lab.inspection.reach import attention_watched
from mesalm.lab.workbench import Workbench
from mesalm.regressor.regressor_mesa import MesaRegressor

ROWS_A_PASS = 256
"""Sequences per forward pass, limited since the maps of all heads and sequences take much memory."""


def attention_maps(bench: Workbench, sizes: Sizes) -> Findings:
    """Average the first softmax layer's attention over sequences: its shares by lag, and the maps as images.

    The net is that of claim 11 or, if the sizes have ``hidden``, of claim 12. Shares are means over heads and over the
    positions that have all lags of the figure; the shares of uniform attention are shown for comparison.
    """
    task = dynamics(sizes)
    net = hybrid_net(bench, sizes, task)
    maps = mean_maps(net, bench.batch(task, sizes["test_rows"])["inputs"])
    by_head = torch.stack([shares_by_lag(head) for head in maps])
    even = shares_by_lag(torch.ones_like(maps[0]).tril() / torch.arange(1, len(maps[0]) + 1).unsqueeze(-1))
    shares = by_head.mean(dim=0)
    return Findings(
        {
            "share on the diagonal": float(shares[0]),
            "share on the sub-diagonal": float(shares[1]),
            "share on both": float(shares[:2].sum()),
            "largest share of one head on the sub-diagonal": float(by_head[:, 1].max()),
        },
        controls={"share on both where all tokens are seen alike": float(even[:2].sum())},
        curves=[
            *(curve(f"head {head}", each, 0) for head, each in enumerate(by_head)),
            curve("all tokens alike", even, 0),
        ],
        x_label="lag",
        y_label="share of the attention",
        blocks={f"head {head}": each.tolist() for head, each in enumerate(maps)},
        divisions=1,
        notes=["pictures: queries downwards, keys to the right"],
    )


def mean_maps(net: MesaRegressor, inputs: torch.Tensor) -> torch.Tensor:
    """Return the first layer's attention averaged over sequences, [H, T, T] float64 of inputs [B, T, D]."""
    sums = torch.zeros((), dtype=torch.float64)

    def see(layer: int, weights: torch.Tensor) -> None:
        nonlocal sums
        if layer == 0:
            sums = sums + weights.detach().cpu().double().sum(dim=0)

    with attention_watched(net, see):
        for part in inputs.split(ROWS_A_PASS):
            net(part)
    return sums / len(inputs)


def shares_by_lag(weights: torch.Tensor) -> torch.Tensor:
    """Return the mean weight of a map [T, T] at lags 0 .. LAGS - 1, over the queries that have all of them."""
    return torch.stack([weights.diagonal(-lag)[LAGS - 1 - lag :].mean() for lag in range(LAGS)])
