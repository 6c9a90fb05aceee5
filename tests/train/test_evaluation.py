"""Few-shot tasks and copying while training: the numbers of `mesalm eval`, and a run that takes no notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesa_eval.evaluate import evaluate
from mesa_eval.measures.copying import score_copying
from mesa_eval.measures.probe import make_probe
from mesa_eval.reading.scoring import Scorer
from mesalm.journal import read_journal
from mesalm.settings import SettingsError
from mesalm.train.pretrain import pretrain
from mesalm.train.recipe import Recipe

SENTENCE = "the cat sat on a mat while dogs ran over red hills and old men told long tales of ships"
LENGTH = "data.sequence_length=128"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of pairs whose prompts of 0, 2 and 8 shots fit 128 tokens."""
    path = tmp_path / "next.jsonl"
    words = SENTENCE.split()
    pairs = [{"input": words[i], "output": words[i + 1], "split": "eval" if i % 2 else "pool"} for i in range(19)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def lines(recipe: Recipe, event: str) -> list[dict[str, Any]]:
    return [line for line in read_journal(recipe.folder / "journal.jsonl") if line["event"] == event]


def wanted(task: Path) -> tuple[str, ...]:
    return LENGTH, "evaluate.every=4", f"evaluate.tasks=[{task}]", "train.steps=10", "checkpoint.every=3"


def test_a_run_measures_what_eval_measures_and_learns_the_same(
    load: Callable[..., Recipe], stopped: Callable[..., Recipe], task: Path, tmp_path: Path
) -> None:
    without, probed = load("name=without", *wanted(task), "evaluate.every=0"), load("name=probed", *wanted(task))
    pretrain(without, quiet=True)
    pretrain(probed, quiet=True, evaluation=make_probe)
    assert [line["loss"] for line in lines(probed, "step")] == [line["loss"] for line in lines(without, "step")]
    found = lines(probed, "evaluation")
    assert [(line["step"], line["task"], line["shots"]) for line in found] == [
        (step, *asked)
        for step in (4, 8, 10)
        for asked in (("random tokens", None), ("next", 0), ("next", 2), ("next", 8))
    ]
    assert found[1]["answer"] != found[-3]["answer"]  # it has learned something

    scores = evaluate([str(probed.folder)], tasks=[str(task)], device="cpu", quiet=True, out=tmp_path / "out")
    measures = {
        (measure.shots, measure.metric): np.sum(measure.numerator) / np.sum(measure.denominator)
        for part in scores[0].parts
        for measure in part.measures
        if measure.task == "next" and not measure.variant
    }
    for line in found[-3:]:
        for metric in ("answer", "accuracy"):
            assert line[metric] == pytest.approx(measures[line["shots"], metric], abs=1e-6)
    copies = score_copying(Scorer.open(str(probed.folder), device="cpu", quiet=True), 128, 10, 0)
    assert copies is not None
    assert found[-4]["score"] == pytest.approx(np.subtract(copies.fresh, copies.repeated).mean(), abs=1e-6)
    assert found[-4]["accuracy"] == pytest.approx(np.mean(copies.accuracy))

    parts = stopped(load("name=parts", *wanted(task)), 5, evaluation=make_probe)
    pretrain(parts, quiet=True, evaluation=make_probe)
    assert lines(parts, "evaluation") == found


def test_what_cannot_be_asked_is_told_before_the_first_step(load: Callable[..., Recipe], task: Path) -> None:
    for change, said in (
        ("evaluate.tasks=[word_label]", "word_label"),
        ("evaluate.tasks=[copying]", "task copying: the text holds"),
        ("evaluate.tasks=[word_labels]", "evaluate.tasks: word_labels: at 0 showings a prompt exceeds 128 tokens"),
    ):
        recipe = load("name=refused", *wanted(task), change)
        with pytest.raises(ValueError, match=said) as caught:
            pretrain(recipe, resume="never", quiet=True, evaluation=make_probe)
        assert "\n" not in str(caught.value)
        assert not lines(recipe, "step")
    with pytest.raises(SettingsError, match="needs an evaluation, as `mesalm train` has"):
        pretrain(load("name=library", *wanted(task)), quiet=True)
    with pytest.raises(SettingsError, match=r"set evaluate\.every=0"):
        load(*wanted(task), "parallelism.context=2", "model.attention_dropout=0")


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}])
def test_two_processes_share_an_evaluation(
    load: Callable[..., Recipe], recipe_file: Path, task: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    changes = (*wanted(task), "train.micro_rows=1", "model.attention_dropout=0")
    one = load("name=one", *changes)
    pretrain(one, quiet=True, evaluation=make_probe)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = [sys.executable, *launcher, "-m", "mesalm", "train", str(recipe_file), *changes, "name=two"]
    done = subprocess.run(
        [*command, "arms={}"], cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    two = load("name=two", *changes)
    assert len(lines(two, "evaluation")) == len(lines(one, "evaluation")) == 12
    for ours, other in zip(lines(two, "evaluation"), lines(one, "evaluation"), strict=True):
        assert ours == pytest.approx(other, abs=1e-4)
