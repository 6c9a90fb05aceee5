"""Whole runs of a tiny language model: folder, journal, exact resume, interruption, init_from."""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from safetensors.torch import load_file
from tiny import tiny_model
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from mesalm.data.bpe import train_tokenizer
from mesalm.data.prepare import prepare
from mesalm.interrupts import Interrupted
from mesalm.journal import read_journal
from mesalm.settings import SettingsError
from mesalm.train import training
from mesalm.train.checkpoint import Checkpoints
from mesalm.train.loop import Outcome, Probe
from mesalm.train.pretrain import pretrain
from mesalm.train.probes import continuation, sampling
from mesalm.train.recipe import Recipe
from mesalm.train.run_folder import RunFolder, read_run_recipe
from mesalm.train.sections import SampleSettings

STREAMED = ("data.stream=true", "data.stream_sample=20", "train.micro_rows=20")
Load = Callable[..., Recipe]


def journal(run: Path, event: str) -> list[dict[str, Any]]:
    path = run / "journal.jsonl"
    return [entry for entry in read_journal(path) if entry["event"] == event] if path.exists() else []


def losses(run: Path, event: str = "step") -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in journal(run, event)]


def assert_same_run(one: Path, other: Path) -> None:
    """Compare final weights, the optimiser's last state and every journalled loss, to the last bit."""
    first, second = (load_file(run / "final" / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    states = []
    for run in (one, other):
        newest = Checkpoints(run / "checkpoints").newest()
        assert newest is not None
        states.append(torch.load(newest / "optimiser.pt", weights_only=True)["state"])
    for parameter, state in states[0].items():
        assert all(torch.equal(state[name], states[1][parameter][name]) for name in state)
    for event in ("step", "valid", "sample"):
        assert [(entry["step"], entry.get("loss"), entry.get("text")) for entry in journal(one, event)] == [
            (entry["step"], entry.get("loss"), entry.get("text")) for entry in journal(other, event)
        ]


def test_run_folder_is_complete(load: Load) -> None:
    samples = ("sample.every=6", "sample.prompts=[the cat]", "sample.tokens=4")
    recipe = load("train.log_every=4", "train.precision=fp32", *samples, arm="mesa")
    run = pretrain(recipe, quiet=True)
    assert run == recipe.folder
    files = ["README.md", "checkpoints", "corpus.md", "final", "journal.jsonl", "recipe.yaml"]
    assert sorted(path.name for path in run.iterdir()) == files
    assert read_run_recipe(run) == recipe
    assert [path.name for path in Checkpoints(run / "checkpoints").complete()] == ["step-00000008", "step-00000012"]

    (start,) = journal(run, "start")
    assert start["step"] == 0
    assert start["world"] == 1
    assert Path(start["prepared"], "corpus.md").read_text() == (run / "corpus.md").read_text()
    assert {"python", "torch", "mesalm"} <= start["versions"].keys()
    assert Recipe.build(start["recipe"]) == recipe
    steps = journal(run, "step")
    assert [step["step"] for step in steps] == [4, 8, 12]
    assert steps[-1]["tokens"] == 12 * 4 * 32
    assert steps[-1]["flops"] > steps[0]["flops"] > 0
    assert steps[-1]["solver_steps"] > 0
    assert steps[-1]["solver_misses"] == 0 < steps[-1]["solver_residual"] < 1e-3
    assert all(math.isfinite(step["gradient_norm"]) and step["tokens_per_second"] > 0 for step in steps)
    valid = journal(run, "valid")
    assert [line["step"] for line in valid] == [4, 8, 12]
    manifest = json.loads(Path(start["prepared"], "manifest.json").read_text())
    bytes_per_token = manifest["splits"]["valid"]["bytes_per_token"]
    assert valid[0]["bits_per_byte"] == pytest.approx(valid[0]["loss"] / math.log(2) / bytes_per_token)
    assert [line["step"] for line in journal(run, "sample")] == [6, 12]
    (end,) = journal(run, "end")
    assert (end["step"], end["tokens"]) == (12, 12 * 4 * 32)

    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    assert start["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer("the cat", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] == ids.shape[1] + 2


def test_training_learns(load: Load) -> None:
    run = pretrain(load("train.steps=60", "optim.learning_rate=0.02", "checkpoint.every=0"), quiet=True)
    valid = [loss for _, loss in losses(run, "valid")]
    assert valid[-1] < valid[0] - 1


@pytest.mark.parametrize("changes", [("model.mixers=mesa",), ("train.micro_rows=1",), STREAMED])
def test_interrupted_and_resumed_equals_uninterrupted(load: Load, stopped: Load, changes: tuple[str, ...]) -> None:
    # 134 rows an epoch: with 40 rows a step, step 4 and step 7 cross the end of an epoch
    changes = ("train.batch_rows=40", "train.steps=10", "sample.every=3", "sample.tokens=3", *changes)
    whole = pretrain(load("name=whole", *changes), quiet=True)
    recipe = load("name=broken", *changes)
    stopped(recipe, 6)
    assert journal(recipe.folder, "stop")[-1]["reason"] == "SIGTERM"
    newest = Checkpoints(recipe.folder / "checkpoints").newest()
    assert newest is not None
    assert newest.name == "step-00000006"
    assert not (recipe.folder / "final").exists()
    pretrain(recipe, quiet=True)
    assert_same_run(recipe.folder, whole)
    assert not journal(recipe.folder, "stop")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_control_c_is_answered_and_its_handler_put_back(
    load: Load, stopped: Load, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    stopped(load(), 3, signal.SIGINT, quiet=False)  # checks the exit code, 130
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopped after step 3 of 12, checkpoint written; run the same command again" in capfd.readouterr().err


def test_a_signal_in_the_last_validation_is_not_lost(load: Load) -> None:
    number = signal.SIGHUP
    recipe = load("validate.every=0", "train.steps=3")
    earlier = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so

    def send(model: object, step: int) -> list[dict[str, Any]]:
        os.kill(os.getpid(), number)
        return []

    def train(*arguments: Any, probes: list[Probe], **options: Any) -> Outcome:
        return training.run(*arguments, probes=[*probes, Probe("last", 0, send)], **options)

    with pytest.raises(Interrupted) as caught:
        pretrain(recipe, quiet=True, train=train)
    signal.signal(number, earlier)
    assert caught.value.code == 128 + number
    assert journal(recipe.folder, "stop")[-1]["reason"] == number.name
    assert Checkpoints(recipe.folder / "checkpoints").newest().name == "step-00000003"
    assert not (recipe.folder / "final").exists()
    pretrain(recipe, quiet=True)
    assert (recipe.folder / "final").is_dir()
    assert [line["step"] for line in journal(recipe.folder, "step")] == [1, 2, 3]


def test_a_log_file_gets_plain_lines_that_count_the_epochs(load: Load, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = load("train.log_every=2", "train.steps=4", "train.batch_rows=67")
    rows = len(prepare(recipe.data, quiet=True).rows("train"))
    assert rows == 134
    capfd.readouterr()
    pretrain(recipe)
    shown = capfd.readouterr().err
    assert "\r" not in shown
    plan = [line.split(":")[0] for line in shown.splitlines() if not line.startswith("tiny: ")]
    assert [word for word in plan if word in ("memory", "work", "time", "assumed")] == [
        "memory",
        "work",
        "time",
        "assumed",
    ]
    lines = [line for line in shown.splitlines() if line.startswith("tiny: ")]
    assert lines.pop(0).startswith("tiny: on cpu")
    first = "tiny: 7,408 parameters, 4 steps of 67 rows of 32 tokens, 8,576 in all, 2 epochs of 134 rows"
    assert lines[0] == first
    assert [line.split("  ")[:2] for line in lines[1:]] == [
        ["tiny: step 2/4", "epoch 1.00"],
        ["tiny: step 4/4", "epoch 2.00"],
    ]
    assert [line["epoch"] for line in journal(recipe.folder, "step")] == [1.0, 2.0]


def test_other_recipe_in_the_same_folder_is_refused(load: Load) -> None:
    run = pretrain(load("train.steps=2"), quiet=True)
    with pytest.raises(SettingsError, match=r"optim\.learning_rate is 0\.001 there and 0\.5 now.*--resume never"):
        pretrain(load("train.steps=2", "optim.learning_rate=0.5"), quiet=True)
    pretrain(load("train.steps=2", "optim.learning_rate=0.5"), resume="never", quiet=True)
    assert read_run_recipe(run).optim.learning_rate == 0.5
    assert read_run_recipe(run.with_name("tiny.old-1")).optim.learning_rate == 1e-3


def test_run_folder_decides_how_to_go_on(load: Load, tmp_path: Path) -> None:
    recipe = load()
    folder = RunFolder(recipe.folder)
    with pytest.raises(SettingsError, match="no run to resume"):
        folder.enter(recipe, "must")
    assert folder.enter(recipe).resume_from is None
    folder.journal.write_text('{"event": "start", "step": 0}\n')  # an error before the first step
    assert folder.enter(load("optim.learning_rate=0.5")).resume_from is None
    assert folder.enter(recipe).resume_from is None
    assert read_run_recipe(recipe.folder) == recipe
    folder.journal.write_text('{"event": "step", "step": 1}\n')
    with pytest.raises(SettingsError, match="a run of another recipe"):
        folder.enter(load("optim.learning_rate=0.5"))
    harmless = load("train.log_every=3", "validate.every=1", "data.skip_bad=true", "train.spikes=skip", "arms={}")
    assert folder.enter(harmless).resume_from is None
    with pytest.raises(SettingsError, match="resume"):
        folder.enter(recipe, "sometimes")
    other = RunFolder(tmp_path / "full")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(SettingsError, match="not a run folder"):
        other.enter(recipe)


def test_init_from_continues_from_run_checkpoint_and_published_folder(load: Load) -> None:
    first = pretrain(load("name=first", "train.steps=3"), quiet=True)
    weights = load_file(first / "final" / "model.safetensors")
    newest = Checkpoints(first / "checkpoints").newest()
    for number, source in enumerate((first, first / "final", newest)):
        recipe = load(f"name=next{number}", f"init_from={source}", "train.steps=1", "optim.learning_rate=1e-12")
        run = pretrain(recipe, quiet=True)
        after = load_file(run / "final" / "model.safetensors")
        assert all(torch.allclose(after[name], weights[name], atol=1e-9) for name in weights)


def test_init_from_must_agree_with_the_recipe(load: Load, tmp_path: Path) -> None:
    first = pretrain(load("name=first", "train.steps=1"), quiet=True)
    begin = ("name=next", "train.steps=1", f"init_from={first}")
    with pytest.raises(SettingsError, match=r"model\.hidden_size: is 32 in the recipe but 16 in"):
        pretrain(load(*begin, "model.hidden_size=32"), quiet=True)
    with pytest.raises(SettingsError, match=r"set data\.tokenizer="):
        pretrain(load(*begin, "data.vocab_size=290"), quiet=True)
    with pytest.raises(SettingsError, match="contains no model"):
        pretrain(load(*begin, f"init_from={tmp_path}"), quiet=True)
    with pytest.raises(SettingsError, match="no such folder"):
        pretrain(load(*begin, "init_from=./nowhere"), quiet=True)
    pretrain(load(*begin), quiet=True)  # what failed before it began stands in nobody's way


def test_samples_depend_on_weights_seed_and_step_alone(load: Load) -> None:
    run = pretrain(load("train.steps=1"), quiet=True)
    tokenizer, model = (kind.from_pretrained(run / "final") for kind in (AutoTokenizer, AutoModelForCausalLM))
    settings = SampleSettings(prompts=["the cat", "a"], tokens=12)
    first = list(sampling(tokenizer, settings, 0, main_process=True)(model, 5))
    torch.rand(3)
    assert list(sampling(tokenizer, settings, 0, main_process=True)(model, 5)) == first
    assert list(sampling(tokenizer, settings, 1, main_process=True)(model, 5)) != first
    assert [line["prompt"] for line in first] == ["the cat", "a"]
    assert not list(sampling(tokenizer, settings, 0, main_process=False)(model, 5))
    greedy = [continuation(model, tokenizer, "the cat", 4, temperature=0.0) for _ in range(2)]
    assert greedy[0] == greedy[1]
    tokenizer.bos_token, tokenizer.backend_tokenizer.post_processor = None, processors.ByteLevel()
    with pytest.raises(SettingsError, match=r"sample\.prompts: it is empty"):  # before the first step
        sampling(tokenizer, SampleSettings(prompts=["a", ""]), 0, main_process=True)


def test_texts_end_where_a_given_tokenizer_begins_the_next(load: Load, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the cat sat on a mat"] * 9, 280)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    other = tmp_path / "other"
    tiny_model(mixers="softmax", vocab_size=len(tokenizer), eos_token_id=end).save_pretrained(other)
    for changes in ((), ("name=more", f"init_from={other}", "model={}")):
        run = pretrain(load(f"data.tokenizer={tmp_path}/tokenizer", "train.steps=1", *changes), quiet=True)
        model = AutoModelForCausalLM.from_pretrained(run / "final")
        assert model.config.eos_token_id == model.generation_config.eos_token_id == [end, begin]


def test_trackers_get_what_the_journal_gets(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, dict[str, float]]] = []

    class Kept(GeneralTracker):
        name, requires_logging_directory = "tensorboard", True
        finished = False

        def __init__(self, run_name: str, logging_dir: str, **options: Any) -> None:
            super().__init__()

        @property
        def tracker(self) -> Any:
            return self

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            assert "recipe" in values

        def log(self, values: dict[str, float], step: int | None, **options: Any) -> None:
            logged.append((step or 0, values))

        def finish(self) -> None:
            Kept.finished = True

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Kept)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    run = pretrain(load("track=[tensorboard]", "train.steps=4"), quiet=True)
    assert [values["train/loss"] for _, values in logged if "train/loss" in values] == [loss for _, loss in losses(run)]
    assert [(step, values["valid/loss"]) for step, values in logged if "valid/loss" in values] == losses(run, "valid")
    assert Kept.finished


@pytest.mark.parametrize(("has_bf16", "precision"), [(False, "bf16"), (True, "bf16"), (False, "fp32")])
def test_emulated_bf16_is_announced(
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    has_bf16: bool,
    precision: str,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: has_bf16)
    pretrain(load("train.steps=1", f"train.precision={precision}", "validate.rows=4"))
    announced = "this CPU has no bf16 instructions" in capfd.readouterr().err
    assert announced == (precision == "bf16" and not has_bf16)


def test_rows_must_divide_among_micro_batches(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesalm.train.pretrain.prepare", lambda *_, **__: pytest.fail("prepared first"))
    with pytest.raises(SettingsError, match=r"train\.batch_rows: 4 must be a multiple of 1 process times"):
        pretrain(load("train.micro_rows=3"), quiet=True)


def test_tracker_that_is_not_installed_is_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(SettingsError, match="track: tensorboard is not installed"):
        pretrain(load("track=[tensorboard]"), quiet=True)
