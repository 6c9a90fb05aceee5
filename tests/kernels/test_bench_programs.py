"""The benchmark programs run and write down every field."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mesalm.lab.inspection.recorded import load_recorded, save_recorded

MACHINE = {"cpu", "cores", "threads", "load_before", "system", "python", "torch", "device"}
SHARED = {"program", "commit", "machine", "arguments", "variant"}
OPERATOR = {
    *SHARED,
    *("case", "backend", "forward_s", "forward_backward_s", "peak_bytes", "steps", "errors", "speedup_on"),
    *("time_over_linear", "peak_flops_per_s", "copied_bytes_per_s"),
}


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def read_last(file: Path) -> list[dict[str, Any]]:
    """Give the last line of each case and variant."""
    return list({(json.dumps(line["case"]), line["variant"]): line for line in read(file)}.values())


def check_spread(spread: dict[str, float], repeats: int) -> None:
    assert 0 < spread["least"] <= spread["lower"] <= spread["median"] <= spread["upper"]
    assert spread["repeats"] == repeats


@pytest.mark.slow
def test_the_operator_program_writes_every_field(bench: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "lines.jsonl"
    variants = [name for name in bench.variants.ALL if name not in ("fla", "triton")]
    words = ["--quick", "--out", str(out), "--gamma", "1", "0.97", "--variants", *variants]
    assert bench.bench_operator.main([*words, "--tolerance", "1e-3"]) == 0
    lines = read_last(out)
    solvers = [f"{name}@0.001" for name in ("mesa", "torch", "shared", "chebyshev", "cg")]
    names = [*solvers, "cg-30", "linear", "softmax"]
    assert [line["variant"] for line in lines] == 2 * names
    medians = {name: line["forward_backward_s"]["median"] for name, line in zip(names, lines, strict=False)}
    for line in lines:
        assert set(line) == OPERATOR
        assert set(line["machine"]) == MACHINE
        check_spread(line["forward_s"], 2)
        check_spread(line["forward_backward_s"], 2)
        assert min(line["peak_flops_per_s"], line["copied_bytes_per_s"]) > 0
        solves = line["variant"] not in ("linear", "softmax")
        assert solves == (line["errors"] is not None) == (line["steps"] is not None)
        if solves:
            limit = 1e-5 if line["variant"] == "cg-30" else 5e-3
            errors = line["errors"]
            assert set(errors["gradients"]) == set(bench.cases.CaseOperands._fields)
            assert 0 < errors["output"] <= errors["worst"] < limit
            assert 0 < errors["quantile"] <= errors["worst"]
            assert 0 < errors["gradient"] < limit
        assert (line["backend"] is not None) == line["variant"].startswith(("mesa", "torch"))
    first = lines[0]
    assert first["speedup_on"]["cg-30"] == pytest.approx(medians["cg-30"] / medians["mesa@0.001"])
    assert first["time_over_linear"] == pytest.approx(medians["mesa@0.001"] / medians["linear"])
    assert [line["steps"] for line in lines if line["variant"] == "cg-30"] == [30, 30]


def test_times_are_written_before_anything_else_is_measured(bench: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    bench.bench_operator.main(["--quick", "--out", str(out), "--variants", "linear", "cg"])
    assert [
        (line["variant"][:2], line["forward_backward_s"]["repeats"], line["steps"] is None, line["errors"] is None)
        for line in read(out)
    ] == [
        *(("li", 1, True, True), ("cg", 1, True, True)),
        *(("li", 2, True, True), ("cg", 2, True, True)),
        ("cg", 2, False, False),
    ]


def test_the_profile_names_what_runs(bench: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    words = ["--device", "cpu", "--quick", "--dtype", "float32", "--gamma", "0.9", "--variant", "linear"]
    assert bench.profile_pass.main([*words, "--repeats", "2", "--out", str(out)]) == 0
    lines = read(out)
    for way in ("forward", "both"):
        mine = [line for line in lines if line["pass"] == way]
        assert sum(line["share"] for line in mine) == pytest.approx(1)
        assert sum(line["microseconds"] for line in mine) > 0
        products = next(line for line in mine if line["kernel"] == "aten::bmm")
        assert products["launches"] == int(products["launches"]) > 0  # counted a pass, not over both


def test_wrong_input_is_one_line(bench: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.bench_operator.main(["--quick", "--gamma", "1.5"]) == 2
    assert capsys.readouterr().err.splitlines() == ["bench_operator: gamma is 1.5: must be above 0 and at most 1"]


def test_recorded_operands_stand_side_by_side(bench: SimpleNamespace, tmp_path: Path) -> None:
    file, T, K = tmp_path / "recorded.safetensors", 70, 8
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in (0, 2):
        normal = {name: torch.randn(1, T, heads, K, generator=generator) for name, heads in SIZES.items()}
        tensors |= {f"layer.{layer}.{name}": x.half() for name, x in normal.items()}
        gates = torch.rand(2, 1, T, 2, generator=generator)
        tensors |= {f"layer.{layer}.log_forget": gates[0].log(), f"layer.{layer}.input_gate": gates[1]}
        tensors[f"layer.{layer}.ridge"] = torch.rand(2, K, generator=generator) + 0.5
    save_recorded(file, {name: x.contiguous() for name, x in tensors.items()}, {"unit_norm": False})
    case = bench.cases.Case(64, recorded=str(file))
    made = bench.cases.make_operands(case)
    assert made.query.shape == made.key.shape == (1, 64, 8, K)
    assert made.ridge.shape == (8, K)
    # key head 1 of layer 2 is read by its query heads 2 and 3
    assert torch.equal(made.key[:, :, 7], tensors["layer.2.key"][:, :64, 1].float())
    assert torch.equal(made.log_forget[:, :, 6], tensors["layer.2.log_forget"][:, :64, 1])
    assert torch.equal(made.ridge[1], tensors["layer.0.ridge"][0])
    with pytest.raises(ValueError, match="holds 70 tokens"):
        bench.cases.make_operands(bench.cases.Case(71, recorded=str(file)))
    out = tmp_path / "lines.jsonl"
    words = ["--quick", "--recorded", str(file), "--variants", "linear", "torch"]
    assert bench.bench_operator.main([*words, "--out", str(out)]) == 0
    described = {name: read_last(out)[0]["case"][name] for name in ("length", "heads", "size", "recorded")}
    assert described == {"length": T, "heads": 8, "size": K, "recorded": str(file)}
    assert bench.bench_operator.main(["--quick", "--recorded", str(file), "--length", "71"]) == 2


SIZES = {"query": 4, "key": 2, "value": 2}


def test_the_step_program_writes_every_field(bench: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    assert bench.bench_step.main(["--quick", "--out", str(out)]) == 0
    lines = read(out)
    assert [line["variant"] for line in lines] == ["mesa@0.001", "mesa@0.0001", "linear", "softmax"]
    for line in lines:
        wanted = {"length", "rows", "step_s", "tokens_per_s", "time_over_softmax", "solver_steps", "flops"}
        assert set(line) == SHARED | wanted | {"share_of_peak", "loss", "peak_flops_per_s", "operators"}
        check_spread(line["step_s"], 2)
        assert line["tokens_per_s"] == pytest.approx(192 / line["step_s"]["median"])
        assert line["loss"] == pytest.approx(math.log(64), abs=0.3)
        assert (line["solver_steps"] is None) == (line["variant"] in ("linear", "softmax"))
    assert lines[1]["solver_steps"] >= lines[0]["solver_steps"] > 0
    assert lines[0]["operators"] == lines[1]["operators"] > lines[2]["operators"] > lines[3]["operators"]
    assert lines[3]["time_over_softmax"] == 1


def test_steps_start_from_the_gates_of_a_recorded_model(
    bench: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = Path(__file__).parents[1] / "data" / "recorded_short.safetensors", tmp_path / "lines.jsonl"
    options = ["--quick", "--recorded", str(file), "--documents", "2", "--conv-size", "4", "--process-time"]
    with pytest.raises(
        ValueError, match=r"layers and heads are \[4, \{4\}\], not \[4, \{3\}\]; give its --layers and --heads"
    ):
        bench.bench_step.build(bench.bench_step.parse(options), "mesa", 1e-3, 96)
    options += ["--repeats", "1", "--warmup", "0"]
    options += ["--heads", "4", "--width", "64", "--tolerance", "1e-3", "--out", str(out)]
    assert bench.bench_step.main([*options, "--mixers", "mesa", "softmax", "--profile", "3"]) == 0
    tables = capsys.readouterr().out.split(" ms per step")
    assert len(tables) == 3
    assert all(len(re.findall(r" \d+ +[\d.]+ +[\d.]+ %", table)) == 3 for table in tables[1:])
    assert [line["variant"] for line in read(out)] == ["mesa@0.001", "softmax"]
    arguments = bench.bench_step.parse(options)
    mesa, softmax = (bench.bench_step.build(arguments, mixer, 1e-3, 96) for mixer in ("mesa", "softmax"))
    layers = load_recorded(file)
    for block, other, layer in zip(mesa.model.model.layers, softmax.model.model.layers, layers, strict=True):
        forget, written = block.mixer.forget_proj.bias.sigmoid(), block.mixer.input_proj.bias.sigmoid()
        torch.testing.assert_close(forget, layer["log_forget"].mean((0, 1)).exp())
        torch.testing.assert_close(written, layer["input_gate"].mean((0, 1)))
        assert other.mixer.conv.size == block.mixer.conv.size == 4
    assert mesa.positions[0].tolist() == [*range(48), *range(48)]
    assert bench.bench_step.main([*options, "--mixers", "delta", "kalman", "window"]) == 0
    assert [line["variant"] for line in read(out)[-3:]] == ["delta", "kalman", "window"]
    delta = bench.bench_step.build(arguments, "delta", 1e-3, 96).model.model.layers[0].mixer
    torch.testing.assert_close(delta.forget_proj.bias, mesa.model.model.layers[0].mixer.forget_proj.bias)


def test_the_decode_program_writes_every_field(bench: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    assert bench.bench_decode.main(["--quick", "--mixers", "mesa", "softmax", "--out", str(out)]) == 0
    lines = read(out)
    assert [(line["variant"], line["context"]) for line in lines] == [
        *[("mesa", 32), ("softmax", 32), ("mesa", 64), ("softmax", 64)]
    ]
    for line in lines:
        wanted = {"context", "batch", "token_s", "tokens_per_s", "time_over_softmax", "read_s", "cache_bytes"}
        assert set(line) == SHARED | wanted | {"backend"}
        assert line["backend"] == ("torch" if line["variant"] == "mesa" else None)
        check_spread(line["token_s"], 2)
    # keys and values of 4 layers, 48 wide, against states of 3 heads of 16 x 32 and what the convolution keeps
    assert [line["cache_bytes"] for line in lines if line["variant"] == "softmax"] == [
        4 * 2 * T * 48 * 4 for T in (32, 64)
    ]
    assert {line["cache_bytes"] for line in lines if line["variant"] == "mesa"} == {4 * 4 * (3 * 16 * 32 + 96 * 3)}


def test_decoding_continues_the_context(bench: SimpleNamespace) -> None:
    arguments = bench.bench_decode.parse(["--quick"])
    tokens = torch.randint(64, (2, 50), generator=torch.Generator().manual_seed(0))
    writer = bench.bench_decode.build(arguments, "mesa")
    writer.read(tokens, at_once=16)
    following = torch.full((2, 1), 7)
    with torch.inference_mode():
        continued = writer.model(input_ids=following, cache=writer.cache, use_cache=True).logits[:, -1]
        whole = writer.model(input_ids=torch.cat((tokens, following), 1)).logits[:, -1]
    torch.testing.assert_close(continued, whole, rtol=1e-3, atol=1e-4)  # the solver's tolerance
