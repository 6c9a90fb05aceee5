"""The mixer of docs/extending.md, a user's own file, in every stage from the recipe to a stranger's machine."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from transformers import dynamic_module_utils

from mesalm import MesaForCausalLM
from mesalm.cli import main
from mesalm.files import file_hash, import_file
from mesalm.hub.open_model import open_tokenizer
from mesalm.hub.publish import add_code
from mesalm.model.mixer_gated import GATES
from mesalm.model.mixer_linear import LinearMixer
from mesalm.model.mixer_mesa import MesaMixer
from mesalm.model.mixers import MIXERS, register_mixer

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
CODE = re.search(r'^```python title="normalised.py"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)[1]
RECIPE = """
name: own
code: [normalised.py]
data: {sources: [{name: files, files: text.jsonl}], vocab_size: 280, sequence_length: 16, valid_fraction: 0.2}
model: {hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 2, mixers: normalised}
train: {steps: 2, batch_rows: 2, device: cpu}
checkpoint: {every: 2}
"""


def forget() -> None:
    """Make this process as one that has not imported the file, nor code of a published folder."""
    MIXERS.pop("normalised", None)
    for name in [name for name in sys.modules if name.startswith(("normalised_", "transformers_modules"))]:
        del sys.modules[name]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with the file, a recipe and its text, and work there."""
    (tmp_path / "normalised.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "own.yaml").write_text(RECIPE, encoding="utf-8")
    lines = [
        json.dumps({"text": f"The {word} is red, the {word} is sweet."}) for word in ("fig", "plum", "pear", "date")
    ]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MESALM_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path
    forget()


def test_it_trains_resumes_samples_converts_and_is_published(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(line: str) -> tuple[int, str]:
        forget()
        code = main(line.split())
        return code, "".join(capsys.readouterr())

    assert run("train own.yaml")[0] == 0
    code, said = run("train own.yaml train.steps=4")
    assert code == 0
    assert "resuming from step-00000002" in said
    (own / "normalised.py").write_text(CODE + "\n", encoding="utf-8")
    code, said = run("train own.yaml train.steps=6")
    assert code == 2
    assert "was trained with other code, normalised.py has changed; restore the file" in said
    (own / "normalised.py").write_text(CODE, encoding="utf-8")
    code, said = run("sample runs/own --tokens 3")
    assert code == 2
    assert said.count("\n") == 1
    assert "'normalised' is not a mixer" in said
    assert "--code FILE" in said
    code, said = run("sample runs/own --tokens 3 --code normalised.py --prompt The")
    assert (code, said[:3]) == (0, "The")
    evaluate = "eval runs/own --text text.jsonl --task none --device cpu --out scores --code normalised.py"
    assert run(evaluate)[0] == 0
    assert "4 of 4 parts from an earlier run" in run(evaluate)[1]
    scores = json.loads((own / "scores/scores/own.json").read_text(encoding="utf-8"))
    assert scores["protocol"]["code"] == {"normalised.py": file_hash(own / "normalised.py")}
    (own / "normalised.py").write_text(CODE + "\n", encoding="utf-8")
    assert "from an earlier run" not in run(evaluate)[1]  # other code gives other figures
    (own / "normalised.py").write_text(CODE, encoding="utf-8")
    assert run("train own.yaml name=soft model.mixers=softmax")[0] == 0
    assert run("convert runs/soft converted --mixer normalised --tokens 64 --code normalised.py")[0] == 0
    assert run("publish runs/own published --code normalised.py")[0] == 0
    forget()
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which transformers adds its cache of code
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(own / "modules"))
    strange = dynamic_module_utils.get_class_from_dynamic_module(
        "modeling_mesa.MesaForCausalLM", str(own / "published")
    )
    assert not issubclass(strange, MesaForCausalLM)
    prompt = open_tokenizer("published")("The", return_tensors="pt")
    written = strange.from_pretrained(own / "published").generate(**prompt, max_new_tokens=3, do_sample=False)
    assert written.shape[1] - prompt["input_ids"].shape[1] == 3
    assert "normalised" not in MIXERS


def test_from_pretrained_says_what_to_import(own: Path) -> None:
    import_file(own / "normalised.py")
    tiny_model(mixers="normalised").save_pretrained(own / "saved")
    forget()
    with pytest.raises(ValueError, match=r"'normalised' is not a mixer; .* first import the file that registers it"):
        MesaForCausalLM.from_pretrained(own / "saved")
    import_file(own / "normalised.py")
    assert MesaForCausalLM.from_pretrained(own / "saved").config.mixers == "normalised"


def test_a_file_runs_once_for_each_of_its_contents(own: Path) -> None:
    first = import_file(own / "normalised.py")
    assert import_file(own / "normalised.py") is first
    (own / "normalised.py").write_text(CODE.replace("V + 1", "V+1"), encoding="utf-8")
    assert import_file(own / "normalised.py") is not first
    (own / "normalised.py").write_text("1 / 0", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"normalised.py: ZeroDivisionError: division by zero; --traceback"):
            import_file(own / "normalised.py")
    with pytest.raises(ValueError, match=r"absent\.py: there is no such file"):
        import_file(own / "absent.py")


def test_gates_stay_float32_beside_the_parameters_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Decayed(LinearMixer):
        name = "decayed"

    monkeypatch.setattr("mesalm.model.mixers.MIXERS", own := {})
    register_mixer(Decayed, float32=("decay",))
    assert own["decayed"].float32 == (*GATES, "decay")


def test_a_mixer_that_cannot_work_is_refused(own: Path) -> None:
    with pytest.raises(ValueError, match="Linear: has no name; derive it from GatedMixer"):
        register_mixer(torch.nn.Linear)
    with pytest.raises(ValueError, match="MesaMixer: 'mesa' is one of our mixers"):
        register_mixer(MesaMixer)


@pytest.mark.parametrize(
    ("name", "code", "fault"),
    [
        ("my-mixer.py", CODE, "cannot lie beside the model's code under this name"),
        ("layers.py", CODE, "cannot lie beside the model's code under this name"),
        (
            "normalised.py",
            CODE + "import mesalm.files\n",
            "'import mesalm.files' needs mesalm; write `from mesalm.model",
        ),
    ],
)
def test_a_file_that_no_stranger_could_load_is_not_published(name: str, code: str, fault: str, own: Path) -> None:
    (own / name).write_text(code, encoding="utf-8")
    import_file(own / name)
    tiny_model(mixers="normalised").save_pretrained(own / "saved")
    with pytest.raises(ValueError, match=re.escape(fault)):
        add_code(own / "saved")
