"""Studies: averaged maps by hand, two tasks with tuned vectors, and how a run of many goes on past one that fails."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mesalm.cli import main
from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.lab import claim_runs, claim_table
from mesalm.lab.claims import Findings, load_claims, load_studies
from mesalm.lab.claims_page import write_page
from mesalm.lab.experiments.attention import mean_maps, shares_by_lag
from mesalm.lab.experiments.few_shot import base_net, continual_aided, few_shot
from mesalm.lab.experiments.softmax import plain_net
from mesalm.lab.findings_figure import draw_findings
from mesalm.lab.workbench import Workbench
from mesalm.settings import SettingsError

STUDIES = load_studies()
TINY: dict[str, Any] = {"size": 2, "length": 24, "test_rows": 32, "steps": 2, "batch": 4, "layers": 2}
OWN: dict[str, dict[str, Any]] = {
    "attention-maps-partial": {"hidden": 5, "width": 8},
    "few-shot-hybrid": {"tuning_steps": 2, "prefix": 2},
    "continual-aided": {"tuning_steps": 2, "prefix": 2},
}


def sizes_of(name: str) -> dict[str, Any]:
    sizes = STUDIES[name].sizes(load_claims(), "small")
    return {**sizes, **{key: value for key, value in TINY.items() if key in sizes}, **OWN.get(name, {})}


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if not study.changes])
def test_a_study_gives_numbers_and_a_figure(name: str, tmp_path: Path) -> None:
    findings = claim_table.load_table().experiment(name)(Workbench(0, tmp_path, quiet=True), sizes_of(name))
    assert all(math.isfinite(value) for value in (*findings.values.values(), *findings.controls.values()))
    assert draw_findings(findings, name).startswith("<svg")


def test_a_study_of_other_sizes_is_its_claims_experiment() -> None:
    claims = load_claims()
    for name, study in STUDIES.items():
        sizes, claimed = study.sizes(claims, "small"), claims[study.sizes_of].small
        changed = {key for key in sizes if sizes[key] != claimed.get(key)}
        assert changed == set(study.changes), name  # nothing changed to what it was
        if changed:
            assert claim_table.load_table().experiment(name) is claims[study.sizes_of].experiment
            with pytest.raises(SettingsError, match=f"lab run {study.sizes_of} --size paper"):
                study.sizes(claims, "paper")


def test_heads_are_a_size(tmp_path: Path) -> None:
    bench, task = Workbench(0, tmp_path, quiet=True), LinearDynamics(size=2, hidden=6, length=9)
    sizes = {**STUDIES["longer-binding-longer"].sizes(load_claims(), "small"), "steps": 1}
    net = bench.net(plain_net(bench, sizes, task, sizes["mixers"], 2))
    assert [(layer.mixer.heads, layer.mixer.head_dim) for layer in net.layers] == [(12, 16)] * 2


def test_maps_are_the_softmax_of_the_scores(tmp_path: Path) -> None:
    bench, task = Workbench(0, tmp_path, quiet=True), LinearDynamics(size=2, length=9)
    sizes = {"steps": 20, "batch": 16, "learning_rate": 1e-2}
    net = bench.net(plain_net(bench, sizes, task, ["softmax", "mesa"], 2))
    inputs = bench.batch(task, 300)["inputs"]  # more than one pass holds
    maps = mean_maps(net, inputs)
    mixer: Any = net.layers[0].mixer
    stream = net.embed(inputs)
    query, key = (project(stream).unflatten(-1, (mixer.heads, -1)).double() for project in (mixer.q_proj, mixer.k_proj))
    scores = torch.einsum("bthk,bshk->bhts", query, key) / mixer.head_dim**0.5
    future = torch.ones(9, 9, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(future, -math.inf).softmax(-1).mean(0)
    # the net works in float32
    torch.testing.assert_close(maps, expected, atol=2e-6, rtol=0)
    assert (expected - expected[:1]).abs().max() > 1e-4  # heads differ, so their order is seen


def test_shares_by_lag_by_hand() -> None:
    # each query looks at the token before it, the first at itself
    copying = torch.diag(torch.ones(7), -1)
    copying[0, 0] = 1.0
    assert shares_by_lag(copying).tolist() == [0, 1, 0, 0, 0, 0]
    alike = torch.ones(8, 8).tril() / torch.arange(1, 9).unsqueeze(-1)
    assert shares_by_lag(alike).tolist() == pytest.approx([(1 / 6 + 1 / 7 + 1 / 8) / 3] * 6)


def test_two_tasks_meet_the_vectors_that_one_task_tuned(tmp_path: Path) -> None:
    bench, sizes = Workbench(0, tmp_path, quiet=True), sizes_of("continual-aided")
    few_shot(bench, sizes)
    nets = sorted(path.name for path in tmp_path.iterdir())
    findings = continual_aided(bench, sizes)
    assert sorted(path.name for path in tmp_path.iterdir()) == nets  # none was trained
    assert bench.folder(base_net(bench, sizes)).name in nets
    # (24 - 2) / 3 pairs fit with separator and prefix
    assert {len(curve.y) for curve in findings.curves} == {7}
    for curve in findings.curves:
        assert findings.values[f"mean loss of the second task, {curve.label}"] == pytest.approx(sum(curve.y[2:]) / 5)
        switch = findings.values[f"loss at the switch over the loss before, {curve.label}"]
        assert switch == pytest.approx(curve.y[2] / curve.y[1])
        last = findings.values[f"last loss over the loss at the switch, {curve.label}"]
        assert last == pytest.approx(curve.y[6] / curve.y[2])


def test_a_claim_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: Workbench, sizes: dict[str, Any]) -> Findings:
        raise RuntimeError("no memory is left")

    monkeypatch.setattr("mesalm.lab.experiments.theory.gradient_step", broken)
    folders = ["--out", str(tmp_path), "--nets", str(tmp_path)]
    assert main(["lab", "run", "1", "2", "3", "--without", "batch-ridge", *folders]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["preconditioning-small.json"]
    shown = capsys.readouterr()
    assert "mesalm lab: gradient-step failed: no memory is left" in shown.err
    assert "Traceback" in shown.err  # no error of input
    assert "1 claim reproduced, 0 not reproduced, 1 failed (gradient-step)" in shown.out
    assert main(["lab", "run", "2", "--without", "2", *folders]) == 2
    assert "leaves nothing to run" in capsys.readouterr().err


def test_the_page_shows_what_has_no_result_and_the_studies(tmp_path: Path, claims_file: Any) -> None:
    table = claims_file("copy-layer", sizes_of("attention-maps"))
    found = claim_runs.run_claims(["attention-maps"], out=tmp_path, nets=tmp_path, quiet=True, file=table)
    assert found == {"attention-maps": True}
    page = write_page(tmp_path, file=table).read_text(encoding="utf-8")
    assert "20 not run" in page
    assert "Where does the first softmax layer look?" in page
    assert "share on the sub-diagonal" in page
    for name, claim in load_claims(table).items():
        assert f'id="{name}"' in page
        for criterion in claim.criteria:
            assert criterion.words() in page
    for variable in ("--ink", "--muted", "--grid", "--series-1"):
        assert page.count(f"{variable}:") == 2  # light and dark
        assert f"var({variable}" in page


def test_a_study_stands_beside_what_its_claim_asks_and_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claims_file: Any
) -> None:
    small = load_claims()["fixed-teacher"].small
    small = {**small, **{key: value for key, value in TINY.items() if key in small}, "learning_rate": 0.1}
    table = claims_file("fixed-teacher", small)
    study = STUDIES["fixed-teacher-longer"].model_copy(update={"changes": {"steps": 3}})
    monkeypatch.setattr(claim_table, "load_studies", lambda: {"fixed-teacher-longer": study})
    claim_runs.run_claims(["fixed-teacher-longer"], out=tmp_path, nets=tmp_path, quiet=True, file=table)
    alone = write_page(tmp_path, file=table).read_text(encoding="utf-8")
    assert "</a>, but steps 3</p>" in alone
    assert "in the claim's own run" not in alone
    claim_runs.run_claims(["fixed-teacher"], out=tmp_path, nets=tmp_path, quiet=True, file=table)
    page = write_page(tmp_path, file=table).read_text(encoding="utf-8")
    found = claim_runs.read_results(tmp_path, "small", table)
    quantity = "loss relative to the best gradient step"
    longer, claimed = (found[name].seeds[0].values[quantity] for name in ("fixed-teacher-longer", "fixed-teacher"))
    assert longer != claimed
    cells = [f"{longer:.4g}", f"{claimed:.4g}", "at most 0.3"]
    row = page[page.index(f"<td>{quantity}</td>", page.index("Beside the claims")) :].split("</tr>")[0]
    assert re.findall("<td[^>]*>([^<]*)</td>", row)[1:] == cells
