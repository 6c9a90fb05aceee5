"""The runner of the code blocks on a page of the documentation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(language: str, code: str, folder: Path, seconds: int = 200, logs: bool = False) -> str:
    """Run a block as a reader would who has activated the environment; return what it prints, also `logs` if asked."""
    commands = Path(sys.executable).parent
    environment = {
        "PATH": f"{commands}{os.pathsep}{os.defpath}",
        "HOME": str(folder / "home"),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else ["python", "-c"]
    result = subprocess.run(
        [*command, code], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=seconds
    )
    assert result.returncode == 0, f"{code}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr if logs else result.stdout
