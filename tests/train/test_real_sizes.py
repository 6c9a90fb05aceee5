"""The recipes of the paper's sizes: equal parameters, files for accelerate launch, and miniature runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from mesalm.data.prepare import prepare
from mesalm.model.configuration_mesa import MesaConfig
from mesalm.train.plan import outline
from mesalm.train.recipe import Recipe, load_recipe, recipes_folder
from mesalm.train.smoke import shrunk, small_model, smoke, write_documents

Load = Callable[..., Recipe]

SIZES = {"mesa-140m": 140e6, "mesa-440m": 440e6, "mesa-1b": 940e6}
ARMS = ["mesa", "softmax", "softmax-conv", "linear", "hybrid"]


@pytest.mark.parametrize("name", SIZES)
def test_all_arms_of_a_size_have_the_same_parameters(name: str) -> None:
    assert list(load_recipe(name).arms) == ARMS
    configs = {arm: MesaConfig(**load_recipe(name, arm=arm).model) for arm in ARMS}
    counts = {arm: outline(config).num_parameters() for arm, config in configs.items()}
    assert max(counts.values()) < 1.01 * min(counts.values())
    assert counts["mesa"] == pytest.approx(SIZES[name], rel=0.05)
    hybrid = configs["hybrid"].layer_mixers
    assert [number for number, mixer in enumerate(hybrid, 1) if mixer == "softmax"] == list(
        range(4, len(hybrid) + 1, 4)
    )


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [
        ("one-card", DistributedType.NO, 1, 1),
        ("eight-cards", DistributedType.MULTI_GPU, 1, 8),
        ("fsdp2", DistributedType.FSDP, 1, 8),
        ("machines", DistributedType.MULTI_GPU, 2, 16),
    ],
)
def test_accelerate_reads_its_files(name: str, kind: DistributedType, machines: int, processes: int) -> None:
    config = load_config_from_file(str(recipes_folder() / "accelerate" / f"{name}.yaml"))
    assert (config.distributed_type, config.num_machines, config.num_processes) == (kind, machines, processes)
    assert config.mixed_precision == "no"
    assert not config.use_cpu
    if kind == DistributedType.FSDP:
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == "MesaBlock"


def test_a_small_model_keeps_the_ratios_of_its_heads() -> None:
    fields = {"num_attention_heads": 12, "num_key_value_heads": 4, "hidden_size": 1536, "intermediate_size": 4608}
    small = MesaConfig(**small_model({**fields, "mixers": ["mesa", "mesa", "softmax"], "num_hidden_layers": 28}))
    assert small.layer_mixers == ["mesa", "softmax"]
    heads, groups, size = small.head_shape
    assert heads // groups == 3
    assert (small.hidden_size, small.intermediate_size) == (heads * size, 3 * heads * size)


def test_a_recipe_trains_in_miniature(tmp_path: Path) -> None:
    line = smoke(load_recipe("mesa-140m", arm="hybrid"), tmp_path)
    assert line.startswith("mesa-140m-hybrid: 20 steps, loss 6.")
    assert "solver steps" in line


@pytest.mark.parametrize(
    "sources",
    [
        "[{name: files, files: books, weight: 7}, {name: python-stdlib, weight: 3}, {name: packages, weight: 1}]",
        "[{name: hub, dataset: any/web, use: train}, {name: files, files: gone.jsonl, use: valid}]",
    ],
)
def test_sources_in_miniature_have_texts_of_their_own(sources: str, load: Load, tmp_path: Path) -> None:
    recipe = load(f"data.sources={sources}")
    text = write_documents(tmp_path / "text", len(recipe.data.sources))
    prepared = prepare(shrunk(recipe, text, tmp_path).data, quiet=True)
    assert prepared.manifest["duplicates"] < 3  # the library has a few itself
    assert min(len(prepared.rows(split)) for split in ("train", "valid")) > 0


UNSHRINKABLE = [
    ("train.ramp_tokens=1e9",),
    ("data.stream=true",),
    ("schedule.name=wsd", "schedule.decay_steps=1000", "train.steps=2000"),
    ("schedule.name=wsd", "schedule.decay_fraction=0.98"),
    ("parallelism.context=4", "model.attention_dropout=0"),
    ("data.prepared=/nowhere",),
]


@pytest.mark.parametrize("changes", UNSHRINKABLE, ids=str)
def test_a_small_recipe_has_what_its_steps_and_its_one_process_allow(
    changes: tuple[str, ...], load: Load, tmp_path: Path
) -> None:
    small = shrunk(load(*changes), tmp_path / "text", tmp_path)
    assert small.ramp.over < small.ramp.total(small.steps)
    assert (small.parallelism.context, small.data.prepared) == (1, None)


@pytest.mark.slow
@pytest.mark.parametrize("changes", UNSHRINKABLE[:3], ids=str)
def test_a_recipe_with_a_ramp_a_stream_or_a_decay_trains_in_miniature(
    changes: tuple[str, ...], load: Load, tmp_path: Path
) -> None:
    assert smoke(load(*changes), tmp_path).startswith("tiny: 20 steps, loss 6.")


@pytest.mark.slow
# in miniature the sizes differ by rates only, so five runs meet every size and every arm
@pytest.mark.parametrize(("name", "arm"), list(zip(itertools.cycle(SIZES), ARMS, strict=False)))
def test_every_arm_trains_in_miniature(name: str, arm: str, tmp_path: Path) -> None:
    before, after = smoke(load_recipe(name, arm=arm), tmp_path).split("loss ")[1].split(",")[0].split(" to ")
    assert float(after) < float(before)
