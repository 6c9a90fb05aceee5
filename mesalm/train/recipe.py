"""Recipes: all settings of a training run in one typed and validated tree."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic
from huggingface_hub.errors import StrictDataclassError
from pydantic import Field

import mesalm
from mesalm.data.data_settings import DataSettings
from mesalm.data.stream import RowRamp
from mesalm.files import expanded, import_file
from mesalm.model.configuration_mesa import MesaConfig
from mesalm.recipe_yaml import read_mapping, write_yaml
from mesalm.settings import LARGEST_SEED, Settings, SettingsError, hint, known, unknown_key, without_none_words
from mesalm.train.optim import OptimSettings
from mesalm.train.overrides import apply_overrides, parse_override
from mesalm.train.schedule import ScheduleSettings, check_warmup
from mesalm.train.sections import (
    TRACKERS,
    CheckpointSettings,
    EvaluateSettings,
    ParallelismSettings,
    SampleSettings,
    TrainSettings,
    UploadSettings,
    ValidateSettings,
)
from mesalm.wording import plural

NOT_MODEL_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Fields of the model's configuration that the run fills in from the tokenizer."""


def _without_none_words(model: Any) -> Any:
    return {name: without_none_words(value) for name, value in model.items()} if isinstance(model, dict) else model


ModelFields = Annotated[dict[str, Any], pydantic.BeforeValidator(_without_none_words)]
"""Fields of a model's configuration, in which ``none`` means no value, as in all settings."""


def folder_name(name: str) -> str:
    """Return the name if it can name a folder; raise ValueError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"must be letters, digits and . _ - only, because it names a folder, not {name!r}")
    return name


def _imported(file: str) -> str:
    import_file(expanded(file))
    return file


FolderName = Annotated[str, pydantic.AfterValidator(folder_name)]

# pydantic's deprecated BaseModel.validate is not used here, and `validate` is the word recipes use.
warnings.filterwarnings("ignore", message='Field name "validate"', category=UserWarning)


class Recipe(Settings):
    """One training run."""

    name: FolderName = Field(description="Name of the run; its folder is <output_dir>/<name>.")
    seed: int = Field(
        default=0, ge=0, le=LARGEST_SEED, description="Seed of initial weights, data order, dropout and samples."
    )
    output_dir: str = Field(default="runs", description="Folder that holds the run folders.")
    init_from: str | None = Field(
        default=None,
        description="Initial weights: a run folder, a checkpoint, a published folder or a Hub name; "
        "none: fresh weights.",
    )
    branch_from: str | None = Field(
        default=None,
        description="Checkpoint of another run to start from, including optimiser and data position; set by --branch.",
    )
    code: list[Annotated[str, pydantic.AfterValidator(_imported)]] = Field(
        default_factory=list, description="Your own Python files to import first, such as one with a mixer."
    )
    data: DataSettings = Field(default_factory=DataSettings, description="Corpus, tokenizer and rows.")
    model: ModelFields = Field(
        default_factory=dict, description="Fields of MesaConfig; vocab_size defaults to the tokenizer's."
    )
    optim: OptimSettings = Field(default_factory=OptimSettings, description="Optimiser.")
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings, description="Learning rate.")
    train: TrainSettings = Field(description="Length, batch sizes and precision.")
    parallelism: ParallelismSettings = Field(
        default_factory=ParallelismSettings, description="Long sequences over several processes."
    )
    validate: ValidateSettings = Field(  # type: ignore[assignment]  # as above
        default_factory=ValidateSettings, description="Validation while training."
    )
    sample: SampleSettings = Field(default_factory=SampleSettings, description="Samples while training.")
    evaluate: EvaluateSettings = Field(
        default_factory=EvaluateSettings, description="Few-shot tasks and copying while training."
    )
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings, description="Checkpoints of the run.")
    upload: UploadSettings = Field(default_factory=UploadSettings, description="Checkpoints on the Hub while training.")
    track: list[Annotated[str, known(lambda: TRACKERS, "a tracker")]] = Field(
        default_factory=list, description="Trackers of accelerate that also receive the journal, such as tensorboard."
    )
    arms: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Variants of the run: name -> {dotted key: value}; each is trained as <name>-<arm>.",
    )

    def _check(self) -> None:
        positions, length = self.model.get("max_position_embeddings"), self.data.sequence_length
        if isinstance(positions, int) and positions < length:
            raise ValueError(
                f"model.max_position_embeddings: {positions} is less than data.sequence_length {length}; set "
                f"model.max_position_embeddings={length}"
            )
        check_warmup(self.schedule, self.steps)
        every, saved = self.upload.every, self.checkpoint.every
        if every and (not saved or every % saved):
            raise ValueError(
                f"upload.every: {every} is not a multiple of checkpoint.every, {saved}; set it to one, or to 0"
            )
        if self.data.stream and self.train.workers:
            raise ValueError("train.workers: a streamed corpus is read ahead without workers; set it to 0")
        if self.data.stream and self.train.ramp_tokens:
            raise ValueError("train.ramp_tokens: steps on a streamed corpus all have the same size; set it to 0")
        self._check_context()

    def _check_context(self) -> None:
        context, length = self.parallelism.context, self.data.sequence_length
        if context == 1:
            return
        if length % context:
            raise ValueError(
                f"parallelism.context: {context} does not divide data.sequence_length {length}; set "
                f"data.sequence_length={(length // context + 1) * context}"
            )
        if self.train.compile:
            raise ValueError("parallelism.context: is not supported with train.compile; set train.compile=false")
        if self.evaluate.every:
            raise ValueError(
                "parallelism.context: is not supported with evaluations during training; set evaluate.every=0"
            )
        if self.model.get("attention_dropout"):
            raise ValueError(
                "parallelism.context: is not supported with attention dropout; set model.attention_dropout=0"
            )

    @property
    def folder(self) -> Path:
        """Return the run folder, <output_dir>/<name>."""
        return expanded(self.output_dir) / self.name

    @property
    def steps(self) -> int:
        """Return the number of optimiser steps; ``train.tokens`` is rounded up to whole steps."""
        if self.train.steps is not None:
            return self.train.steps
        tokens = self.train.tokens or 0
        return self.ramp.steps(math.ceil(tokens / self.data.sequence_length))

    @property
    def ramp(self) -> RowRamp:
        """Return the number of rows of each step."""
        return RowRamp(self.train.batch_rows, math.ceil(self.train.ramp_tokens / self.data.sequence_length))

    def micro_rows(self, processes: int) -> int:
        """Return the rows of a micro-batch of one process, given the number of processes.

        Raises SettingsError if the rows of a step do not divide among them.
        """
        context, rows = min(self.parallelism.context, processes), self.ramp.rows(0)
        readers = processes // context
        found = self.train.micro_rows or max(rows // readers, 1)
        if rows % (readers * found):
            first = " of a first step" if self.ramp.over else ""
            group = f"{plural(readers, 'group')} of {context} processes"
            raise SettingsError(
                f"train.batch_rows: {rows}{first} must be a multiple of "
                f"{plural(readers, 'process') if context == 1 else group} times train.micro_rows {found}; change "
                "one of the two"
            )
        return found

    @property
    def planned_tokens(self) -> int:
        """Return the tokens of all steps together."""
        return self.ramp.total(self.steps) * self.data.sequence_length

    def plain(self) -> dict[str, Any]:
        """Return the recipe with all defaults written out, as plain data."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the recipe as YAML with all defaults written out; reading it gives an equal recipe."""
        return write_yaml(self.plain())

    def arm(self, name: str) -> Recipe:
        """Return the recipe of one arm: its settings applied, named <name>-<arm>, without arms of its own."""
        data = self.plain()
        _enter_arm(data, name)
        return Recipe.build(data)


def load_recipe(
    name_or_path: str, overrides: Sequence[str] = (), arm: str | None = None, *, check_arms: bool = True
) -> Recipe:
    """Read and check a recipe, given by the path of a file or the name of a recipe that comes with mesalm.

    ``overrides`` are ``dotted.key=YAML value``; they are applied after the settings of ``arm``. The fields under
    ``model`` are checked against MesaConfig, those of the recipe and, with ``check_arms``, of every
    arm. Raises SettingsError with one line.
    """
    path = find_recipe(name_or_path)
    data = read_mapping(path)
    changes = [parse_override(text) for text in overrides]
    if arm is not None:
        # the name is set first too, so that the arms of a renamed recipe get its name
        early = [change for change in changes if change[0].partition(".")[0] in ("arms", "name")]
        apply_overrides(data, early, Recipe)
        _enter_arm(data, arm)
        changes = [change for change in changes if change not in early]
    apply_overrides(data, changes, Recipe)
    recipe = Recipe.build(data)
    check_model_fields(recipe.model)
    for name in recipe.arms if check_arms else ():
        try:
            load_recipe(name_or_path, overrides, arm=name)
        except SettingsError as error:
            raise SettingsError(f"arms.{name}: {error}") from None
    return recipe


def recipes_folder(package: Path = Path(str(mesalm.__file__)).parent) -> Path:
    """Return the folder of the packaged recipes, in a wheel or in a checkout."""
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipe_names(kind: str = "") -> list[str]:
    """Return the names of the packaged recipes in the folder ``kind`` under recipes/ (empty: recipes/ itself)."""
    return sorted(path.stem for path in (recipes_folder() / kind).glob("*.yaml"))


def find_recipe(name_or_path: str, kind: str = "") -> Path:
    """Return the file of a recipe, given by its path or by the name of a packaged recipe of a kind."""
    path = expanded(name_or_path)
    if path.is_file():
        return path
    if path.suffix not in (".yaml", ".yml") and len(path.parts) == 1 and not path.is_dir():
        packaged = recipes_folder() / kind / f"{name_or_path}.yaml"
        if packaged.is_file():
            return packaged
        names = recipe_names(kind)
        there = f"there are {', '.join(names) or 'none'}"
        raise SettingsError(f"{name_or_path}: no such recipe; {hint(name_or_path, names, there)}")
    what = "is a folder; name a recipe file" if path.is_dir() else "no such recipe file"
    raise SettingsError(
        f"{name_or_path}: {what}" if name_or_path.strip() else "the recipe's name is empty; name a file"
    )


def model_fields(configuration: Any = MesaConfig) -> dict[str, Any]:
    """Return the fields of a configuration class that are allowed under ``model``, with their defaults."""
    names = (name for name in configuration.field_rules if name not in NOT_MODEL_KEYS)
    return {name: getattr(configuration, name) for name in names}


def check_model_fields(model: Mapping[str, Any], configuration: Any = MesaConfig) -> None:
    """Raise SettingsError for a key under ``model`` that the configuration does not have, or an invalid value."""
    known = model_fields(configuration)
    for key in model:
        if key not in known:
            raise SettingsError(f"model.{key}: {unknown_key(key, known)}")
    try:
        # A copy, since the configuration completes nested fields in place.
        configuration(**copy.deepcopy(dict(model)))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise SettingsError(f"model.{' '.join(str(error).split())}") from None


def help_text() -> str:
    """Return the description of every setting of a recipe: dotted key, type, default and meaning."""
    lines = []
    for key, kind, default, description in Recipe.describe():
        lines.append(f"{key} ({kind}) = {default}\n    {description}")
        if key == "model":
            for name, value in model_fields().items():
                lines.append(f"model.{name} = {value!r}\n    {MesaConfig.field_rules[name].meaning}")
    return "\n".join(lines)


def _enter_arm(data: dict[str, Any], name: str) -> None:
    """Apply one arm's settings to a recipe's plain data, in place."""
    arms = data.pop("arms", None) or {}
    if not isinstance(arms, dict) or name not in arms:
        there = f"there are {', '.join(arms)}" if arms else "the recipe has none"
        raise SettingsError(f"{name!r}: no such arm; {hint(name, arms, there)}")
    changes = arms[name] or {}
    if not isinstance(changes, dict):
        raise SettingsError(f"arms.{name}: must be a mapping of dotted keys to values")
    data["name"] = f"{data.get('name', '')}-{name}"
    apply_overrides(data, changes.items(), Recipe)
