"""A model that is sharded over processes, asked by all of them together, though their shares are uneven."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from mesa_eval.reading.sharded import in_step, is_sharded


def test_a_whole_model_needs_no_company() -> None:
    model = tiny_model()
    with in_step(model):
        assert not model._forward_pre_hooks
    assert not is_sharded(model)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_with_uneven_shares_of_a_sharded_model_find_what_one_finds(
    tmp_path: Path, save_mesa, tokenizer
) -> None:
    model = save_mesa(tmp_path / "model", tokenizer)
    script = str(Path(__file__).with_name("sharded_reading.py"))
    sharding = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "OMP_NUM_THREADS": "1"}
    for processes in (1, 2, 3):
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
        command = [sys.executable, *(launcher if processes > 1 else ()), script, model, str(tmp_path)]
        environment = os.environ | (sharding if processes > 1 else {})
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
    one = torch.load(tmp_path / "0-of-1.pt")
    assert one["sharded"] is False
    for path in sorted(tmp_path.glob("*-of-[23].pt")):
        found = torch.load(path)
        assert found["sharded"] is True
        assert (found["written"], found["error"]) == (one["written"], "broken on the main process")
        for name in ("whole", "continued", "one"):
            # float32 sums in another order; the mesa solve stops at a residual of 1e-6
            torch.testing.assert_close(found[name], one[name], atol=2e-4, rtol=0)
    assert len(list(tmp_path.glob("*.pt"))) == 6
