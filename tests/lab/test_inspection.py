"""`mesalm inspect` on small random models, in process."""

from __future__ import annotations

import ast
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mesalm import mesa_attention
from mesalm.cli import main
from mesalm.data.data_settings import DataSettings
from mesalm.data.prepare import prepare
from mesalm.hub.open_model import open_model, open_tokenizer
from mesalm.lab.inspection.capture import Reading, watched
from mesalm.lab.inspection.held_out import cut_windows, held_out_text
from mesalm.lab.inspection.reach import Reach
from mesalm.lab.inspection.recorded import load_recorded, parse_heads, recorded_metadata
from mesalm.lab.inspection.run import inspect_model, run_windows

SaveModel = Callable[..., str]
MIXED = [(0, "mesa"), (1, "softmax"), (2, "linear")]
LAB = Path(__file__).parents[2] / "mesalm/lab"


def test_the_command_prints_a_row_a_head_and_writes_numbers_and_figure(
    save_model: SaveModel, text_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = save_model(["mesa", "softmax", "linear"], layers=3), tmp_path / "out"
    arguments = ["inspect", model, "--text", text_file, "--length", "128", "--tokens", "512", "--device", "cpu"]
    assert main([*arguments, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "layer 1 is softmax: it has no gates and no systems" in shown
    gates, systems, reach = (part.splitlines() for part in re.split("Systems,|Reach,", shown))
    rows = [line.split() for line in gates if re.match(r" *\d\.\d ", line)]
    assert [row[0] for row in rows] == ["0.0", "0.1", "2.0", "2.1"]
    assert [len(row) for row in rows] == [10] * 4  # the share is followed by its per-cent sign
    assert [line.split()[0] for line in systems if re.match(r" *\d\.\d ", line)] == ["0.0", "0.1"]
    read = [line.split() for line in reach if re.match(r" *\d\.\d ", line)]
    assert [row[:2] for row in read] == [[f"{layer}.{head}", name] for layer, name in MIXED for head in (0, 1)]
    assert "…" not in shown

    numbers = json.loads((out / "inspect.json").read_text("utf-8"))
    assert [(head["layer"], head["head"], head["mixer"]) for head in numbers["heads"]] == [
        (0, 0, "mesa"),
        (0, 1, "mesa"),
        (2, 0, "linear"),
        (2, 1, "linear"),
    ]
    for found in numbers["reach"]:
        assert sum(found["lags"]) == pytest.approx(1.0)
        assert (found["key_taps"] is None) == (found["mixer"] == "softmax")
    mesa, linear = numbers["heads"][0], numbers["heads"][2]
    assert 0 < mesa["dimension"] < mesa["rank"] + 1 <= 9  # keys of 8 dimensions
    assert linear["dimension"] is None
    assert len(mesa["condition"]) == 8 * numbers["windows"]
    assert mesa["ridge"][0] < mesa["ridge"][1] < mesa["ridge"][2]
    assert mesa["steps"] > 0
    assert linear["condition"] == []
    assert linear["ridge"] is None
    assert rows[0][1] == f"{mesa['gamma']:.4f}"
    assert numbers["text"]["documents"] == ["long", "middle", "long", "long"]
    assert len(numbers["text"]["sources"][0]["files"][0]["sha256"]) == 64

    root = ElementTree.fromstring((out / "inspect.svg").read_text("utf-8"))
    words = " ".join("".join(element.itertext()) for element in root.iter() if element.tag.endswith("text"))
    for phrase in ("layer 0, mesa", "layer 2, linear", "solves nothing", "head 1", "Input gate", "ridge-scaled"):
        assert phrase in words
    links = [value for element in root.iter() for key, value in element.attrib.items() if key.endswith("href")]
    assert all(link.startswith("#") for link in links)


def test_a_head_that_attends_one_token_back_is_said_to_bind(save_model: SaveModel, text_file: str) -> None:
    """Make the softmax layer's attention and the mesa layer's convolution bind, and see both named."""
    model = open_model(save_model(["softmax", "mesa"]), dtype=torch.float32)
    implementation = model.config._attn_implementation
    mesa = model.model.layers[1].mixer
    with torch.no_grad():
        mesa.conv.weight[mesa.heads * mesa.head_dim :] = torch.tensor([0.1, 0.9, 0.0, 0.0])
    windows = cut_windows(held_out_text("model", None, [text_file]), open_tokenizer(model.name_or_path), 64, 2)

    def look() -> list[Reach]:
        return [head for layer in run_windows(model, windows, None, quiet=True)[1] for head in layer.reaches()]

    assert [head.binds for head in look()] == [False, False, True, True]
    assert look()[2].key_taps == pytest.approx([0.1, 0.9, 0.0, 0.0])
    # one embedding for all tokens, and queries turned back by one position: rotary scores are highest one token back
    softmax, angles = model.model.layers[0].mixer, model.model.rotary_emb.inv_freq
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.ones_like(model.model.embed_tokens.weight))
        for projection, numbers in (
            (softmax.q_proj, torch.cat([angles.cos(), -angles.sin()]) * 1e3),
            (softmax.k_proj, torch.cat([torch.ones_like(angles), torch.zeros_like(angles)])),
        ):
            rows, width = projection.weight.shape
            projection.weight.copy_(numbers.repeat(rows // len(numbers)).unsqueeze(1) / width)
    assert [head.lags[1] for head in look()[:2]] == [1.0, 1.0]
    assert all(head.binds for head in look())
    assert model.config._attn_implementation == implementation


def test_what_is_seen_is_what_the_operator_reads(save_model: SaveModel, text_file: str) -> None:
    """The operands seen, given to the operator anew, lead to the model's own output, and the model is left alone."""
    model = open_model(save_model("mesa", tolerance=1e-6), dtype=torch.float32)
    seen: list[Reading] = []
    inputs = torch.randint(2, 258, (1, 96), generator=torch.Generator().manual_seed(0))
    outputs = {}
    for layer in model.model.layers:
        layer.mixer.output_norm.register_forward_hook(
            lambda _, taken, __, name=layer.mixer.layer_idx: outputs.update({name: taken[0]})
        )
    with watched(model, seen.append), torch.no_grad():
        before = model(input_ids=inputs).logits
    assert [reading.layer for reading in seen] == [0, 1]
    for reading in seen:
        assert reading.ridge is not None
        again = mesa_attention(*reading[2:7], reading.ridge, tolerance=1e-6)
        torch.testing.assert_close(again, outputs[reading.layer], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=inputs).logits, before, rtol=0, atol=0)
    assert len(seen) == 2
    assert all("read" not in vars(layer.mixer) for layer in model.model.layers)


@pytest.mark.parametrize(("gates", "per_channel"), [(False, True), (True, False)])
def test_ungated_layers_and_one_ridge_a_head(
    gates: bool, per_channel: bool, save_model: SaveModel, text_file: str, tmp_path: Path
) -> None:
    model = save_model("mesa", gates=gates, ridge_per_channel=per_channel)
    found = inspect_model(
        model, texts=[text_file], length=128, tokens=128, device="cpu", out=tmp_path / "out", quiet=True
    )
    head = found.heads[0]
    assert ("the model has no gates: gamma and beta are 1" in found.notes) == (not gates)
    assert (head.memory is None) == (not gates)
    assert head.ridge is not None
    assert (head.ridge[0] == head.ridge[2]) == (not per_channel)


def test_recorded_operands_come_back(save_model: SaveModel, text_file: str, tmp_path: Path) -> None:
    model, file = save_model(["mesa", "linear", "mesa"], layers=3), tmp_path / "deep/recorded.safetensors"
    arguments = ["inspect", model, "--text", text_file, "--length", "128", "--tokens", "128", "--device", "cpu"]
    arguments += ["--out", str(tmp_path / "out"), "--record", str(file)]
    assert main([*arguments, "--record-heads", "2.1,0.0,2.0"]) == 0

    opened = open_model(model, dtype=torch.float32)
    text = held_out_text(model, None, [text_file])
    tokens = cut_windows(text, open_tokenizer(model), 128, 1).tokens
    seen: list[Reading] = []
    with watched(opened, seen.append), torch.no_grad():
        opened(input_ids=torch.tensor(tokens))
    first, last = load_recorded(file)
    made = file.read_bytes()
    assert main([*arguments, "--record-heads", "2.1,0.0,2.0"]) == 0
    assert file.read_bytes() == made
    assert list(first) == ["query", "key", "value", "log_forget", "input_gate", "ridge"]
    assert all(tensor.dtype == torch.float32 for tensor in first.values())
    assert first["query"].shape == (1, 128, 2, 8)  # query heads 0 and 1 read key head 0
    assert first["ridge"].shape == (1, 8)
    assert last["key"].shape == (1, 128, 2, 8)
    torch.testing.assert_close(first["query"], seen[0].query[:, :, :2], rtol=0, atol=1e-3)
    for name in ("log_forget", "input_gate"):
        torch.testing.assert_close(last[name], getattr(seen[2], name), rtol=0, atol=0)
    # float16 has 11 bits, but unit length is restored to float32's
    assert float((last["key"].norm(dim=-1) - 1).abs().max()) < 1e-6
    full = mesa_attention(*seen[2][2:7], seen[2].ridge, tolerance=1e-6)
    torch.testing.assert_close(mesa_attention(**last, tolerance=1e-6), full, rtol=0, atol=2e-3)

    metadata = recorded_metadata(file)
    assert metadata["heads"] == {"0": [0], "2": [0, 1]}
    assert metadata["tokens"] == 128
    assert metadata["text"]["documents"] == ["long"]


def test_whole_layers_are_recorded_if_no_head_is_named(save_model: SaveModel, text_file: str, tmp_path: Path) -> None:
    file = tmp_path / "recorded.safetensors"
    inspect_model(
        save_model("mesa"),
        texts=[text_file],
        length=64,
        tokens=128,
        device="cpu",
        out=tmp_path / "out",
        record=file,
        quiet=True,
    )
    layers = load_recorded(file)
    assert [operands["query"].shape for operands in layers] == [(1, 64, 4, 8)] * 2
    assert [operands["log_forget"].shape for operands in layers] == [(1, 64, 2)] * 2


def test_a_run_is_read_at_its_own_length_from_its_own_text(
    save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.jsonl"
    records = [{"text": f"{number} " + "abc def " * (30 + number)} for number in range(20)]
    source.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    settings = {"sources": [{"name": "files", "files": str(source)}], "vocab_size": 258, "sequence_length": 80}
    data = DataSettings.build(
        {**settings, "valid_fraction": 0.3, "test_fraction": 0.1, "cache_dir": str(tmp_path / "cache")}, "data"
    )
    prepared = prepare(data, quiet=True)
    run = tmp_path / "run"
    save_model("mesa", name="run/final")
    start = {"event": "start", "step": 0, "prepared": str(prepared.path)}
    (run / "journal.jsonl").write_text(json.dumps(start) + "\n", encoding="utf-8")
    (run / "recipe.yaml").write_text("data: {sequence_length: 80}\n", encoding="utf-8")
    save_model("mesa", name="run/checkpoints/step-7")
    monkeypatch.chdir(tmp_path)
    places = {run: "inspect-run", run / "final": "inspect-run", run / "checkpoints/step-7": "inspect-run-step-7"}
    for model, folder in places.items():
        found = inspect_model(str(model), tokens=240, device="cpu", quiet=True)
        assert f"{folder.removeprefix('inspect-')}, 3 windows" in Path("reports", folder, "inspect.svg").read_text(
            "utf-8"
        )
        assert (found.length, found.windows) == (80, 3)
        assert found.text["from"] == "validation split of the run"
        assert found.text["sources"][0]["files"][0]["name"] == "source.jsonl"


@pytest.mark.parametrize(
    ("mixers", "options", "words"),
    [
        ("softmax", ["--text", "TEXT"], "no mesa layer"),
        ("linear", ["--text", "TEXT", "--record", "OUT/x.safetensors"], "no systems to record"),
        ("kalman", ["--text", "TEXT"], "it has kalman layers"),
        ("mesa", [], "--text"),
        ("mesa", ["--text", "TEXT", "--length", "600"], "the longest has 501"),
        ("mesa", ["--text", "TEXT", "--length", "63"], "at least 64"),
        ("mesa", ["--text", "TEXT", "--device", "abacus"], "'abacus' cannot be used here"),
        ("mesa", ["--text", "TEXT", "--tokens", "100"], "less than one window"),
        ("mesa", ["--text", "TEXT", "--record-heads", "0.0"], "--record"),
        ("mesa", ["--text", "TEXT", "--record", "OUT/x.safetensors", "--record-heads", "0.2"], "0.2 is not a head"),
        ("mesa", ["--text", "TEXT", "--record", "OUT/x.safetensors", "--record-heads", "0"], "LAYER.HEAD"),
    ],
)
def test_bad_input_is_one_line(
    mixers: str,
    options: list[str],
    words: str,
    save_model: SaveModel,
    text_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    length = [] if "--length" in options or "--tokens" in options else ["--length", "64"]
    tokens = [] if "--tokens" in options else ["--tokens", "640"]
    filled = [option.replace("TEXT", text_file).replace("OUT", str(out)) for option in options]
    capsys.readouterr()
    assert main(["inspect", save_model(mixers), "--device", "cpu", "--out", str(out), *length, *tokens, *filled]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mesalm inspect: ")]
    assert len(error) == 1
    assert words in error[0]
    assert not (out / "x.safetensors").exists()


def test_a_file_that_holds_something_else_is_refused(save_model: SaveModel) -> None:
    with pytest.raises(ValueError, match="holds no recorded operands"):
        load_recorded(Path(save_model("mesa")) / "model.safetensors")


def test_heads_are_named_once_each_in_order() -> None:
    assert parse_heads("3.0,0.12,0.2,3.0") == [(0, 2), (0, 12), (3, 0)]


def test_drawing_is_imported_only_to_draw() -> None:
    for file in LAB.glob("*.py"):
        for node in ast.parse(file.read_text("utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("matplotlib") for name in names), file.name


def test_windows_come_from_within_single_documents(save_model: SaveModel, text_file: str) -> None:
    tokenizer = open_tokenizer(save_model("mesa"))
    texts = {record["id"]: record["text"] for record in map(json.loads, Path(text_file).read_text().splitlines())}
    windows = cut_windows(held_out_text("model", None, [text_file]), tokenizer, 100, 9)
    assert windows.documents == ["long", "middle", *["long"] * 4, *["middle"] * 2]
    places = [0, 0, 100, 200, 300, 400, 100, 200]
    for tokens, document, place in zip(windows.tokens, windows.documents, places, strict=True):
        whole = [tokenizer.bos_token_id, *tokenizer(texts[document])["input_ids"]]
        assert tokens == whole[place : place + 100]
