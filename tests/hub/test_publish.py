"""A published folder loads, generates and trains where nobody has heard of mesalm."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled
from markdown_it import MarkdownIt
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline

from mesa_eval.suite import evaluate
from mesalm import MesaConfig, MesaForCausalLM, MesaForSequenceClassification
from mesalm.cli import main
from mesalm.hub.model_card import Evaluation, model_card
from mesalm.hub.open_model import locate, open_model, open_tokenizer
from mesalm.hub.publish import publish
from mesalm.hub.sample import sample
from mesalm.hub.training_record import training_lines

STRANGER = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mesalm", "mesa_eval", "mesa_kernels"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer("a b", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)
with torch.no_grad():
    logits = model.eval()(inputs.input_ids).logits[0, -1].tolist()
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
losses = []
for _ in range(4):
    loss = model.train()(inputs.input_ids, labels=inputs.input_ids).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimiser.step()
    optimiser.zero_grad()
    losses.append(float(loss.detach()))
# what a stranger saves carries the code on
model.save_pretrained(sys.argv[2])
again = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True)
assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
assert "mesalm" not in sys.modules
print(json.dumps({"output": output[0].tolist(), "logits": logits, "losses": losses}))
"""

STRANGER_CLASSIFIER = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mesalm", "mesa_eval", "mesa_kernels"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.no_grad():
    print(json.dumps(model(torch.arange(2, 11)[None]).logits[0].tolist()))
assert "mesalm" not in sys.modules
"""

NEIGHBOUR = """
import importlib.util, sys
from transformers import AutoModelForCausalLM
assert importlib.util.find_spec("mesalm") is not None
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, mesa_backend="triton")
assert type(model).__module__.startswith("transformers_modules.")
assert "mesalm" not in sys.modules
try:
    model(model.dummy_inputs["input_ids"])
except ValueError as error:
    print(error)
"""

REVISED = """
import json, shutil, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
first, second, third, saved = map(Path, sys.argv[1:])
ids = torch.arange(2, 40)[None]
def score(model):
    with torch.no_grad():
        return model.eval()(ids).logits.double().sum().item()
def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
models = [load(folder) for folder in (first, second, third, first)]
# what a stranger saves again is told apart by its code too
for name, model in zip(("one", "two"), models):
    model.save_pretrained(saved / name / "final")
models += [load(saved / name / "final") for name in ("one", "two")]
shutil.copyfile(second / "mesa_chunked.py", first / "mesa_chunked.py")
models.append(load(first))
headed = AutoModelForSequenceClassification.from_pretrained(third, trust_remote_code=True)
assert isinstance(headed.config, type(models[2].config))
assert "mesalm" not in sys.modules
print(json.dumps([score(model) for model in models]))
"""


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


@pytest.fixture
def run(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Return a finished run folder of a small hybrid."""
    torch.manual_seed(0)
    config = MesaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        mixers=["mesa", "linear", "softmax"],
        initializer_range=0.3,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    folder = tmp_path / "run"
    MesaForCausalLM(config).save_pretrained(folder / "final")
    tokenizer.save_pretrained(folder / "final")
    recipe = {"seed": 7, "data": {"sources": [{"name": "files", "files": ["/somewhere/shelf.jsonl.gz"]}]}}
    machine = {"versions": {"torch": "2"}, "device": "cpu: small", "world": 2, "prepared": "NOWHERE"}
    events = [
        {"event": "start", "recipe": recipe, **machine},
        {"event": "step", "step": 1, "tokens": 130, "loss": 5.5},
        {"event": "valid", "step": 5, "tokens": 600, "loss": 4.5, "bits_per_byte": 3.5},
        {"event": "valid", "step": 9, "tokens": 1234, "loss": 3.25, "bits_per_byte": 2.5},
        {"event": "end", "step": 10, "tokens": 1300, "loss": 3.125, "seconds": 12.0},
    ]
    (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_a_stranger_loads_generates_and_trains(run: Path, tmp_path: Path) -> None:
    folder = publish(str(run), tmp_path / "published" / "tiny")
    assert (folder / "model.safetensors").is_file()
    assert not list(folder.glob("*.bin"))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STRANGER, str(folder), str(tmp_path / "saved")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout.splitlines()[-1])
    model, words = open_model(str(run)), open_tokenizer(str(folder))
    inputs = words("a b", return_tensors="pt")
    with torch.no_grad():
        logits = model(inputs.input_ids).logits[0, -1]
    torch.testing.assert_close(torch.tensor(seen["logits"]), logits, atol=1e-5, rtol=1e-5)
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert seen["output"] == expected[0].tolist()
    assert seen["losses"][-1] < seen["losses"][0]


def test_here_the_installed_class_opens_a_published_folder(run: Path, tmp_path: Path) -> None:
    folder = publish(str(run), tmp_path / "published")
    assert type(open_model(str(folder))) is MesaForCausalLM
    # also where the folder's own code is allowed: classes registered by an import of mesalm go first
    assert type(open_model(str(folder), trust_remote_code=True)) is MesaForCausalLM


def test_a_classifier_keeps_its_head(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MesaConfig(vocab_size=258, pad_token_id=0, num_labels=3, **sizes)
    model = MesaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    folder = publish(str(tmp_path / "model"), tmp_path / "published")
    again = AutoModelForSequenceClassification.from_pretrained(folder)
    ids = torch.randint(2, 258, (2, 9))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForSequenceClassification" in card
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STRANGER_CLASSIFIER, str(folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = model(torch.arange(2, 11)[None]).logits[0]
    torch.testing.assert_close(torch.tensor(json.loads(result.stdout.splitlines()[-1])), expected)


def test_the_code_of_the_folder_uses_kernels_that_are_installed(run: Path, tmp_path: Path) -> None:
    """The folder's code runs where mesalm is installed but not imported, and asks mesa_kernels if that is there."""
    folder = publish(str(run), tmp_path / "published")
    kernels = tmp_path / "site" / "mesa_kernels"
    kernels.mkdir(parents=True)
    (kernels / "__init__.py").write_text(
        "def supports(*operands, **settings):\n    return False, 'asked the kernels'\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NEIGHBOUR, str(folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "1",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path]),
        },
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "asked the kernels" in result.stdout


def test_a_published_tokenizer_begins_texts_as_training_did(run: Path, tmp_path: Path) -> None:
    """Even of a run whose saved tokenizer did not; the plain call, the pipeline and `mesalm sample` then agree."""
    assert open_tokenizer(str(run))("a b").input_ids[0] != 1
    folder = publish(str(run), tmp_path / "published")
    words = open_tokenizer(str(folder))
    assert words("a b").input_ids == [1, *open_tokenizer(str(run))("a b").input_ids]
    written = sample(str(run), "a b", tokens=6, temperature=0)
    inputs = words("a b", return_tensors="pt")
    made = open_model(str(folder)).generate(**inputs, max_new_tokens=6, do_sample=False)
    assert words.decode(made[0, inputs.input_ids.shape[1] :], skip_special_tokens=True) == written
    write = pipeline("text-generation", model=str(folder), device="cpu")
    assert write("a b", max_new_tokens=6, do_sample=False, return_full_text=False)[0]["generated_text"] == written


def test_each_folder_runs_its_own_code(run: Path, tmp_path: Path) -> None:
    """Folders of one name with different code, a folder edited in place, and folders saved again, in one process."""
    folders = [publish(str(run), tmp_path / name / "final") for name in ("first", "second", "third")]
    for folder, file, old, new in (
        (folders[1], "mesa_chunked.py", "made.value * made.input_gate", "made.value * made.input_gate * 2.0"),
        (folders[2], "layers.py", "outputs = inputs * weight[:, 0]", "outputs = inputs * weight[:, 0] * 2.0"),
    ):
        code = (folder / file).read_text()
        assert old in code
        (folder / file).write_text(code.replace(old, new))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REVISED, *map(str, folders), str(tmp_path / "saved")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "1",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        check=False,
    )
    assert result.returncode == 0, result.stderr
    first, second, third, again, saved, saved_second, edited = json.loads(result.stdout.splitlines()[-1])
    assert first == again == saved
    assert second == saved_second == edited
    assert len({first, second, third}) == 3


def test_the_card_tells_what_the_journal_knows(run: Path, tmp_path: Path) -> None:
    text = (publish(str(run), tmp_path / "published", licence="apache-2.0") / "README.md").read_text()
    for words in (
        "files (shelf.jsonl.gz)",
        "1,300 tokens in 10 steps; training loss at the end 3.1250",
        "from 5.5000 at step 1",
        "held-out loss 3.2500 nats a token, 2.5000 bits a byte, after 1,234 tokens (4.5000 after 600)",
        "hardware: cpu: small, 2 processes; 12 seconds",
        "licence of the weights: apache-2.0",
        "versions: torch 2",
    ):
        assert words in text
    assert "/somewhere" not in text
    assert "not known" in model_card(open_model(str(run)), "tiny", None)


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
    for wrong in ("odd.json", "none.json"):
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


def test_a_model_is_found_or_its_absence_explained(run: Path, tmp_path: Path) -> None:
    assert locate(str(run)) == str(run / "final")
    assert locate(str(run / "final")) == str(run / "final")
    assert locate("owner/name") == "owner/name"
    with pytest.raises(ValueError, match="there is no such folder"):
        locate(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no config\.json here"):
        locate(str(tmp_path))
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "journal.jsonl").write_text("")
    with pytest.raises(ValueError, match="no final/ yet"):
        locate(str(tmp_path / "young"))


def test_sampling_streams_what_it_returns(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = sample(str(run), "abc", tokens=6, temperature=0)
    assert capsys.readouterr().out.strip("\n").endswith(text.strip("\n"))
    assert sample(str(run), "", tokens=4, seed=3) == sample(str(run), "", tokens=4, seed=3)
    with pytest.raises(ValueError, match="temperature"):
        sample(str(run), "abc", temperature=-1)
