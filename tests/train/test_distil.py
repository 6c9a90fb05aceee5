"""Training towards another model's distributions, and recovering a converted model by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch.nn.functional import cross_entropy

from mesalm.cli import main
from mesalm.data.prepared import Prepared
from mesalm.data.stream import Position, RowStream
from mesalm.hub.carry_over import open_softmax_model
from mesalm.hub.open_model import open_model
from mesalm.journal import Journal, read_journal
from mesalm.runs import RunFiles, RunRecord
from mesalm.settings import SettingsError
from mesalm.train.distil import Distillation, recovery_recipe
from mesalm.train.launch import make_accelerator
from mesalm.train.loop import Probe
from mesalm.train.optim import OptimSettings
from mesalm.train.progress import Display
from mesalm.train.schedule import ScheduleSettings
from mesalm.train.training import RunSettings


def batch_of(rows: int = 2) -> dict[str, torch.Tensor]:
    """Return rows of two documents each, the labels of the first four tokens left out."""
    ids = torch.randint(2, 61, (rows, 12), generator=torch.Generator().manual_seed(5))
    positions = torch.arange(6).repeat(2).expand(rows, -1)
    labels = ids.clone()
    labels[:, :4] = -100
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def divergence(model: Any, teacher: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean of cross-entropy less entropy, token by token."""
    read = {name: batch[name] for name in ("input_ids", "position_ids")}
    found, wanted = model(**read).logits[:, 3:-1], teacher(**read).logits[:, 3:-1].softmax(-1).detach()
    entropy = -(wanted * wanted.log()).sum(-1)
    return cross_entropy(found.flatten(0, 1), wanted.flatten(0, 1)) - entropy.mean()


def cross_entropy_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean loss of the scored tokens on the text."""
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
    return cross_entropy(logits[:, 3:-1].flatten(0, 1), batch["labels"][:, 4:].flatten())


def test_the_loss_is_the_divergence_of_the_scored_tokens_while_it_trains(tmp_path: Path) -> None:
    teacher, model, batch = tiny_model(seed=1, mixers="softmax"), tiny_model(seed=2), batch_of()
    model.token_loss = object()  # what makes losses without logits must not stand in the way
    wanted, gradients = [], {}

    @torch.enable_grad()
    def look(model: Any, step: int) -> list[dict[str, Any]]:
        text = model.eval()(**batch).loss
        assert text.item() == pytest.approx(cross_entropy_of(model, batch).item(), rel=1e-4)
        wanted.append(divergence(model, teacher, batch).item())
        model.train()
        model(**batch).loss.backward()
        gradients.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        model.zero_grad()
        divergence(model, teacher, batch).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)
        model.zero_grad()
        return []

    settings = RunSettings(steps=4, optim=OptimSettings(learning_rate=1e-2), schedule=ScheduleSettings(), log_every=1)
    rows = RowStream([0, 1], Position(3), 2, micro_rows=2, collate=lambda _: batch)
    files = RunFiles(tmp_path)
    with Journal(files.journal) as journal:
        options = {
            "accelerator": make_accelerator(device="cpu", precision="fp32"),
            "display": Display("run", 4, enabled=False),
        }
        Distillation(teacher)(
            model, rows, settings, files, journal, **options, start={}, probes=[Probe("look", 1, look)]
        )
    steps = [event for event in read_journal(files.journal) if event["event"] == "step"]
    losses = [step["loss"] for step in steps]
    cost = model.flops_per_token(12, steps[0]["solver_steps"]) + teacher.flops_per_token(12) / 3  # its forward pass
    assert steps[0]["flops"] == pytest.approx(cost * steps[0]["tokens"])
    assert losses[1:] == pytest.approx(wanted[:3], rel=1e-4)  # each step is told its loss before it
    assert wanted[-1] < 0.9 * losses[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert model.train()(**batch).loss.item() == pytest.approx(model.eval()(**batch).loss.item())  # as it was before


@pytest.mark.parametrize(
    ("key", "value"), [("init_from", "somewhere"), ("parallelism.context", "2"), ("train.z_loss", "1e-4")]
)
def test_what_does_not_go_with_recovery_is_refused(key: str, value: str, recipe_file: Path) -> None:
    with pytest.raises(SettingsError, match=f"^{key}: is not supported with --recover"):
        recovery_recipe(str(recipe_file), [f"{key}={value}", "model.attention_dropout=0"], Path("out"))
    recipe = recovery_recipe(str(recipe_file), ["train.steps=3"], Path("some/out"))
    assert (recipe.name, recipe.steps, recipe.init_from, recipe.arms) == ("out-recovered", 3, "some/out", {})


@pytest.mark.slow
def test_a_converted_model_is_recovered_and_gone_on_with(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe_file), "arms={}", "train.steps=200", "optim.learning_rate=1e-2"]) == 0
    run, out = str(tmp_path / "runs/tiny"), tmp_path / "out"
    assert main(["convert", run, str(out)]) == 0
    damaged = open_model(str(out))
    with torch.no_grad():
        damaged.model.layers[0].mixer.o_proj.weight.normal_(std=0.3)
    damaged.save_pretrained(out)
    recover = ["convert", run, str(out), "--recover", str(recipe_file), "optim.learning_rate=3e-3"]
    assert main(["convert", run, str(tmp_path / "no"), "--recover", str(recipe_file), "train.steps=0"]) == 2
    assert not (tmp_path / "no").exists()  # a recipe that does not serve is told before the work
    assert main(["convert", run, str(tmp_path / "no"), "train.steps=3"]) == 2
    assert main([*recover, "train.steps=40"]) == 0
    capsys.readouterr()
    assert main([*recover, "train.steps=40"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"recovered: {tmp_path / 'runs/out-recovered'}"]  # neither converted nor trained again
    assert main([*recover, "train.steps=40", "--layers", "none"]) == 2  # another conversion than is there
    teacher, rows = open_softmax_model(run), Prepared(RunRecord(Path(run)).prepared).rows("valid")
    ids = torch.tensor([row["input_ids"].tolist() for row in rows.select(range(8))])
    batch = {"input_ids": ids, "position_ids": torch.arange(ids.shape[1]).expand(len(ids), -1)}
    losses = [divergence(open_model(str(place)), teacher, batch).item() for place in (out, tmp_path / printed[0][11:])]
    assert losses[1] < 0.9 * losses[0]
