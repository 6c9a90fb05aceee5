"""Publishing: the folder, its card, the Hub."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled
from markdown_it import MarkdownIt

from mesa_eval.evaluate import evaluate
from mesalm import MesaForCausalLM
from mesalm.cli import main
from mesalm.hub.model_card import Evaluation, model_card
from mesalm.hub.open_model import open_model, open_tokenizer
from mesalm.hub.publish import publish
from mesalm.hub.sample import sample
from mesalm.hub.training_record import training_lines

EVALUATIONS = [Evaluation("text", "bits per byte", "bits", 1.5, 1.4, 1.6)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that stands for the Hub: what is uploaded to owner/name lies under it."""
    place = tmp_path / "hub"

    def create_repo(self: HfApi, repo_id: str, **_: object) -> SimpleNamespace:
        (place / repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def create_commit(self: HfApi, repo_id: str, operations: list, **_: object) -> str:
        for operation in operations:
            shutil.copyfile(operation.path_or_fileobj, place / repo_id / operation.path_in_repo)
        return "commit"

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Path, **_: object) -> str:
        shutil.copytree(folder_path, place / repo_id, dirs_exist_ok=True)
        return "commit"

    def no_card(*_: object, **__: object) -> None:
        raise EntryNotFoundError("no card yet")

    for method in (create_repo, create_commit, upload_folder):
        monkeypatch.setattr(HfApi, method.__name__, method)
    monkeypatch.setattr(ModelCard, "load", no_card)
    return place


def test_the_card_tells_what_the_journal_knows(run: Path, tmp_path: Path) -> None:
    text = (publish(str(run), tmp_path / "published", licence="apache-2.0") / "README.md").read_text()
    for words in (
        "files (shelf.jsonl.gz)",
        "1,300 tokens in 10 steps; training loss at the end 3.1250",
        "from 5.5000 at step 1",
        "held-out loss 3.2500 nats per token, 2.5000 bits per byte, after 1,234 tokens (4.5000 after 600)",
        "hardware: cpu: small, 2 processes; 12 seconds",
        "licence of the weights: apache-2.0",
        "versions: torch 2",
    ):
        assert words in text
    assert "/somewhere" not in text
    assert "are unknown" in model_card(open_model(str(run)), "tiny", None)


def test_the_card_names_the_prepared_data(run: Path, tmp_path: Path) -> None:
    manifest = {
        "hash": "abc",
        "sources": [{"name": "files", "files": [{"name": "shelf.txt", "sha256": "123"}]}],
        "splits": {"train": {"documents": 3, "bytes": 4000, "tokens": 1000}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    journal = run / "journal.jsonl"
    journal.write_text(journal.read_text().replace("NOWHERE", str(tmp_path)))
    text = "\n".join(training_lines(run))
    assert "shelf.txt (sha256 `123`)" in text
    assert "train split: 3 documents, 4,000 bytes, 1,000 tokens" in text
    assert "`abc`" in text


def test_the_hub_understands_the_card(run: Path, tmp_path: Path) -> None:
    measured = [Evaluation("task/copying", "accuracy, 4 shots", "share", 0.25, 0.125, None), *EVALUATIONS]
    folder = publish(str(run), tmp_path / "published", licence="mit", evaluations=measured)
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.library_name == "transformers"
    assert {"mesa", "linear", "softmax", "mesalm"} <= set(card.data.tags)
    assert [result.metric_value for result in card.data.eval_results] == [0.25, 1.5]
    assert "| text | bits per byte, bits | 1.500 | 1.400 to 1.600 |" in card.text


def test_scores_of_an_evaluation_reach_the_card(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("some text that was held out. " * 40)
    (tmp_path / "odd.json").write_text("[]")
    evaluate([str(run)], "quick", texts=[str(tmp_path / "text.txt")], out=tmp_path / "out", device="cpu", quiet=True)
    scores = tmp_path / "out" / "scores" / "run.json"
    assert main(["publish", str(run), str(tmp_path / "published"), "--scores", str(scores)]) == 0
    assert "| text | all text (1 document), bits per byte |" in (tmp_path / "published" / "README.md").read_text()
    theirs = json.loads(scores.read_text())
    theirs["model"]["fingerprint"] = "of other weights"
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    for wrong in ("odd.json", "none.json", "theirs.json"):
        assert main(["publish", str(run), str(tmp_path / "other"), "--scores", str(tmp_path / wrong)]) == 2
        assert wrong in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_licence_that_the_hub_does_not_know_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong, hint in (("nonsense-licence", "other"), ("Apache-2.0", "apache-2.0"), ("", "mit")):
        assert main(["publish", str(run), str(tmp_path / "published"), "--licence", wrong]) == 2
        said = capsys.readouterr().err
        assert f"licence {wrong!r}" in said
        assert hint in said
    assert not (tmp_path / "published").exists()


def test_the_card_reads_names_as_text(run: Path, tmp_path: Path) -> None:
    journal = run / "journal.jsonl"
    journal.write_text(journal.read_text().replace("shelf.jsonl.gz", "<b>a</b> [x](y) **z**").replace("small", "<i>"))
    name = "a <b>`|\\"
    odd = Evaluation("task/<i>|", "[x](y)", "`share`", 0.5, None, None)
    text = model_card(open_model(str(run)), name, run, licence="other", evaluations=[odd])
    page = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    assert not re.findall("<(?:b|i|a|em|strong|img)[ >]", page)
    assert re.search("<h1>(.*)</h1>", page)[1] == html.escape(name)
    assert page.count("<td>") == 4
    assert json.dumps(name) in html.unescape(page)


def test_pushing_uploads_the_whole_folder(run: Path, tmp_path: Path, hub: Path) -> None:
    assert main(["publish", str(run), str(tmp_path / "published"), "--push", "me/tiny"]) == 0
    there = hub / "me" / "tiny"
    assert {file.name for file in there.iterdir()} == {file.name for file in (tmp_path / "published").iterdir()}
    assert 'from_pretrained("me/tiny", trust_remote_code=True)' in (there / "README.md").read_text()
    assert "# tiny" in (there / "README.md").read_text()


def test_push_to_hub_of_model_and_tokenizer(run: Path, hub: Path) -> None:
    model, words = open_model(str(run)), open_tokenizer(str(run))
    model.push_to_hub("me/pushed")
    words.push_to_hub("me/pushed")
    again = open_model(str(hub / "me" / "pushed"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert open_tokenizer(str(hub / "me" / "pushed")).get_vocab() == words.get_vocab()


def test_a_refusal_of_the_hub_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OfflineModeIsEnabled("no network here\nand more")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    assert main(["publish", str(run), str(tmp_path / "published"), "--push", "me/tiny"]) == 2
    assert "me/tiny: " in capsys.readouterr().err
    assert (tmp_path / "published" / "model.safetensors").is_file()


def test_publishing_never_writes_over_anything(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "full"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="exists and is not empty"):
        publish(str(run), target)
    assert [entry.name for entry in target.iterdir()] == ["mine.txt"]


def test_any_token_may_be_sampled(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, made = MesaForCausalLM.generate, []

    def kept(self: MesaForCausalLM, *arguments: Any, **options: Any) -> Any:
        made.append(generate(self, *arguments, **options))
        return made[-1]

    monkeypatch.setattr(MesaForCausalLM, "generate", kept)
    sample(str(run), "abc", tokens=40, temperature=1e6, top_p=1.0)
    ids = made[0].clone()
    logits = open_model(str(run))(ids).logits[0, -41:-1]
    ranks = (logits > logits.gather(1, ids[0, -40:, None])).sum(1)
    assert ranks.max() > 200  # of 258


def test_sampling_streams_what_it_returns(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = sample(str(run), "abc", tokens=6, temperature=0)
    assert capsys.readouterr().out.strip("\n").endswith(text.strip("\n"))
    assert sample(str(run), "", tokens=4, seed=3) == sample(str(run), "", tokens=4, seed=3)
    with pytest.raises(ValueError, match="temperature"):
        sample(str(run), "abc", temperature=-1)
