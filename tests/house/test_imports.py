"""Who may import whom: every import statement of every file, and what a user of the model loads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from tiny import TINY

ROOT = Path(__file__).parents[2]
OURS = ("mesalm", "mesa_eval", "mesa_kernels")
FOLDERS = {
    "mesalm": ROOT / "mesalm",
    "mesa_eval": ROOT / "eval/mesa_eval",
    "mesa_kernels": ROOT / "kernels/mesa_kernels",
}

# room -> what no file in it may import, at the top of the file or inside a function
FORBIDDEN = {
    "mesa_kernels": ["mesalm", "mesa_eval", "transformers"],
    "mesalm.model": [
        *[
            "mesalm.data",
            "mesalm.train",
            "mesalm.tuning",
            "mesalm.regressor",
            "mesalm.synthetic",
            "mesalm.hub",
            "mesalm.lab",
            "mesalm.settings",
            "mesalm.pretrained",
            "mesa_eval",
        ],
        *["accelerate", "datasets"],
    ],
    "mesalm.data": [
        *["mesalm.model", "mesalm.train", "mesalm.tuning", "mesalm.synthetic", "mesalm.hub", "mesalm.lab"],
        *["mesalm.regressor", "mesa_eval"],
    ],
    "mesalm.regressor": [f"mesalm.{room}" for room in ("data", "train", "tuning", "synthetic", "hub", "lab")],
    "mesalm.train": ["mesalm.tuning", "mesalm.synthetic", "mesalm.lab", "mesa_eval"],
    "mesalm.tuning": ["mesalm.synthetic", "mesalm.hub", "mesalm.lab", "mesa_eval"],
    "mesalm.synthetic": ["mesalm.tuning", "mesalm.hub", "mesalm.lab", "mesa_eval"],
    "mesalm.hub": ["mesalm.train", "mesalm.tuning.prompt_tuning", "mesalm.synthetic", "mesalm.lab", "mesa_eval"],
    "mesalm.lab": ["mesa_eval"],
    "mesa_eval": ["mesalm.train", "mesalm.tuning", "mesalm.synthetic", "mesalm.lab"],
}
FORBIDDEN = {room: [*names, "mesalm.commands", "mesalm.cli"] for room, names in FORBIDDEN.items()}


def modules_of(room: str) -> dict[str, Path]:
    """Return the modules of a room by name."""
    package, *inner = room.split(".")
    folder = FOLDERS[package].joinpath(*inner)
    found = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(FOLDERS[package]).with_suffix("").parts
        found[".".join((package, *(part for part in parts if part not in ("__init__", "__main__"))))] = file
    return found


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_file_of_a_room_imports_what_the_room_may_not(room: str) -> None:
    bad = [
        (name, target)
        for name, file in modules_of(room).items()
        for target in imported_names(file, name)
        for forbidden in FORBIDDEN[room]
        if within(target, forbidden)
    ]
    assert not bad


STEPS = ("reading", "measures", "comparison", "report", "evaluate")


def test_an_evaluation_goes_one_way() -> None:
    """Each step of an evaluation imports itself and the steps before it."""
    rooms = [f"mesa_eval.{step}" for step in STEPS]
    bad = [
        (name, target)
        for name, file in modules_of("mesa_eval").items()
        for place, room in enumerate(rooms)
        if within(name, room)
        for target in imported_names(file, name)
        if any(within(target, later) for later in rooms[place + 1 :])
    ]
    assert not bad


def imported_names(file: Path, module: str) -> list[str]:
    """Return every module named in an import statement of a file, also inside functions."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
            base = [*package[: len(package) + 1 - node.level], node.module] if node.level else [node.module]
            source = ".".join(part for part in base if part)
            names += [source, *(f"{source}.{alias.name}" for alias in node.names)]
    return names


def test_the_model_folder_uses_flat_relative_imports_and_kernels_only_inside_try() -> None:
    for file in (ROOT / "mesalm/model").glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        guarded = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, f"{file.name}:{node.lineno}"
                assert node.module, f"{file.name}:{node.lineno}: from . import X does not travel"
                assert "." not in node.module, f"{file.name}:{node.lineno}"
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(within(name, "mesa_kernels") for name in names):
                assert id(node) in guarded, f"{file.name}:{node.lineno}"
            assert not any(within(name, "mesalm") for name in names), f"{file.name}:{node.lineno}"


def test_a_user_of_the_model_pays_for_nothing_else() -> None:
    """Beyond what transformers loads by itself, which is not ours to mend."""
    code = f"""
import json, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
def loaded(model):
    ids = torch.arange(8).view(1, 8)
    model(ids, labels=ids).loss.backward()
    model.eval().generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    return {{name for name in sys.modules if "." not in name}}
theirs = loaded(LlamaForCausalLM(LlamaConfig(vocab_size=32, **{TINY})))
from mesalm import MesaConfig, MesaForCausalLM
ours = loaded(MesaForCausalLM(MesaConfig(vocab_size=32, **{TINY}, mixers=["mesa", "softmax"])))
print(json.dumps(sorted(ours - theirs)))
"""
    heavy = {"triton", "datasets", "lm_eval", "matplotlib", "tensorboard", "wandb", "mesa_eval", "jinja2", "pandas"}
    result = subprocess.run(  # away from the repository
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd="/", check=False
    )
    assert result.returncode == 0, result.stderr
    assert not heavy & set(json.loads(result.stdout.splitlines()[-1]))


def arrows_between_files(*left_out: str) -> dict[str, set[str]]:
    """Return what each of our files imports of the others, also inside functions and for type checkers."""
    files = {name: file for package in FOLDERS for name, file in modules_of(package).items()}
    files = {name: file for name, file in files.items() if file.name != "__init__.py" and name not in left_out}
    return {name: set(imported_names(file, name)) & files.keys() for name, file in files.items()}


def refuse_a_circle(arrows: Mapping[str, set[str]]) -> None:
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_folder_of_mesalm_imports_what_imports_it() -> None:
    """Files outside every folder count as one, but for the command line, which is the commands'."""
    folders = {
        name: ".".join(name.split(".")[:2]) if name.count(".") > 1 else "mesalm"
        for name in modules_of("mesalm")
        if name != "mesalm"
    }
    folders["mesalm.cli"] = "mesalm.commands"
    arrows: dict[str, set[str]] = {}
    for name, imported in arrows_between_files().items():
        if name in folders:
            between = {folders[other] for other in imported & folders.keys()} - {folders[name]}
            arrows.setdefault(folders[name], set()).update(between)
    assert arrows["mesalm.train"] >= {"mesalm", "mesalm.data"}
    refuse_a_circle(arrows)


HASHED_TOGETHER = "mesalm.model.classifier_mesa"
"""Names a file of its own folder that imports it, so that both are published."""


def test_no_import_goes_round_in_a_circle() -> None:
    arrows = arrows_between_files(HASHED_TOGETHER)
    assert arrows["mesalm.model.modeling_mesa"] >= {"mesalm.model.configuration_mesa"}
    refuse_a_circle(arrows)
