"""A published folder loads, generates and trains where nobody has heard of mesalm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline

from mesalm import MesaForCausalLM, MesaForSequenceClassification
from mesalm.hub.open_model import open_model, open_tokenizer
from mesalm.hub.publish import publish
from mesalm.hub.sample import sample

NOBODY = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mesalm", "mesa_eval", "mesa_kernels"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""

STRANGER = (
    NOBODY
    + """
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
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
classifier = AutoModelForSequenceClassification.from_pretrained(sys.argv[3], trust_remote_code=True)
with torch.no_grad():
    classes = classifier(torch.arange(2, 11)[None]).logits[0].tolist()
assert "mesalm" not in sys.modules
print(json.dumps({"output": output[0].tolist(), "logits": logits, "losses": losses, "classes": classes}))
"""
)

REVISED = """
import importlib.util, json, shutil, sys
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
assert importlib.util.find_spec("mesalm") is not None
assert "mesalm" not in sys.modules
asking = AutoModelForCausalLM.from_pretrained(first, trust_remote_code=True, mesa_backend="triton")
try:
    score(asking)
except ValueError as error:
    print(error)
print(json.dumps([score(model) for model in models]))
"""


def run_apart(code: str, *arguments: Path, at: Path, path: Sequence[Path | str] = ()) -> str:
    """Run code in a new process in the folder `at`, with `path` for PYTHONPATH; return what it prints."""
    environment = {"HF_HOME": str(at / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=at, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def classifier(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> tuple[MesaForSequenceClassification, Path]:
    """Return a model that classifies, and the folder that it was published to."""
    model = tiny_model(MesaForSequenceClassification, vocab_size=258, pad_token_id=0, num_labels=3)
    model.save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    return model, publish(str(tmp_path / "classifier"), tmp_path / "published classifier")


def test_a_stranger_loads_generates_and_trains(run: Path, classifier: tuple, tmp_path: Path) -> None:
    folder = publish(str(run), tmp_path / "published" / "tiny")
    assert (folder / "model.safetensors").is_file()
    assert not list(folder.glob("*.bin"))
    printed = run_apart(STRANGER, folder, tmp_path / "saved", classifier[1], at=tmp_path)
    seen = json.loads(printed.splitlines()[-1])
    model, words = open_model(str(run)), open_tokenizer(str(folder))
    inputs = words("a b", return_tensors="pt")
    with torch.no_grad():
        logits = model(inputs.input_ids).logits[0, -1]
        classes = classifier[0](torch.arange(2, 11)[None]).logits[0]
    torch.testing.assert_close(torch.tensor(seen["classes"]), classes)
    torch.testing.assert_close(torch.tensor(seen["logits"]), logits, atol=1e-5, rtol=1e-5)
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert seen["output"] == expected[0].tolist()
    assert seen["losses"][-1] < seen["losses"][0]


def test_here_the_installed_class_opens_a_published_folder(run: Path, tmp_path: Path) -> None:
    folder = publish(str(run), tmp_path / "published")
    assert type(open_model(str(folder))) is MesaForCausalLM
    # also where the folder's own code is allowed: classes registered by an import of mesalm go first
    assert type(open_model(str(folder), trust_remote_code=True)) is MesaForCausalLM


def test_a_classifier_keeps_its_head(classifier: tuple) -> None:
    model, folder = classifier
    again = AutoModelForSequenceClassification.from_pretrained(folder)
    ids = torch.randint(2, 258, (2, 9))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForSequenceClassification" in card


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
    """Folders of one name with different code, a folder edited in place, and folders saved again, in one process.

    There mesalm is installed but not imported, and mesa_kernels is asked.
    """
    folders = [publish(str(run), tmp_path / name / "final") for name in ("first", "second", "third")]
    for folder, file, old, new in (
        (folders[1], "mesa_chunked.py", "made.value * made.input_gate", "made.value * made.input_gate * 2.0"),
        (folders[2], "layers.py", "outputs = inputs * weight[:, 0]", "outputs = inputs * weight[:, 0] * 2.0"),
    ):
        code = (folder / file).read_text()
        assert old in code
        (folder / file).write_text(code.replace(old, new))
    kernels = tmp_path / "site" / "mesa_kernels"
    kernels.mkdir(parents=True)
    (kernels / "__init__.py").write_text(
        "def supports(*operands, **settings):\n    return False, 'asked the kernels'\n"
    )
    printed = run_apart(REVISED, *folders, tmp_path / "saved", at=tmp_path, path=[tmp_path / "site", *sys.path])
    assert "asked the kernels" in printed
    first, second, third, again, saved, saved_second, edited = json.loads(printed.splitlines()[-1])
    assert first == again == saved
    assert second == saved_second == edited
    assert len({first, second, third}) == 3
