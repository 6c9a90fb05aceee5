"""Replacing single layers: a layer that is linear already costs nothing, imitation brings a softmax layer's near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.journal import read_journal
from mesalm.lab.experiments.linearisation import linearisation, linearised, loss_ratios
from mesalm.lab.experiments.softmax import plain_net
from mesalm.lab.workbench import Workbench
from mesalm.regressor.regressor_mesa import MesaRegressor
from mesalm.settings import SettingsError
from mesalm.train.randomness import seed_everything

SIZES: dict[str, Any] = {
    "layers": 2,
    "steps": 4,
    "batch": 16,
    "learning_rate": 1e-2,
    "linear_steps": 2,
    "test_rows": 32,
}
TASK = LinearDynamics(size=4, length=8)


def test_a_layer_that_is_linear_already_costs_nothing(tmp_path: Path) -> None:
    bench = Workbench(0, tmp_path, quiet=True)
    base = plain_net(bench, SIZES, TASK, "linear", 2)
    assert loss_ratios(bench, SIZES, base) == pytest.approx([1.0, 1.0], abs=1e-6)


def test_a_layer_learns_what_the_softmax_layer_gives_and_all_else_stays(tmp_path: Path) -> None:
    bench = Workbench(0, tmp_path, quiet=True)
    base = plain_net(bench, {**SIZES, "steps": 30}, TASK, "softmax", 2)
    recipe = linearised(bench, {**SIZES, "linear_steps": 200, "learning_rate": 4e-3}, base, 1)
    net, before = bench.net(recipe), bench.net(base)
    assert net.config.layer_mixers == ["softmax", "linear"]
    events = read_journal(bench.folder(recipe) / "journal.jsonl")
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert losses[-1] < 0.5 * losses[0]
    for (name, ours), theirs in zip(net.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs) != name.startswith("layers.1.mixer"), name
    batch = bench.batch(TASK, 16)
    stream = before(batch["inputs"], output_hidden_states=True).hidden_states
    mixer: Any = net.layers[1].mixer
    wanted, (given, _) = stream[2] - stream[1], mixer(stream[1])
    assert (given - wanted).square().mean() < 2 * losses[-1] + 1e-9


def test_a_fresh_layer_starts_from_random_weights_at_a_rate_that_is_held(tmp_path: Path) -> None:
    bench = Workbench(0, tmp_path, quiet=True)
    sizes = {**SIZES, "steps": 30}
    base = plain_net(bench, sizes, TASK, "softmax", 2)
    # a rate that changes nothing, so that the net shows what it started from
    still = linearised(bench, {**sizes, "linear_rate": 1e-30}, base, 1)
    net, before = bench.net(still), bench.net(base)
    for (name, ours), theirs in zip(net.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs) != name.startswith("layers.1.mixer"), name
    seed_everything(0)
    drawn = MesaRegressor(net.config).layers[1].mixer.state_dict()
    assert all(torch.allclose(ours, drawn[name]) for name, ours in net.layers[1].mixer.state_dict().items())
    assert (still.schedule.name, still.schedule.warmup_steps, still.optim.learning_rate) == ("constant", 0, 1e-30)
    assert "fresh" not in base.model_dump()  # nets of recipes without it are found again under their old keys


def test_a_net_that_imitates_is_another_and_needs_a_base(tmp_path: Path) -> None:
    base = plain_net(Workbench(0, tmp_path), SIZES, TASK, "softmax", 2)
    assert base.model_copy(update={"imitates": 0}).key() != base.key()
    with pytest.raises(SettingsError, match="needs a base"):
        Workbench(0, tmp_path, quiet=True).net(base.model_copy(update={"imitates": 0}))


def test_ratios_are_told_by_layer_and_size(tmp_path: Path) -> None:
    sizes = {**SIZES, "sizes": [2, 4]}
    findings = linearisation(Workbench(0, tmp_path, quiet=True), sizes)
    first = [findings.controls[f"loss ratio of layer 1 at size {size}"] for size in (2, 4)]
    later = [findings.controls[f"loss ratio of layer 2 at size {size}"] for size in (2, 4)]
    losses = []
    for size in (2, 4):
        task = LinearDynamics(size=size, length=4 * size)
        bench = Workbench(0, tmp_path, quiet=True)
        batch = bench.batch(task, 32)
        error = bench.net(plain_net(bench, sizes, task, "softmax", 2))(batch["inputs"]).predictions - batch["targets"]
        losses.append(float(error.square().sum() / batch["targets"].square().sum()))
    assert findings.values == pytest.approx(
        {
            "loss ratio of layer 1": sum(first) / 2,
            "mean loss ratio of later layers": sum(later) / 2,
            "mean loss ratio of later layers at size 4 over size 2": later[1] / later[0],
            "largest loss of a net over predicting zero": max(losses),
        }
    )
