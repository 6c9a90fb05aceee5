"""The claims: criteria decide, the fastest are reproduced here, results come back as they were written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import NARROW
from torch import nn

from mesalm.cli import main
from mesalm.data.synthetic import drawn_stream
from mesalm.data.synthetic.context_regression import ContextRegression
from mesalm.data.synthetic.drawn_stream import step_generator
from mesalm.data.synthetic.linear_dynamics import LinearDynamics
from mesalm.journal import read_journal
from mesalm.lab import claim_runs
from mesalm.lab.claim_table import ClaimTable
from mesalm.lab.claims import Claim, Criterion, Findings, judge, load_claims
from mesalm.lab.claims_page import STORY, room, write_page
from mesalm.lab.experiments import theory
from mesalm.lab.experiments.controls import shuffled
from mesalm.lab.experiments.linear import late_upturn
from mesalm.lab.workbench import NetRecipe, Workbench, net_recipe
from mesalm.settings import SettingsError
from mesalm.train import training
from mesalm.train.loop import Outcome, Stream
from mesalm.train.training import RunSettings

CLAIMS = load_claims()
TINY = {"steps": 4, "batch": 8, "learning_rate": 1e-2}


def recipe(seed: int = 0, **changes: object) -> NetRecipe:
    return net_recipe(LinearDynamics(size=2, length=5), {**TINY, **changes}, seed, NARROW)


def test_there_are_twenty_claims() -> None:
    first = [claim for claim in CLAIMS.values() if claim.version == 1]
    assert [claim.number for claim in first] == list(range(1, 21))
    assert all(set(claim.small) == set(claim.paper) for claim in CLAIMS.values())


LEFT_OUT = {"nonlinear-v2": {"R2 of the features after the first MLP"}}
"""Criteria that a new version does not keep. Claim 20: the authors probe the features before they are scaled to unit
length. That is another quantity; the scaled features would have failed in version 2 as well (docs/results/lab.md)."""


@pytest.mark.parametrize("name", [name for name, claim in CLAIMS.items() if claim.version > 1])
def test_a_new_version_says_why_and_is_no_weaker(name: str) -> None:
    new = CLAIMS[name]
    (old,) = (claim for claim in CLAIMS.values() if (claim.number, claim.version) == (new.number, new.version - 1))
    assert new.why
    assert (new.claim, new.source) == (old.claim, old.source)
    bounds = {criterion.quantity: criterion for criterion in new.criteria}
    missing = {criterion.quantity for criterion in old.criteria} - bounds.keys()
    assert missing == LEFT_OUT.get(name, set())
    assert all(f"replaces '{quantity}'" in new.why for quantity in missing)
    for criterion in old.criteria:
        if criterion.quantity in missing:
            continue
        ours = bounds[criterion.quantity]
        for least in ("at_least", "above"):
            assert getattr(criterion, least) is None or getattr(ours, least) >= getattr(criterion, least)
        for largest in ("at_most", "below"):
            assert getattr(criterion, largest) is None or getattr(ours, largest) <= getattr(criterion, largest)
    assert (new.criteria, new.small) != (old.criteria, old.small)


def test_noise_is_no_upturn() -> None:
    (criterion,) = (each for each in CLAIMS["one-layer-v2"].criteria if each.quantity == "late upturn of the net")
    assert not criterion.holds(late_upturn(torch.tensor([3.0, 2.0, 1.0, 1.02])))


def test_starts_and_sequences_of_the_gradient_step_are_drawn_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[ModuleType, list[int]] = {drawn_stream: [], theory: []}  # sequences, starts

    def recorded(module: ModuleType) -> Callable[..., torch.Generator]:
        def generator(*arguments: Any) -> torch.Generator:
            made = step_generator(*arguments)
            drawn[module].append(made.initial_seed())
            return made

        return generator

    for module in drawn:
        monkeypatch.setattr(module, "step_generator", recorded(module))
    theory.gradient_step(Workbench(0, tmp_path, quiet=True), CLAIMS["gradient-step"].sizes("small"))
    sequences, starts = map(set, drawn.values())
    assert (len(sequences), len(starts)) == (1, 3)
    assert not sequences & starts


@pytest.mark.parametrize("name", ["gradient-step", "preconditioning", "batch-ridge", "mesa-gradients"])
def test_the_claims_of_theory_are_reproduced(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claim_runs.run_claims([name], out=tmp_path, nets=tmp_path) == {name: True}
    assert "NOT" not in capsys.readouterr().out


def test_the_curse_of_dimension_is_reproduced(tmp_path: Path, claims_file: Any) -> None:
    table = claims_file("dimension-curse", {"sizes": [4, 40], "rows": 48, "ridge": 1e-3})
    assert claim_runs.run_claims(["14"], out=tmp_path, nets=tmp_path, file=table) == {"dimension-curse": True}


@pytest.mark.slow
def test_a_trained_layer_is_a_gradient_step(tmp_path: Path) -> None:
    verdicts = claim_runs.run_claims(["one-layer", "interpolation"], out=tmp_path, nets=tmp_path, quiet=True)
    assert verdicts["interpolation"]
    (findings,) = claim_runs.read_results(tmp_path, "small")["one-layer"].seeds
    missed = {ruling.criterion.quantity for ruling in judge(CLAIMS["one-layer"], [findings.values]) if not ruling.holds}
    # the weights' form is short of its criterion at this size (docs/results/lab.md); what the layer computes is not
    assert missed <= {"mass on block diagonals"}


@pytest.mark.parametrize(
    ("bounds", "kept", "missed"),
    [
        ({"at_most": 1.0}, 1.0, 1.1),
        ({"below": 1.0}, 0.9, 1.0),
        ({"at_least": 1.0}, 1.0, 0.9),
        ({"above": 1.0}, 1.1, 1.0),
        ({"at_least": 1.0, "at_most": 2.0}, 1.5, 2.5),
        ({"at_most": 1.0}, 0.0, math.nan),
        ({"at_least": 1.0}, 1.0, math.inf),
        ({"below": 1.0}, 0.0, -math.inf),
    ],
)
def test_a_criterion_decides(bounds: dict[str, float], kept: float, missed: float) -> None:
    criterion = Criterion(quantity="x", **bounds)
    assert criterion.holds(kept)
    assert not criterion.holds(missed)
    assert not room(criterion, missed) > 0


def test_the_mean_over_seeds_is_judged() -> None:
    claim = CLAIMS["fixed-teacher"]
    (quantity,) = (criterion.quantity for criterion in claim.criteria)
    (ruling,) = judge(claim, [{quantity: 0.1}, {quantity: 0.4}])
    assert (ruling.holds, ruling.mean, ruling.least, ruling.largest) == (True, 0.25, 0.1, 0.4)
    (ruling,) = judge(claim, [{quantity: 0.1}, {quantity: 0.6}])
    assert not ruling.holds
    with pytest.raises(SettingsError, match="only another"):
        judge(claim, [{"another": 0.1}])


def test_names_numbers_and_all_choose_claims() -> None:
    table = ClaimTable("", CLAIMS)
    assert table.chosen(["5", "gradient-step", "5"]) == ["gradient-step", "one-layer", "one-layer-v2"]
    assert table.chosen(["all"]) == list(CLAIMS)
    with pytest.raises(SettingsError, match="did you mean 'one-layer'"):
        table.chosen(["one-layr"])


def test_a_net_is_trained_once_and_found_again(tmp_path: Path) -> None:
    bench = Workbench(0, tmp_path, quiet=True)
    first = bench.net(recipe())
    assert recipe().key() != recipe(seed=1).key() != recipe(steps=5).key()

    def refused(*_: object, **__: object) -> Outcome:
        raise AssertionError("trained a second time")

    bench = Workbench(0, tmp_path, quiet=True, train=refused)
    again = bench.net(recipe())
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert [step for step, _ in bench.stages(recipe())] == [1, 2, 3, 4]
    assert torch.equal(bench.stages(recipe())[-1][1].output_map.weight, first.output_map.weight)
    assert not (tmp_path / recipe(seed=1).key()).exists()


def test_an_interrupted_training_goes_on_to_the_same_net(tmp_path: Path) -> None:
    whole = Workbench(0, tmp_path / "whole", quiet=True).net(recipe(steps=6))

    def broken(model: nn.Module, stream: Stream, settings: RunSettings, *rest: Any, **options: Any) -> Outcome:
        training.run(model, stream, replace(settings, steps=3), *rest, **options)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Workbench(0, tmp_path / "parts", quiet=True, train=broken).net(recipe(steps=6))
    bench = Workbench(0, tmp_path / "parts", quiet=True)
    resumed = bench.net(recipe(steps=6))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)
    steps = [line["step"] for line in read_journal(bench.folder(recipe(steps=6)) / "journal.jsonl") if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_learned_vectors_are_trained_and_all_else_stays(tmp_path: Path) -> None:
    bench = Workbench(0, tmp_path, quiet=True)
    base = recipe()
    model = {**base.model, "learned_vectors": 1}
    separator = net_recipe(ContextRegression(size=2, pairs=3, separator=True), TINY, 0, model, base=base)
    model = {**base.model, "learned_vectors": 3}
    prefixed = ContextRegression(size=2, pairs=3, separator=True, prefix=2)
    prefix = net_recipe(prefixed, TINY, 0, model, base=separator, weight_decay=0.0)
    nets = [bench.net(each) for each in (base, separator, prefix)]
    for name, tensor in nets[0].state_dict().items():
        assert all(torch.equal(net.state_dict()[name], tensor) for net in nets)
    assert torch.equal(nets[2].learned[:1], nets[1].learned)
    assert nets[2].learned[1:].abs().min() > 0


def test_shuffled_weights_are_the_same_numbers_elsewhere(tmp_path: Path) -> None:
    net = Workbench(0, tmp_path, quiet=True).net(recipe())
    other = shuffled(net, 0)
    for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours.flatten().sort().values, theirs.flatten().sort().values)
    assert not torch.equal(other.output_map.weight, net.output_map.weight)


def test_results_come_back_and_make_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path)]
    assert (
        main(["lab", "run", "gradient-step", "batch-ridge", "--seeds", "2", "--nets", str(tmp_path), *arguments]) == 0
    )
    found = claim_runs.read_results(tmp_path, "small")
    assert {name: len(each.seeds) for name, each in found.items()} == {"gradient-step": 2, "batch-ridge": 2}
    assert isinstance(found["batch-ridge"].seeds[0], Findings)
    assert main(["lab", "report", *arguments]) == 0
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert "2 claims reproduced, 0 not, 18 not run" in page
    assert page.count('title="reproduced with seed 1 alone"') == 4  # in the summary and beside the claim
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert page.count("<svg") == 2
    assert "mathdefault" not in page
    capsys.readouterr()


def test_the_page_tells_the_papers_story_and_the_newest_version_that_was_run_decides(tmp_path: Path) -> None:
    order = [number for _, numbers in STORY for number in numbers]
    assert sorted(order) == list(range(1, 21))
    for name, seeds in (("fixed-teacher", [0.9, 0.1]), ("dimension-curse", [1.0])):
        quantities = [criterion.quantity for criterion in CLAIMS[name].criteria]
        content = {
            "criteria": [criterion.model_dump(exclude_none=True) for criterion in CLAIMS[name].criteria],
            "sizes": CLAIMS[name].small,
            "first_seed": 3,
            "seeds": [asdict(Findings(dict.fromkeys(quantities, value))) for value in seeds],
        }
        (tmp_path / f"{name}-small.json").write_text(json.dumps(content), encoding="utf-8")
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert "0 claims reproduced, 2 not, 18 not run" in page
    shown = [int(each) for each in re.findall(r"<h2>(\d+)\. ", page)]
    assert shown == order
    assert [page.index(f">{title}</h1>") for title, _ in STORY] == sorted(page.index(f">{t}</h1>") for t, _ in STORY)
    marks = re.findall(r'title="([a-z ]+) with seed (\d) alone"', page)
    assert marks[:2] == [("not reproduced", "3"), ("reproduced", "4")]  # though the mean over both is not
    assert "<code>mesalm lab run fixed-teacher --seeds 2 --first-seed 3</code>" in page
    assert "<code>mesalm lab run dimension-curse --first-seed 3</code>" in page
    assert "<code>fixed-teacher-v2</code> has not been run. Version 2: There were too few steps" in page


def test_a_value_that_is_no_number_is_the_closest_criterion(tmp_path: Path) -> None:
    claim = CLAIMS["preconditioning"]
    first, *others = (criterion.quantity for criterion in claim.criteria)
    values = {first: 0.0, **dict.fromkeys(others, float("nan"))}
    content = {
        "criteria": [criterion.model_dump(exclude_none=True) for criterion in claim.criteria],
        "sizes": claim.small,
        "first_seed": 0,
        "seeds": [asdict(Findings(values))],
    }
    (tmp_path / "preconditioning-small.json").write_text(json.dumps(content), encoding="utf-8")
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert "0 claims reproduced, 1 not, 19 not run" in page
    assert '<td class="number">nan, below 1</td>' in page


def test_results_of_other_criteria_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim_runs.run_claims(["gradient-step"], out=tmp_path, nets=tmp_path)
    path = tmp_path / "gradient-step-small.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["criteria"][0]["at_most"] = 1.0
    path.write_text(json.dumps(content), encoding="utf-8")
    assert main(["lab", "report", "--out", str(tmp_path)]) == 2
    assert "run `mesalm lab run gradient-step` again" in capsys.readouterr().err


def test_commands_that_are_shown_make_the_result_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "my claims.py"
    command = claim_runs.run_command("angle", "paper", 2, 3, own)
    assert command == f"mesalm lab run '{own}' angle --size paper --seeds 3 --first-seed 2"
    assert claim_runs.run_command("depth") == "mesalm lab run depth"
    claim_runs.run_claims(["gradient-step"], "small", 2, out=tmp_path, nets=tmp_path)
    stored = (tmp_path / "gradient-step-small.json").read_text(encoding="utf-8")
    (tmp_path / "gradient-step-paper.json").write_text(stored, encoding="utf-8")
    assert main(["lab", "report", "--size", "paper", "--out", str(tmp_path)]) == 2
    assert "run `mesalm lab run gradient-step --size paper --seeds 2` again" in capsys.readouterr().err


def test_the_list_names_every_claim(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in CLAIMS)


def test_published_lines_are_laid_beside_runs_of_their_sizes_alone(tmp_path: Path, claims_file: Any) -> None:
    assert CLAIMS["one-layer-v2"].curves_beside("small")  # size 10, 50 positions
    assert not CLAIMS["one-layer"].curves_beside("small")  # size 4
    for claim in CLAIMS.values():
        for line in claim.published_curves:
            assert len(line.x) == len(line.y)
            assert set(line.where) <= set(claim.paper)
        for quantity, value in claim.published.items():
            # what the authors found keeps the criteria that we made of it
            assert all(each.holds(value) for each in claim.criteria if each.quantity == quantity)
    table = claims_file("dimension-curse", {"sizes": [4, 40], "rows": 8, "ridge": 1e-3})
    claim_runs.run_claims(["dimension-curse"], out=tmp_path, nets=tmp_path, file=table)
    page = write_page(tmp_path, file=table).read_text(encoding="utf-8")
    assert "published: kernel regression" in page
    assert '<td class="number">4.66</td>' in page


def test_a_published_number_is_of_a_criterion() -> None:
    entry = {"number": 1, "claim": "c", "experiment": len, "criteria": [{"quantity": "x", "above": 0}], "small": {}}
    with pytest.raises(SettingsError, match="'y' is not a quantity of the criteria"):
        Claim.build({**entry, "published": {"y": 1}}, "own")


def test_seeds_begin_where_they_are_told_to(tmp_path: Path) -> None:
    for first, seeds in ((1, 2), (2, 1)):
        folder = tmp_path / str(first)
        claim_runs.run_claims(["batch-ridge"], seeds=seeds, first_seed=first, out=folder, nets=tmp_path)
    both, last = (json.loads((tmp_path / name / "batch-ridge-small.json").read_text()) for name in ("1", "2"))
    assert (both["first_seed"], last["first_seed"]) == (1, 2)
    assert both["seeds"][1] == last["seeds"][0] != both["seeds"][0]


@pytest.mark.parametrize(
    ("bound", "returned", "said"),
    [
        ("", 'Findings({"q": 1.0})', "q: has no bound, so it always holds"),
        (', "at_least": 1', 'Findings({"other": 1.0})', "returned no quantity 'q', only other"),
        (', "at_least": 1', '{"q": 1.0}', "must return Findings, not dict"),
    ],
)
def test_a_claim_of_ones_own_that_cannot_be_judged_leaves_no_result(
    bound: str, returned: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from mesalm.lab.claims import Findings\n"
        f'CLAIMS = {{"a": {{"claim": "x", "criteria": [{{"quantity": "q"{bound}}}], "small": {{"n": 1}}}}}}\n'
        f'EXPERIMENTS = {{"a": lambda bench, sizes: {returned}}}\n'
    )
    assert main(["lab", "run", str(file), "--nets", str(tmp_path / "nets"), "--out", str(tmp_path / "out")]) > 0
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))


def test_a_claim_of_another_file_does_not_replace_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("one", 1), ("other", 2)):
        (tmp_path / f"{name}.py").write_text(
            "from mesalm.lab.claims import Findings\n"
            'CLAIMS = {"a": {"claim": "x", "criteria": [{"quantity": "q", "at_least": 1}], "small": {"n": 1}}}\n'
            f'EXPERIMENTS = {{"a": lambda bench, sizes: Findings({{"q": {value}.0}})}}\n'
        )
    run = ["lab", "run", "--nets", str(tmp_path / "nets"), "--out", str(tmp_path / "out")]
    assert main([*run, str(tmp_path / "one.py")]) == 0
    assert main([*run, str(tmp_path / "other.py")]) == 2
    assert f"holds the result of a claim of this name in {tmp_path / 'one.py'}; rename" in capsys.readouterr().err
    (tmp_path / "one.py").write_text((tmp_path / "other.py").read_text())
    assert main([*run, str(tmp_path / "one.py")]) == 0
    assert claim_runs.read_result(tmp_path / "out/a-small.json").seeds[0].values == {"q": 2.0}
