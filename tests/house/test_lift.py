"""The model folder, copied flat, works in a process that has no mesalm."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

from tiny import TINY

from mesalm.hub.publish import AUTO_MAP

ROOT = Path(__file__).parents[2]

USE = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mesalm", "mesa_eval", "mesa_kernels"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from lifted.configuration_mesa import MesaConfig
from lifted.modeling_mesa import MesaForCausalLM
config = MesaConfig(**{TINY | {"num_hidden_layers": 3}}, vocab_size=32, mixers=["mesa", "linear", "softmax"])
model = MesaForCausalLM(config)
ids = torch.arange(8).view(1, 8)
model(ids, labels=ids).loss.backward()
print(model.eval().generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1])
assert "mesalm" not in sys.modules
"""


def test_the_model_folder_lifts_out_and_runs_alone(tmp_path: Path) -> None:
    lifted = tmp_path / "lifted"
    lifted.mkdir()
    for file in (ROOT / "mesalm/model").glob("*.py"):
        if file.name != "__init__.py":
            shutil.copyfile(file, lifted / file.name)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", USE],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "11"


def test_the_model_folder_holds_what_the_published_classes_need_and_no_more() -> None:
    files = {file.stem: file for file in (ROOT / "mesalm/model").glob("*.py") if file.name != "__init__.py"}
    needed, left = set(), {name.split(".")[0] for name in AUTO_MAP.values()}
    while left:
        name = left.pop()
        needed.add(name)
        statements = ast.walk(ast.parse(files[name].read_text(encoding="utf-8")))
        left |= {str(node.module) for node in statements if isinstance(node, ast.ImportFrom) and node.level} - needed
    assert needed == set(files)
