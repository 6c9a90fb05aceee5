"""Plans against what torch counts, what a process holds and what a run took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mesalm import MesaConfig, MesaForCausalLM
from mesalm.data.prepare import prepare
from mesalm.journal import Journal, read_journal
from mesalm.settings import SettingsError
from mesalm.train import speeds
from mesalm.train.activations import activation_bytes
from mesalm.train.plan import make_plan, optimiser_bytes, outline, plan_recipe, work
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe, load_recipe
from mesalm.train.speeds import CARDS, Assumptions, Rate, calculated_rate, read_assumptions
from mesalm.train.token_loss import TokenLoss

Load = Callable[..., Recipe]
WIDE: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "logit_softcap": 30.0,
}


def step(config: MesaConfig, rows: int, length: int, bf16: bool = False) -> MesaForCausalLM:
    model = MesaForCausalLM(config)
    ids = torch.randint(config.vocab_size, (rows, length))
    documents = torch.arange(length).expand(rows, length) % (length // 2)
    with torch.autocast("cpu", enabled=bf16):
        loss = model(input_ids=ids, position_ids=documents, labels=ids).loss
    loss.backward()
    return model


@pytest.mark.parametrize("mixers", ["softmax", "linear", "mesa"])
def test_operations_of_the_maps_are_those_that_torch_counts(mixers: str) -> None:
    # torch does not look into the operators themselves; tests/kernels/test_bench_measures.py counts those
    config = MesaConfig(**WIDE, mixers=mixers, tolerance=1e-3)
    with FlopCounterMode(display=False) as counter:
        model = step(config, 1, 256)
    flops = work(outline(config), 256, model.solver_steps() or 0.0)
    # but for norms, gates and the convolution, which are no products of matrices
    assert flops["maps"] == pytest.approx(counter.get_total_flops() / 256, rel=1e-2)


def test_operations_of_softmax_are_half_of_what_torch_counts_without_its_kernel() -> None:
    config = MesaConfig(**WIDE, mixers="softmax", attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        step(config, 1, 256)
    flops = work(outline(config), 256, 0.0)
    assert flops["maps"] + 2 * flops["softmax"] == pytest.approx(counter.get_total_flops() / 256, rel=1e-2)


def test_solver_steps_are_counted_as_products_with_the_state() -> None:
    model = outline(MesaConfig(**WIDE, mixers="mesa"))
    none, ten = (work(model, 256, steps)["mesa"] for steps in (0.0, 10.0))
    assert ten - none == 3 * 3 * 2 * 10 * 2 * (64 * 64 + 2 * 64 * 64)  # passes, layers, heads, steps


@pytest.mark.parametrize(
    ("hardware", "backend", "chunk"), [(None, "auto", 32), ("H100", "auto", 64), ("H100", "torch", 32)]
)
def test_kernels_of_a_card_have_chunks_of_64_for_small_keys_too(
    load: Load, hardware: str | None, backend: str, chunk: int
) -> None:
    config = MesaConfig(**{**WIDE, "num_attention_heads": 4}, mixers="mesa", mesa_backend=backend)
    recipe = load("train.device=cpu", "data.sequence_length=256")
    plan = make_plan(recipe, config, Assumptions(solver_steps=10), hardware=hardware)
    token = 2 * 32 * 64 + 2 * (32 * 32 + chunk * 64) + 10 * 2 * 32 * (32 + 2 * chunk)  # states, read-out, ten steps
    assert plan.flops["mesa"] == 3 * 3 * 4 * token  # passes, layers, heads
    assert config.mesa_backend == backend


@pytest.mark.parametrize(
    ("mixers", "bf16", "logits"),
    [
        ("softmax", False, None),
        ("softmax", True, 96 * 2048),
        (["mesa", "mesa", "linear"], False, 96 * 2048),
        (["mesa", "mesa", "linear"], True, None),
    ],
)
def test_activations_are_those_that_torch_tracks(mixers: Any, bf16: bool, logits: int | None) -> None:
    from torch.distributed._tools.mem_tracker import MemTracker

    config = MesaConfig(**WIDE, mixers=mixers, tolerance=1e-3)
    model = MesaForCausalLM(config)
    model.token_loss = None if logits is None else TokenLoss(logits)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    ids = torch.randint(config.vocab_size, (2, 384))
    documents = torch.arange(384).expand(2, 384) % 192
    tracker = MemTracker()
    tracker.track_external(model, *(weight.grad for weight in model.parameters()))
    with tracker:
        with torch.autocast("cpu", enabled=bf16):
            loss = model(input_ids=ids, position_ids=documents, labels=ids).loss
        loss.backward()
    held = 2 * sum(weight.nbytes for weight in model.parameters())
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"] - held
    assert activation_bytes(config, 2, 384, bf16=bf16, logits=logits) == pytest.approx(peak, rel=0.04)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_optimiser_keeps_what_the_plan_says(load: Load, name: str) -> None:
    from mesalm.train.optim import build_optimiser

    recipe = load(f"optim.name={name}")
    model = step(MesaConfig(**WIDE, mixers="softmax"), 1, 8)
    optimiser = build_optimiser(model, recipe.optim)
    optimiser.step()
    kept = [value for state in optimiser.state.values() for value in state.values() if torch.is_tensor(value)]
    assert optimiser_bytes(recipe, outline(model.config)) == sum(value.nbytes for value in kept if value.ndim)


def test_a_plan_counts_the_logits_that_are_there_at_once(load: Load) -> None:
    whole, parts = (plan_recipe(load(f"train.logits_at_once={most}")) for most in (2**28, 500))
    assert parts.memory["activations"] < 0.9 * whole.memory["activations"]


def test_a_plan_counts_the_weights_and_the_forward_pass_of_a_teacher(load: Load) -> None:
    recipe, config = load(), MesaConfig(**WIDE, mixers="linear")
    alone, taught = (make_plan(recipe, config, teacher=teacher) for teacher in (None, outline(config)))
    assert taught.memory["teacher"] == alone.memory["weights"]
    assert taught.peak - alone.peak == alone.memory["weights"]
    assert taught.flops["teacher"] == pytest.approx(sum(alone.flops.values()) / 3)
    assert "teacher" in taught.lines()[1]


def test_a_plan_counts_the_average(load: Load) -> None:
    plain, averaged = (plan_recipe(load(*more)) for more in ([], ["train.average=0.99"]))
    assert averaged.memory["average"] == plain.memory["weights"]
    assert averaged.checkpoint - plain.checkpoint == plain.memory["weights"]
    assert "average" in averaged.lines()[1]


def test_processes_that_share_rows_need_no_row_each(load: Load) -> None:
    config = MesaConfig(**WIDE)
    changes = ("train.batch_rows=1", "model.attention_dropout=0")
    alone, shared = (
        make_plan(load(*changes, f"parallelism.context={count}"), config, processes=count) for count in (1, 2)
    )
    assert shared.memory["activations"] < 0.7 * alone.memory["activations"]
    with pytest.raises(SettingsError, match="1 must be a multiple of 2 groups of 2 processes times"):
        make_plan(load(*changes, "parallelism.context=2"), config, processes=4)


def test_a_plan_takes_its_speed_from_an_earlier_run_and_meets_its_time(load: Load) -> None:
    changes = ("train.steps=30", "train.precision=fp32", "validate.every=10", "checkpoint.every=0")
    first = pretrain(load(*changes, "name=first"), quiet=True)
    plan = plan_recipe(load(*changes, "name=second"))
    assert plan.rate is not None
    assert plan.rate.source == f"as {first}"
    assert plan.rows == 134
    (end,) = [event for event in read_journal(first / "journal.jsonl") if event["event"] == "end"]
    assert plan.seconds == pytest.approx(end["seconds"], rel=0.5)  # steps of milliseconds; the slow test is closer
    gone, unreadable = (first.with_name(name) / "journal.jsonl" for name in ("gone", "unreadable"))
    gone.parent.mkdir()
    gone.symlink_to("nowhere")
    unreadable.mkdir(parents=True)
    assert plan_recipe(load(*changes, "name=second")).rate == plan.rate
    other = plan_recipe(load(*changes, "name=third", "train.micro_rows=2"))
    assert other.rate is None
    assert "--probe" in other.lines()[3]


def test_a_probe_makes_the_steps_that_the_run_will_make(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, given = [], []

    def compiled(model: Any, how: Any) -> Any:
        asked.append(how)
        return model

    def backward(accelerator: Any, model: Any, micro: list[Any], count: Any) -> torch.Tensor:
        again = any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
        given.append((again, model.token_loss is not None, len(micro)))
        return torch.zeros(())

    monkeypatch.setattr(speeds, "compiled", compiled)
    monkeypatch.setattr(speeds, "backward", backward)
    more = ("train.gradient_checkpointing=true", "train.compile=blocks", "train.logits_at_once=500")
    for changes in ((), more, ("train.ramp_tokens=512",)):
        recipe = load(*changes)
        speeds.probed_rate(recipe, MesaConfig(**WIDE), seconds=0.0)
    assert asked == [False, "blocks", False]
    assert [given[place] for place in (0, 2, 4)] == [(False, False, 1), (True, True, 1), (False, False, 4)]


def test_the_speed_of_another_model_or_of_shared_rows_is_not_taken(load: Load) -> None:
    same = ("init_from=small", "model.attention_dropout=0")
    recipe = load(*same)
    device = speeds.local_device(recipe)
    start = {"recipe": recipe.plain(), "device": device, "world": 1}
    with Journal(recipe.folder.with_name("first") / "journal.jsonl") as journal:
        journal.write("start", step=0, **start)
        journal.write("step", step=1, tokens_per_second=100.0)
    assert speeds.earlier_rate(recipe, device, 1) is not None
    assert speeds.earlier_rate(load(*same, "init_from=large"), device, 1) is None
    assert speeds.earlier_rate(load(*same, "parallelism.context=2"), device, 1) is None


def test_a_plan_counts_what_is_left_of_a_run_that_goes_on(load: Load) -> None:
    recipe = load("train.steps=30", "validate.every=10", "checkpoint.every=4", "train.ramp_tokens=512")
    config = MesaConfig(**WIDE)
    rate = Rate(1000.0, None, "measured")

    def seconds(begun: int) -> float:
        plan = make_plan(recipe, config, rate=rate, begun=begun)
        assert plan.seconds is not None
        assert (f" for the last {30 - begun} step" in plan.lines()[3]) == (begun > 0)
        return plan.seconds - plan.checkpoint / plan.assumed["disk"] * (8 - begun // 4)

    # four rows of 32 tokens a step, one to three in the ramp; three validations of eight rows
    valid = 8 * 32 / 3
    assert seconds(0) == pytest.approx((recipe.planned_tokens + 3 * valid) / 1000)
    assert seconds(20) == pytest.approx((10 * 4 * 32 + valid) / 1000)
    assert seconds(29) == pytest.approx((4 * 32 + valid) / 1000)


def test_a_streamed_corpus_has_no_epochs(load: Callable[..., Recipe]) -> None:
    recipe = load("data.stream=true", "data.stream_sample=20")
    prepare(recipe.data, quiet=True)
    assert ", streamed" in plan_recipe(recipe).lines()[0]


def test_cards_exchange_what_ddp_and_fsdp2_do() -> None:
    recipe = load_recipe("mesa-140m", arm="softmax")
    config = MesaConfig(**{**recipe.model, "num_hidden_layers": 2, "vocab_size": 512})
    alone, eight, sharded = (
        make_plan(recipe, config, processes=cards, hardware="H100", sharded=fsdp)
        for cards, fsdp in ((1, False), (8, False), (8, True))
    )
    assert alone.rate is not None
    assert eight.rate is not None
    assert sharded.rate is not None
    assert 4 < eight.rate.tokens_per_second / alone.rate.tokens_per_second < 8
    assert sharded.memory["optimiser"] == eight.memory["optimiser"] / 8 == alone.memory["optimiser"] / 8
    # weights travel in float32 under bf16 too: three layers' and twice the table at once
    weights, table = 4.0 * sharded.parameters, 4.0 * 512 * config.hidden_size
    assert recipe.train.precision == "bf16"
    assert sharded.memory["exchange"] == pytest.approx(2 * table + 3 * (weights - table) / 2)
    assert "calculation" in eight.rate.source
    # by hand: 1e12 operations at half of 1e15 are 2 ms, 10 GB over 450 GB/s 22 ms; hidden are 2/3 of the 2 ms
    one = calculated_rate(
        {"maps": 1e9},
        hardware="H100",
        processes=8,
        tokens=1000,
        update=0.0,
        exchange=10e9,
        assumptions=Assumptions(maps=0.5, link=1.0, overlap=1.0),
    )
    seconds = 1e12 / (0.5 * CARDS["H100"].peak)
    assert one.tokens_per_second == pytest.approx(8000 / (seconds / 3 + 10e9 / 450e9))


def test_assumptions_are_read_over_the_defaults() -> None:
    read = read_assumptions(["maps=0.5", "mixers.mesa=0.1"])
    assert (read.maps, read.mixers["mesa"], read.mixers["softmax"]) == (0.5, 0.1, 0.44)


@pytest.mark.parametrize(
    ("changes", "there", "scored"),
    [
        (["validate.rows=0"], 50, 50),
        (["validate.rows=8"], 5, 5),
        (["validate.rows=8"], None, 8),
        (["validate.rows=8", "train.average=0.9"], 50, 16),
    ],
)
def test_a_plan_counts_the_rows_validated(load: Load, changes: list[str], there: int | None, scored: int) -> None:
    assert make_plan(load(*changes), MesaConfig(**WIDE), valid_rows=there).scored == scored


MEASURE = """
import json, sys
from mesalm.journal import Journal, read_journal
from mesalm.train.plan import plan_recipe
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import load_recipe

def held(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

path, *changes = sys.argv[1:]
pretrain(load_recipe(path, ["name=warm", "train.steps=1"]), quiet=True)  # so that libraries are loaded
recipe = load_recipe(path, changes)
before = held("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
run = pretrain(recipe, quiet=True)
peak = held("VmHWM") - before
plan = plan_recipe(recipe, probe=True)
(end,) = [event for event in read_journal(run / "journal.jsonl") if event["event"] == "end"]
print(json.dumps([plan.peak, peak, plan.seconds, end["seconds"]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mixers", ["softmax", "mesa"])
def test_a_run_takes_the_time_of_its_plan_and_holds_its_memory(recipe_file: Path, mixers: str) -> None:
    sizes = {"vocab_size": 4096, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
    changes = [
        *(f"model.{name}={size}" for name, size in sizes.items()),
        f"model.mixers={mixers}",
        *("data.sequence_length=128", "train.batch_rows=32", "train.steps=12", "train.precision=bf16", "name=wide"),
        *("validate.every=6", "checkpoint.every=0"),
    ]
    child = [sys.executable, "-W", "ignore", "-c", MEASURE, str(recipe_file), *changes]
    # else glibc keeps freed blocks, and how many depends on their order
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(child, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    planned, peak, seconds, took = json.loads(result.stdout.splitlines()[-1])
    assert 0.9 * planned < peak < 1.1 * planned, (planned, peak)
    assert seconds == pytest.approx(took, rel=0.15), (seconds, took)
