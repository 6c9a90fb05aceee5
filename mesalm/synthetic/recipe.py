"""Recipes of models trained from scratch on synthetic tasks: arms by grid by learning rate by seed."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from mesalm.data.synthetic.automata import Automata
from mesalm.data.synthetic.tasks import TASKS, SyntheticTask
from mesalm.data.synthetic.vector_task import VectorTask
from mesalm.files import expanded
from mesalm.recipe_yaml import read_mapping, write_yaml
from mesalm.regressor.configuration_regressor import RegressorConfig
from mesalm.settings import LARGEST_SEED, Settings, SettingsError, help_lines, one_of
from mesalm.train.optim import OptimSettings
from mesalm.train.overrides import apply_overrides, parse_override
from mesalm.train.recipe import FolderName, ModelFields, check_model_fields, find_recipe
from mesalm.train.run_folder import decisive
from mesalm.train.schedule import ScheduleSettings, check_warmup
from mesalm.train.sections import CheckpointSettings, TrainSettings

KIND = "synth"
"""The folder of these recipes under recipes/."""


class ScoreSettings(Settings):
    """How a model is scored during training and at the end."""

    valid_rows: int = Field(default=256, gt=0, description="Validation rows, for early stopping and choosing rates.")
    test_rows: int = Field(default=1_280, gt=0, description="Test rows, used only for the final score.")
    longer: list[Annotated[int, Field(gt=1)]] = Field(
        default_factory=list,
        description="Multiples of the training length at which the model is also tested, with proportionally fewer "
        "rows, at least 32; tasks of tokens whose rows fill any length.",
    )
    every: int = Field(default=100, gt=0, description="Steps between scorings of the validation rows.")
    enough: float | None = Field(
        default=None, description="Score on the validation rows at which training stops early; none: never."
    )
    batch_rows: int = Field(default=64, gt=0, description="Rows per scoring batch.")
    seed: int = Field(
        default=0, ge=0, le=LARGEST_SEED, description="Seed of validation and test rows, the same for all models."
    )


class TaskRun(Settings):
    """The settings of a training run, without learning rate and seed."""

    task: dict[str, Any] = Field(description="The task: its name and its own settings (see below).")
    model: ModelFields = Field(default_factory=dict, description="Fields of the model's configuration.")
    optim: OptimSettings = Field(default_factory=OptimSettings, description="Optimiser.")
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings, description="Learning rate.")
    train: TrainSettings = Field(description="Length, batch sizes and precision.")
    score: ScoreSettings = Field(default_factory=ScoreSettings, description="Scoring.")
    checkpoint: CheckpointSettings = Field(
        default_factory=CheckpointSettings, description="Checkpoints, kept until a run has ended."
    )

    @field_validator("train")
    @classmethod
    def _precision_is_known(cls, train: TrainSettings) -> TrainSettings:
        # it names the run's folder, so it cannot be left to a launcher
        return train.model_copy(update={"precision": "fp32"}) if train.precision == "auto" else train

    def _check(self) -> None:
        if self.train.steps is None:
            raise ValueError("train.steps: must be given, because these runs are counted in steps, not tokens")
        rows, micro_rows = self.train.batch_rows, self.train.micro_rows
        if micro_rows and rows % micro_rows:
            raise ValueError(
                f"train.batch_rows: {rows} must be a multiple of train.micro_rows {micro_rows}; change one of the two"
            )
        names = ("average", "z_loss", "ramp_tokens", "gradient_checkpointing", "workers")
        for section, name in (*(("train", name) for name in names), ("optim", "base_width")):
            if getattr(getattr(self, section), name):
                raise ValueError(f"{section}.{name}: is for runs of language models only; leave it out")
        check_warmup(self.schedule, self.train.steps)

    def build_task(self) -> SyntheticTask:
        """Return the task's own settings. Raises SettingsError, one line."""
        fields = dict(self.task)
        try:
            name = one_of(fields.pop("name", None), TASKS, "a synthetic task")
        except ValueError as error:
            raise SettingsError(f"task.name: {error}") from None
        try:
            return TASKS[name].build(fields, "task")
        except SettingsError as error:
            raise SettingsError(f"{error} (task.name: {name})") from None


class SyntheticRecipe(TaskRun):
    """A grid of runs: every arm at every point of the grid, its best learning rate, several seeds."""

    name: FolderName = Field(description="Name of the grid; its folder is <output_dir>/<name>.")
    output_dir: str = Field(default="runs", description="Folder that holds the grid's folder.")
    arms: dict[str, dict[str, Any]] = Field(
        description="Variants to compare with the first one: name -> {dotted key: value}."
    )
    grid: dict[str, list[Any] | dict[str, dict[str, Any]]] = Field(
        default_factory=dict,
        description="Axes: a dotted key -> its values, or any name -> {what a value is called: {dotted key: value}}.",
    )
    learning_rates: list[Annotated[float, Field(gt=0)]] = Field(
        default_factory=list,
        description="Rates to try; the one that is best on the validation rows is used. Empty: that of optim.",
    )
    seeds: list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field(
        default_factory=lambda: [0], description="Seeds of weights, training rows and order."
    )
    sweep_seeds: int = Field(
        default=1, gt=0, description="Number of seeds that run at every rate; the others run only at the best rate."
    )

    def _check(self) -> None:
        super()._check()
        for key in ("arms", "seeds"):
            if not getattr(self, key):
                raise ValueError(f"{key}: is empty; name at least one")
        for axis, values in self.grid.items():
            if not values:
                raise ValueError(f"grid.{axis}: is empty; name at least one value")
            if len({value.label for value in _axis_values(axis, values)}) < len(values):
                raise ValueError(f"grid.{axis}: names a value twice")
        for arm in self.arms:
            if "/" in arm:
                raise ValueError(f"arms.{arm}: names a folder, so it cannot contain /")
        for key in ("seeds", "learning_rates"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key}: names a value twice")

    @property
    def folder(self) -> Path:
        """Return the grid's folder, <output_dir>/<name>."""
        return expanded(self.output_dir) / self.name

    def rates(self, setting: Setting) -> list[float]:
        """Return the learning rates to try for an arm at a point of the grid."""
        return self.learning_rates or [setting.run.optim.learning_rate]

    def to_yaml(self) -> str:
        """Return the recipe with all defaults written out; reading it gives an equal recipe."""
        return write_yaml(self.model_dump(mode="json"))

    def settings(self) -> list[Setting]:
        """Return every arm at every point of the grid, arms innermost. Raises SettingsError, one line."""
        base = {name: value for name, value in self.model_dump(mode="json").items() if name in TaskRun.model_fields}
        found = []
        for point in itertools.product(*(_axis_values(axis, values) for axis, values in self.grid.items())):
            for arm, changes in self.arms.items():
                data = copy.deepcopy(base)
                for value in point:
                    apply_overrides(data, value.changes.items(), TaskRun)
                apply_overrides(data, changes.items(), TaskRun)
                where = ", ".join([arm, *(f"{value.axis} {value.label}" for value in point)])
                try:
                    run = TaskRun.build(data)
                    task = run.build_task()
                    if self.learning_rates and run.optim.learning_rate != self.optim.learning_rate:
                        raise SettingsError(
                            "optim.learning_rate: learning_rates lists the rates to try; leave one of the two out"
                        )
                    # a longer row of automata holds no more strings, only padding
                    if run.score.longer and (isinstance(task, (VectorTask, Automata)) or task.reads_last_state):
                        raise SettingsError(
                            f"score.longer: {run.task['name']} is not tested at other lengths; leave it out"
                        )
                    if isinstance(task, VectorTask):
                        check_model_fields({"input_size": task.input_size, **run.model}, RegressorConfig)
                    else:
                        check_model_fields(run.model)
                except SettingsError as error:
                    raise SettingsError(f"{where}: {error}") from None
                found.append(Setting(arm, {value.axis: value.label for value in point}, run))
        return found


@dataclass(frozen=True)
class AxisValue:
    """One value of an axis: its label and the settings it changes."""

    axis: str
    label: str
    changes: dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One arm at one point of the grid (axis -> label of its value)."""

    arm: str
    point: dict[str, str]
    run: TaskRun

    @property
    def title(self) -> str:
        """Return arm and point in words."""
        return " ".join([self.arm, *(f"{_short(axis)} {label}" for axis, label in self.point.items())])


@dataclass(frozen=True)
class Cell:
    """One run of the grid: a setting at a learning rate with a seed."""

    setting: Setting
    rate: float
    seed: int

    @property
    def title(self) -> str:
        """Return the run in words."""
        return f"{self.setting.title}, rate {self.rate:g}, seed {self.seed}"

    @property
    def folder_name(self) -> str:
        """Return a name with a hash of everything that affects what the run computes."""
        content = {**self.setting.run.model_dump(mode="json"), "rate": self.rate, "seed": self.seed}
        content["optim"].pop("learning_rate")
        digest = hashlib.sha256(json.dumps(decisive(content), sort_keys=True, default=str).encode()).hexdigest()
        return f"{self.setting.arm}-s{self.seed}-{digest[:12]}"


def load_synthetic_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> SyntheticRecipe:
    """Read a recipe, given by the path of a file or the name of a packaged recipe, and check every run of it.

    ``overrides`` are ``dotted.key=YAML value``. Raises SettingsError with one line.
    """
    path = find_recipe(name_or_path, KIND)
    data = read_mapping(path)
    changes = [parse_override(text) for text in overrides]
    apply_overrides(data, changes, SyntheticRecipe)
    recipe = SyntheticRecipe.build(data)
    for key, _ in changes:
        _refuse_overridden(recipe, key)
    recipe.settings()
    return recipe


def _refuse_overridden(recipe: SyntheticRecipe, key: str) -> None:
    """Raise SettingsError for a key that has no effect because an axis of the grid or an arm overrides it."""
    for axis, values in recipe.grid.items():
        if any(_overlap(key, changed) for value in _axis_values(axis, values) for changed in value.changes):
            raise SettingsError(f"{key}: the grid's axis {axis!r} sets it; set grid.{axis}, or grid={{}} for no grid")
    for arm, own in recipe.arms.items():
        for changed in own:
            if _overlap(key, changed):
                raise SettingsError(f"{key}: the arm {arm!r} sets {changed}; set arms.{arm}.{changed} instead")
    if key == "optim.learning_rate" and recipe.learning_rates:
        raise SettingsError(f"{key}: learning_rates lists the rates to try; set learning_rates, or learning_rates=[]")


def _overlap(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


def synthetic_help() -> str:
    """Return a line for every setting of a recipe and of every task: dotted key, type, default and meaning."""
    rows = SyntheticRecipe.describe()
    for name, task in TASKS.items():
        own = [row for row in task.describe() if row[0] != "name"]
        rows += [(f"task.{key} [{name}]", kind, default, description) for key, kind, default, description in own]
    return help_lines(rows)


def planned_cells(recipe: SyntheticRecipe, results: Mapping[str, Mapping[str, Any]]) -> Iterator[Cell]:
    """Yield the runs that can be made now, including finished ones.

    ``results`` are the existing ones, by the cells' folder names. The seeds after the first ``sweep_seeds`` wait until
    their setting's best rate is known.
    """
    for setting in recipe.settings():
        sweep = [
            Cell(setting, rate, seed) for seed in recipe.seeds[: recipe.sweep_seeds] for rate in recipe.rates(setting)
        ]
        yield from sweep
        if all(cell.folder_name in results for cell in sweep):
            best = best_rate((cell.rate, results[cell.folder_name]) for cell in sweep)
            yield from (Cell(setting, best, seed) for seed in recipe.seeds[recipe.sweep_seeds :])


def planned_count(recipe: SyntheticRecipe) -> int:
    """Return how many runs the whole grid has."""
    swept = len(recipe.seeds[: recipe.sweep_seeds])
    rates = len(recipe.learning_rates) or 1
    return len(recipe.settings()) * (swept * rates + len(recipe.seeds) - swept)


def best_rate(swept: Iterable[tuple[float, Mapping[str, Any]]]) -> float:
    """Return the rate with the best mean validation score; ties go to fewer steps, then to the lower rate.

    A diverged run (``valid`` is None) excludes its rate; if that excludes all rates, the lowest rate is returned.
    """
    by_rate: dict[float, list[Mapping[str, Any]]] = {}
    for rate, result in swept:
        by_rate.setdefault(rate, []).append(result)
    whole = {rate: runs for rate, runs in by_rate.items() if all(run["valid"] is not None for run in runs)}
    if not whole:
        return min(by_rate)

    def rank(rate: float) -> tuple[float, float, float]:
        runs = whole[rate]
        sign = 1 if runs[0]["better"] == "lower" else -1
        return sign * sum(run["valid"] for run in runs) / len(runs), sum(run["steps"] for run in runs), rate

    return min(whole, key=rank)


def _axis_values(axis: str, values: list[Any] | dict[str, dict[str, Any]]) -> list[AxisValue]:
    if isinstance(values, dict):
        return [AxisValue(axis, label, changes) for label, changes in values.items()]
    return [AxisValue(axis, str(value), {axis: value}) for value in values]


def _short(axis: str) -> str:
    return axis.rpartition(".")[2]
