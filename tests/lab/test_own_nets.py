"""Nets and sequences of a user's own file: each has its own folder, though one file holds several."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from mesalm.data.stream import Batch
from mesalm.data.synthetic.vector_task import VectorTask, normal
from mesalm.journal import read_journal
from mesalm.lab.claim_runs import mean_quantities, read_results, run_claims
from mesalm.lab.claims import Findings
from mesalm.lab.claims_page import write_page
from mesalm.lab.plan import net_training, plan_experiments
from mesalm.lab.workbench import NetRecipe, Workbench, net_recipe
from mesalm.regressor.regressor_mesa import RegressionOutput, half_squared_error
from mesalm.settings import SettingsError

SIZES = {"steps": 20, "batch": 16, "learning_rate": 0.1}


class Repeated(VectorTask):
    sign: ClassVar[float] = 1.0

    @property
    def sequence_length(self) -> int:
        return 3

    def draw(self, rows: int, generator: torch.Generator) -> Batch:
        inputs = normal((rows, 3, self.size), 1.0, generator)
        return {"inputs": inputs, "targets": self.sign * inputs}


class Negated(Repeated):
    sign: ClassVar[float] = -1.0


class Straight(nn.Module):
    def __init__(self, input_size: int, width: int = 1):
        super().__init__()
        self.map = nn.Linear(input_size, input_size)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor | None = None) -> RegressionOutput:
        found = self.map(inputs)
        loss = None if targets is None else half_squared_error(found, targets)
        return RegressionOutput(loss=loss, predictions=found)


class Crooked(Straight):
    def forward(self, inputs: torch.Tensor, targets: torch.Tensor | None = None) -> RegressionOutput:
        return super().forward(inputs.square(), targets)


def own(task: VectorTask, net: Any, **more: Any) -> NetRecipe:
    return net_recipe(task, SIZES, 0, {}, net=net, **more)


def test_each_task_and_net_of_one_file_is_trained_for_itself(tmp_path: Path) -> None:
    bench = Workbench(0, tmp_path, quiet=True)
    same, other = (bench.net(own(task, Straight)) for task in (Repeated(size=1), Negated(size=1)))
    assert float(same.map.weight) > 0.5
    assert float(other.map.weight) < -0.5
    end = read_journal(bench.folder(own(Negated(size=1), Straight)) / "journal.jsonl")[-1]
    assert end["tokens"] == SIZES["steps"] * SIZES["batch"] * Negated(size=1).sequence_length
    recipes = [own(task, net) for task in (Repeated(size=1), Negated(size=1)) for net in (Straight, Crooked)]
    recipes += [own(Repeated(size=1), Straight, base=base) for base in recipes[:2]]
    assert len({recipe.key() for recipe in recipes}) == 6
    assert len({net_training(recipe, tmp_path, "cpu").kind for recipe in recipes}) == 6


def test_a_net_without_a_name_is_refused() -> None:
    with pytest.raises(SettingsError, match="cannot be told from another"):
        own(Repeated(size=1), lambda input_size: Straight(input_size)).key()


def untrained_sizes(bench: Workbench, sizes: dict[str, Any]) -> Findings:
    bench.net(own(Repeated(size=sizes["size"]), Straight))
    return Findings({"q": 1.0})


def test_a_plan_counts_nets_of_experiments_whose_sizes_name_no_steps(tmp_path: Path) -> None:
    plan = plan_experiments([("own", untrained_sizes, {"size": 1})], [0, 1], tmp_path, "cpu")
    assert len(plan.claims["own"]) == 1  # the recipe has one seed
    assert "20" in plan.lines()[1]


def test_sizes_of_ones_own_are_known_again_in_their_result(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from mesalm.lab.claims import Findings\n"
        "CRITERIA = [{'quantity': 'q', 'above': 0}]\n"
        "CLAIMS = {'a': {'claim': 'x', 'criteria': CRITERIA, 'small': {'rates': (0.1, 0.2)}}}\n"
        "EXPERIMENTS = {'a': lambda bench, sizes: Findings({'q': sum(sizes['rates'])})}\n"
    )
    assert run_claims(["all"], out=tmp_path, nets=tmp_path, file=file) == {"a": True}
    assert list(read_results(tmp_path, "small", file)) == ["a"]
    assert run_claims(["all"], out=tmp_path, nets=tmp_path, file=file, missing=True) == {}
    file.write_text(file.read_text().replace("Findings({'q': sum", "Findings({'q': -sum"))
    assert run_claims(["all"], out=tmp_path, nets=tmp_path, file=file, missing=True) == {"a": False}
    file.write_text(file.read_text().replace("(0.1, 0.2)", "{1, 2}"))
    with pytest.raises(SettingsError, match="small: must be numbers, text, lists"):
        run_claims(["all"], out=tmp_path, nets=tmp_path, file=file)


def test_a_changed_file_needs_a_new_result(tmp_path: Path) -> None:
    """Its criteria and sizes may be the same and the experiment another."""
    file = tmp_path / "own.py"
    file.write_text(
        "import torch\n"
        "from mesalm.lab.claims import Findings\n"
        "CRITERIA = [{'quantity': 'q', 'at_least': 0.98}]\n"
        "CLAIMS = {'a': {'claim': 'x', 'criteria': CRITERIA, 'small': {'n': 1}}}\n"
        "EXPERIMENTS = {'a': lambda bench, sizes: Findings({'q': torch.tensor(0.97999995)})}\n"
    )
    where = {"out": tmp_path, "nets": tmp_path, "file": file}
    assert run_claims(["a"], **where) == {"a": True}  # of the rounded value, by which the page judges too
    assert "1 claim reproduced" in write_page(tmp_path, file=file).read_text(encoding="utf-8")
    file.write_text(file.read_text().replace("0.97999995", "0.5"))
    with pytest.raises(SettingsError, match="other criteria, sizes or code"):
        read_results(tmp_path, "small", file)
    assert run_claims(["a"], missing=True, **where) == {"a": False}
    file.write_text(file.read_text().replace("'a':", "'depth':"))
    with pytest.raises(SettingsError, match="depth is a claim of the paper"):
        run_claims(["all"], **where)


def test_a_control_that_names_its_seed_is_shown_beside_those_of_other_seeds() -> None:
    found = [Findings({"q": 1.0}, {"loss, seed 0": 2.0}), Findings({"q": 3.0}, {"loss, seed 1": 4.0})]
    assert mean_quantities(found) == {"q": 2.0, "loss, seed 0": 2.0, "loss, seed 1": 4.0}
