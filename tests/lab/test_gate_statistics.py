"""The numbers of an inspection against plain NumPy on cases made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mesalm import mesa_attention
from mesalm.lab.inspection.capture import Reading
from mesalm.lab.inspection.gate_statistics import (
    FORGET_EDGES,
    INPUT_EDGES,
    LayerSamples,
    late_tokens,
    long_chunks,
)
from mesalm.lab.inspection.late_systems import effective_rank, survey
from mesalm.lab.inspection.reach import LAGS, lag_shares
from mesalm.model.operator_linear import delta_rule, linear_attention

T, G, K = 150, 3, 8


def operands(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    key = torch.randn(T, G, K, generator=generator, dtype=torch.float64)
    key /= key.norm(dim=-1, keepdim=True)
    log_forget = -torch.rand(T, G, generator=generator, dtype=torch.float64) * torch.tensor([0.001, 0.05, 1.0])
    input_gate = torch.rand(T, G, generator=generator, dtype=torch.float64)
    ridge = 0.25 + torch.rand(G, K, generator=generator, dtype=torch.float64)
    return key, log_forget, input_gate, ridge


def recurrent_gram(key: np.ndarray, log_forget: np.ndarray, input_gate: np.ndarray) -> np.ndarray:
    """Run the recurrence of one head as it is written, [T, K, K]."""
    state, states = np.zeros((K, K)), []
    for k, log_gamma, beta in zip(key, log_forget, input_gate, strict=True):
        state = np.exp(log_gamma) * state + beta * np.outer(k, k)
        states.append(state)
    return np.array(states)


@pytest.mark.parametrize("restart", [False, True])
def test_condition_numbers_are_those_of_the_recurrence(restart: bool) -> None:
    key, log_forget, input_gate, ridge = operands()
    if restart:
        log_forget[100, 1] = -math.inf
        log_forget[140, 2] = -1e30
    tokens = [0, 1, 70, 120, T - 1]
    query = operands(1)[0]
    late = survey(query, key, log_forget, input_gate, ridge, tokens)
    plain, scaled, dimension, rank = (late[name] for name in ("condition", "scaled", "dimension", "rank"))
    assert plain.shape == scaled.shape == dimension.shape == rank.shape == (len(tokens), G)
    for head in range(G):
        grams = recurrent_gram(key[:, head].numpy(), log_forget[:, head].numpy(), input_gate[:, head].numpy())
        root = np.diag(ridge[head].numpy() ** -0.5)
        for place, t in enumerate(tokens):
            whole = np.linalg.cond(grams[t] + np.diag(ridge[head].numpy()), 2)
            form = np.linalg.cond(root @ grams[t] @ root + np.eye(K), 2)
            # both are double precision on condition numbers below 1e3
            assert plain[place, head].item() == pytest.approx(whole, rel=1e-10)
            assert scaled[place, head].item() == pytest.approx(form, rel=1e-10)
            hat = grams[t] @ np.linalg.inv(grams[t] + np.diag(ridge[head].numpy()))
            assert dimension[place, head].item() == pytest.approx(np.trace(hat), rel=1e-10, abs=1e-12)
            share = np.linalg.eigvalsh(grams[t]).clip(1e-300)
            share /= share.sum()
            assert rank[place, head].item() == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-9)


def test_a_case_that_can_be_worked_out_by_hand() -> None:
    # two orthogonal keys, the first written twice: H = diag(0.5 * 1 + 1, 0) before the last, then halved once more
    key = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).unsqueeze(1)
    half = torch.full((3, 1), math.log(0.5), dtype=torch.float64)
    late = survey(key, key, half, torch.ones_like(half), torch.tensor([[1.0, 4.0]]).double(), [1, 2])
    assert late["condition"][:, 0].tolist() == pytest.approx([4.0 / 2.5, 5.0 / 1.75])
    assert late["scaled"][:, 0].tolist() == pytest.approx([2.5 / 1.0, 1.75 / 1.25])
    assert late["dimension"][:, 0].tolist() == pytest.approx([1.5 / 2.5, 0.75 / 1.75 + 1.0 / 5.0])
    # both weights of token 1's read-out are along the first key, the older one decayed by half
    assert late["lags"][0, 0, :3].tolist() == pytest.approx([2 / 3, 1 / 3, 0.0])
    assert late["lags"][1, 0, :3].tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_the_read_out_is_the_sum_of_the_weighted_values() -> None:
    """Weights whose shares are taken must be those with which the operator itself reads the values."""
    key, log_forget, input_gate, ridge = operands()
    query = operands(1)[0]
    batch = [x.unsqueeze(0) for x in (query, key, torch.eye(T).double().unsqueeze(1).expand(T, G, T))]
    gates = [log_forget.unsqueeze(0), input_gate.unsqueeze(0)]
    weights_of = {  # values one-hot by token: o_t = weights
        "mesa": mesa_attention(*batch, *gates, ridge, backend="exact"),
        "linear": linear_attention(*batch, *gates, backend="exact"),
        "delta": delta_rule(*batch, *gates, backend="exact"),
    }
    for mixer, weights in weights_of.items():
        solved, places = ridge if mixer == "mesa" else None, [40, T - 1]
        found = survey(query, key, log_forget, input_gate, solved, places, corrects=mixer == "delta")["lags"]
        for place, t in enumerate(places):
            expected = lag_shares(weights[0, t, :, : t + 1])
            torch.testing.assert_close(found[place], expected, rtol=1e-9, atol=1e-12)


def test_shares_by_distance() -> None:
    weights = torch.zeros(2, 41).double()
    weights[0, 40 - torch.tensor([0, 1, 2, 3, 7, 8, 31, 32, 40])] = torch.tensor(
        [1, -1, 1, 1, 1, 1, 1, 1, -2.0]
    ).double()
    shares = lag_shares(weights)
    assert shares.shape == (2, len(LAGS))
    assert shares[0].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.2, 0.2, 0.3])
    assert shares[1].tolist() == [0.0] * len(LAGS)
    assert lag_shares(torch.ones(2)).tolist() == pytest.approx([0.5, 0.5, 0, 0, 0, 0])


def test_effective_rank_lies_between_one_and_the_rank() -> None:
    assert effective_rank(torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0]).double())).item() == pytest.approx(3.0)
    assert effective_rank(torch.diag(torch.tensor([1.0, 0.0]).double())).item() == pytest.approx(1.0)
    assert effective_rank(torch.zeros(3, 3).double()).item() == 0.0


def test_long_chunks_are_whole_chunks_that_keep_more_than_a_sixteenth() -> None:
    border = math.log(1 / 16) / 64
    gates = torch.tensor([0.99 * border, 1.01 * border, 0.0]).double().repeat(2 * 64 + 63, 1)
    gates[64 + 5, 2] = -math.inf
    gates[2 * 64 :] = -9.0  # a chunk that is not whole does not count
    assert long_chunks(gates).tolist() == [[1, 0, 1], [1, 0, 0]]


def test_late_tokens_lie_in_the_last_quarter_and_reach_its_end() -> None:
    assert late_tokens(512)[-1] == 511
    assert late_tokens(512)[0] == 383
    assert len(late_tokens(512)) == 8
    assert late_tokens(2) == [1]


def test_a_head_is_summed_up_over_its_windows() -> None:
    samples = LayerSamples(3, "mesa")
    gates, inputs, all_steps = [], [], []
    for seed in range(2):
        key, log_forget, input_gate, ridge = operands(seed)
        steps = torch.arange(3 * 2 * G, dtype=torch.int32).view(1, 3, 2 * G) + seed
        reading = Reading(3, "mesa", key, key, key, log_forget, input_gate, ridge, steps)
        batched = {name: getattr(reading, name).unsqueeze(0) for name in ("query", "key", "value")}
        samples.add(reading._replace(log_forget=log_forget.unsqueeze(0), input_gate=input_gate.unsqueeze(0), **batched))
        gates.append(log_forget.numpy())
        inputs.append(input_gate.numpy())
        all_steps.append(steps[0].numpy())
    gate, entry, taken = np.concatenate(gates), np.concatenate(inputs), np.concatenate(all_steps)
    heads = samples.numbers()
    assert [head.head for head in heads] == list(range(G))
    for head in heads:
        g = head.head
        assert head.layer == 3
        assert head.gamma == pytest.approx(np.exp(gate[:, g]).mean())
        assert head.log_gamma == pytest.approx(np.percentile(gate[:, g], [5, 50, 95]))
        assert head.memory == pytest.approx(-1 / gate[:, g].mean())
        assert head.beta == pytest.approx(entry[:, g].mean())
        assert head.ridge == pytest.approx((float(ridge[g].min()), float(ridge[g].mean()), float(ridge[g].max())))
        # query heads 2 g and 2 g + 1 read key head g
        assert head.steps == pytest.approx(taken[:, 2 * g : 2 * g + 2].mean())
        assert len(head.condition) == len(head.scaled) == 2 * 8
        assert sum(head.forget_counts) == sum(head.input_counts) == 2 * T
        place = np.searchsorted(FORGET_EDGES, np.median(-gate[:, g])) - 1
        assert head.forget_counts[place] > 0
        assert head.input_counts[-1] == (entry[:, g] >= INPUT_EDGES[-2]).sum()


def test_a_head_that_never_forgets_has_endless_memory() -> None:
    samples = LayerSamples(0, "linear")
    zeros, ones = torch.zeros(1, 64, 1), torch.ones(1, 64, 1)
    key = torch.ones(1, 64, 1, 4)
    samples.add(Reading(0, "linear", key, key, key, zeros, ones, None, None))
    (head,) = samples.numbers()
    assert head.memory is None
    assert (head.gamma, head.beta, head.long_chunks) == (1.0, 1.0, 1.0)
    assert head.ridge is None
    assert head.steps is None
    assert head.condition == []
