"""Recipes: unknown keys, overrides, arms, help, and the way to YAML and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesalm.data.data_settings import DataSettings
from mesalm.recipe_yaml import read_yaml, write_yaml
from mesalm.settings import SettingsError
from mesalm.train.recipe import Recipe, find_recipe, help_text, load_recipe, model_fields, recipes_folder

Load = Callable[..., Recipe]
IDS = {"name": "files", "files": "x.jsonl", "ids_column": "ids"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rat=1", r"optim\.learning_rat: unknown key; did you mean 'learning_rate'\?"),
        ("trian.steps=1", r"trian: unknown key; did you mean 'train'\?"),
        ("model.hiden_size=8", r"model\.hiden_size: unknown key; did you mean 'hidden_size'\?"),
        ("model.layer_types=[a]", r"model\.layer_types: unknown key"),
        ("data.sources.0.file=x", r"data\.sources\.0\.file: unknown key; did you mean 'files'\?"),
        ("schedule.name=cosin", r"schedule\.name: 'cosin' is not a schedule; did you mean 'cosine'\?"),
        ("optim.name=adam", r"optim\.name: 'adam' is not an optimiser; did you mean 'adamw'\?"),
        ("track=[tensorbord]", r"track.0: 'tensorbord' is not a tracker; did you mean 'tensorboard'\?"),
        ("train.precision=fp61", r"train\.precision: must be .*'fp32' or 'bf16'"),
        ("train.steps=yes", r"^train\.steps: must be a number, not True$"),
        ("optim.betas=[0.9, off]", r"^optim\.betas: must be a number, not False$"),
        ("train.batch_rows=0", r"train\.batch_rows: must be greater than 0"),
        ("optim.betas=[0.9, 1.5]", r"optim\.betas\.1: must be less than 1, not 1\.5"),
        ("model.mixers=mess", r"model\.mixers: 'mess' is not a mixer"),
        ("model.num_attention_heads=0", r"^model\.num_attention_heads: 0 must be a whole number of at least 1$"),
        ("model.intermediate_size=-4", r"^model\.intermediate_size: -4 must be a whole number"),
        ("model.hidden_act=foo", r"^model\.hidden_act: 'foo' must be one of gelu"),
        ("model.attention_dropout=2", r"^model\.attention_dropout: 2 must be a number of at least 0 and below 1"),
        ("model.mesa_backend=cuda", r"^model\.mesa_backend: 'cuda' must be one of auto"),
        ("model.rope_parameters={rope_type: foo}", r"^model\.rope_parameters: rope_type 'foo' is unknown"),
        ("arms.mesa={model.max_steps: 0}", r"^arms\.mesa: model\.max_steps: 0 must be a whole number"),
        ("model.hidden_size=wide", r"^model\.hidden_size: 'wide' must be a whole number of at least 1$"),
        ("arms.mesa={model.mixer: mesa}", r"arms\.mesa: model\.mixer: unknown key; did you mean 'mixers'\?"),
        ("name=a/b", r"name: must be letters"),
        ("train={}", r"train: give exactly one of tokens and steps"),
        ("nonsense", r"'nonsense': must be dotted\.key=value"),
        ("data.sources.3.files=x", r"data\.sources\.3: must be an index into a list of 1"),
        ("seed.x=1", r"seed\.x: unknown|seed.*no fields|seed: must be"),
        ("train.clip=[1", r"train\.clip.*not valid YAML"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(load: Load, override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load(override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["null", "none", "None"])
def test_every_spelling_of_no_value_is_read(load: Load, recipe_file: Path, word: str) -> None:
    wanted = {
        "train.clip": lambda recipe: recipe.train.clip,
        "train.micro_rows": lambda recipe: recipe.train.micro_rows,
        "schedule.warmup_steps": lambda recipe: recipe.schedule.warmup_steps,
        "data.sources.0.limit": lambda recipe: recipe.data.sources[0].limit,
        "data.cache_dir": lambda recipe: recipe.data.cache_dir,
        "init_from": lambda recipe: recipe.init_from,
        "model.forget_cap": lambda recipe: recipe.model["forget_cap"],
    }
    recipe = load(*(f"{key}={word}" for key in wanted), f"arms.mesa={{model.max_steps: {word}, train.clip: {word}}}")
    assert [read(recipe) for read in wanted.values()] == [None] * len(wanted)
    assert (recipe.arm("mesa").model["max_steps"], recipe.arm("mesa").train.clip) == (None, None)
    assert Recipe.build(read_yaml(recipe.to_yaml(), "again")) == recipe
    # a length that is none leaves the other one, in whichever the recipe counts
    assert load(f"train.tokens={word}").train.steps == 12
    assert load("train.tokens=256", f"train.steps={word}").steps == 2
    recipe_file.write_text(recipe_file.read_text().replace("steps: 12", f"steps: 12\n  clip: {word}"))
    assert load().train.clip is None
    assert DataSettings.build({"tokenizer": yaml.safe_load(word), "sources": [IDS]}).tokenizer == "none"


def test_overrides_reach_every_depth(load: Load) -> None:
    recipe = load(
        "optim.learning_rate=1e-4",
        "data.sources.0.domain=prose",
        "sample.prompts.0=class ",
        "model.mixers=[mesa, softmax]",
        "model.num_hidden_layers=2",
        "train.clip=null",
        "schedule.warmup_steps=7",
        "name=other",
    )
    assert recipe.optim.learning_rate == 1e-4
    assert recipe.data.sources[0].domain == "prose"
    assert recipe.sample.prompts == ["class"]
    assert recipe.model["mixers"] == ["mesa", "softmax"]
    assert recipe.train.clip is None
    assert recipe.schedule.warmup_steps == 7
    assert recipe.name == "other"


def test_default_list_can_be_changed_in_part(recipe_file: Path) -> None:
    data = yaml.safe_load(recipe_file.read_text())
    del data["data"]
    recipe_file.write_text(yaml.safe_dump(data))
    recipe = load_recipe(str(recipe_file), ["data.sources.0.limit=3"])
    assert (recipe.data.sources[0].name, recipe.data.sources[0].limit) == ("python-stdlib", 3)


def test_steps_and_tokens_take_each_others_place(load: Load) -> None:
    assert load().steps == 12
    by_tokens = load("train.tokens=300")  # rows of 32 tokens, 4 rows per step
    assert (by_tokens.train.steps, by_tokens.steps) == (None, 3)
    with pytest.raises(SettingsError, match="exactly one"):
        load("train.tokens=300", "train.steps=2")


def test_arm_changes_name_and_settings(load: Load) -> None:
    base = load()
    fast = base.arm("fast")
    assert (fast.name, fast.optim.learning_rate, fast.arms) == ("tiny-fast", 0.01, {})
    assert base.optim.learning_rate != 0.01
    assert base.arm("mesa").model["mixers"] == "mesa"
    assert load(arm="fast") == fast
    assert load("optim.learning_rate=0.5", arm="fast").optim.learning_rate == 0.5  # the command line comes last
    assert load("arms.fast={seed: 3}", arm="fast").seed == 3
    assert load("name=other", arm="fast").name == "other-fast"
    with pytest.raises(SettingsError, match=r"'fas': no such arm; did you mean 'fast'\?"):
        base.arm("fas")


def test_resolved_recipe_reads_back_equal(load: Load, tmp_path: Path) -> None:
    recipe = load("optim.learning_rate=1e-5", "data.sources.0.domain='1e5'", "optim.eps=1e-12", "model.tolerance=1e-4")
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(str(path)) == recipe
    assert load_recipe(str(path)).to_yaml() == recipe.to_yaml()
    assert "weight_decay" in recipe.to_yaml()  # defaults are written out


def test_yaml_reads_numbers_as_they_look() -> None:
    text = "a: 1e-3\nb: 2E5\nc: 1.5e-3\nd: '1e-3'\ne: 1e3x\nf: -3e+2"
    data = {"a": 1e-3, "b": 2e5, "c": 1.5e-3, "d": "1e-3", "e": "1e3x", "f": -300.0}
    assert read_yaml(text, "t") == data
    assert read_yaml(write_yaml(data), "t") == data
    zeros = read_yaml("[0010, 089, -07, 0x1F, 1_000, 1:30, 1:30.5, '010', 0, 0.5, -.inf]", "t")
    assert zeros == ["0010", "089", "-07", 31, 1000, "1:30", "1:30.5", "010", 0, 0.5, -math.inf]
    assert read_yaml(write_yaml(zeros), "t") == zeros
    assert load_recipe("demo", ["train.steps=00001000", "seed=010", "name=007"]).steps == 1000


def test_yaml_merges_come_before_what_overrides_them() -> None:
    text = "base: &base {rate: 1, size: 3}\nouter:\n  inner: &inner\n    <<: *base\n    rate: 2\nlast:\n  <<: *inner\n"
    inner = {"rate": 2, "size": 3}
    assert read_yaml(text, "t") == {"base": {"rate": 1, "size": 3}, "outer": {"inner": inner}, "last": inner}


def test_every_field_is_described() -> None:
    rows = Recipe.describe()
    assert len(rows) > 50
    for key, _, _, description in rows:
        assert description, key
        assert description.endswith("."), key


def test_help_names_every_setting_and_model_field() -> None:
    text = help_text()
    for key, *_ in Recipe.describe():
        assert f"{key} (" in text
    for name in model_fields():
        assert f"model.{name} = " in text
    assert {"hidden_size", "mixers", "vocab_size"} <= set(model_fields())
    assert not {"layer_types", "architectures", "eos_token_id"} & set(model_fields())


def test_packaged_recipe_is_found_by_name(tmp_path: Path, recipe_file: Path) -> None:
    package = tmp_path / "site" / "mesalm"
    (package / "recipes").mkdir(parents=True)
    assert recipes_folder(package) == package / "recipes"
    (package / "recipes").rename(package.parent / "recipes")
    assert recipes_folder(package) == package.parent / "recipes"
    assert find_recipe("demo") == recipes_folder() / "demo.yaml"
    assert load_recipe("demo").name == "demo"
    with pytest.raises(SettingsError, match=r"dem: no such recipe; did you mean 'demo'\?"):
        find_recipe("dem")
    assert find_recipe(str(recipe_file)) == recipe_file
    with pytest.raises(SettingsError, match="no such recipe file"):
        find_recipe("folder/none.yaml")


def test_recipe_without_anything_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    with pytest.raises(SettingsError, match="mapping"):
        load_recipe(str(path))
    path.write_text("name: x")
    with pytest.raises(SettingsError, match="train: is missing"):
        load_recipe(str(path))


def test_build_checks_plain_data(load: Load) -> None:
    data: dict[str, Any] = load().plain()
    assert Recipe.build(data) == load()
