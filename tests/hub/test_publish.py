"""A published folder loads, generates and trains where nobody has heard of mesalm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from mesalm import MesaConfig, MesaForCausalLM
from mesalm.hub.model_card import model_card
from mesalm.hub.open_model import locate, open_model, open_tokenizer
from mesalm.hub.publish import publish
from mesalm.hub.sample import sample

STRANGER = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mesalm", "mesa_eval", "mesa_kernels"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer("a b", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)
model.train()(inputs.input_ids, labels=inputs.input_ids).loss.backward()
assert all(parameter.grad is not None for parameter in model.parameters())
assert "mesalm" not in sys.modules
with torch.no_grad():
    print(json.dumps({"output": output[0].tolist(), "logits": model.eval()(inputs.input_ids).logits[0, -1].tolist()}))
"""


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
    events = [
        {"event": "start", "recipe": recipe, "versions": {"torch": "2"}},
        {"event": "valid", "step": 9, "tokens": 1234, "loss": 3.25, "bits_per_byte": 2.5},
        {"event": "end", "step": 10, "tokens": 1300, "loss": 3.125},
    ]
    (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_a_stranger_loads_generates_and_trains(run: Path, tmp_path: Path) -> None:
    folder = publish(str(run), tmp_path / "published" / "tiny")
    assert (folder / "model.safetensors").is_file()
    assert not list(folder.glob("*.bin"))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STRANGER, str(folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout.splitlines()[-1])
    model, words = open_model(str(run)), open_tokenizer(str(run))
    inputs = words("a b", return_tensors="pt")
    with torch.no_grad():
        logits = model(inputs.input_ids).logits[0, -1]
    torch.testing.assert_close(torch.tensor(seen["logits"]), logits, atol=1e-5, rtol=1e-5)
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert seen["output"] == expected[0].tolist()


def test_here_the_installed_class_opens_a_published_folder(run: Path, tmp_path: Path) -> None:
    folder = publish(str(run), tmp_path / "published")
    assert type(open_model(str(folder))) is MesaForCausalLM


def test_the_card_tells_what_the_journal_knows(run: Path, tmp_path: Path) -> None:
    text = (publish(str(run), tmp_path / "published") / "README.md").read_text()
    for words in ("files (shelf.jsonl.gz)", "1,300 tokens", "3.2500 nats", "2.5000 bits a byte", "library_name"):
        assert words in text
    assert "/somewhere" not in text
    assert "not known" in model_card(open_model(str(run)), "tiny", None)


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
