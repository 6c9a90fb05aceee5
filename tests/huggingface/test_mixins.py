"""transformers' own model tests, from a checkout of its `tests/` named by TRANSFORMERS_TESTS.

    git clone --depth 1 --branch v5.23.0 https://github.com/huggingface/transformers
    TRANSFORMERS_TESTS=transformers/tests python -m pytest -m slow tests/huggingface/test_mixins.py

Nothing of it is copied. All applicable tests must pass, and each skip must stand in `mixin_skips.py` with its reason.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
from mixin_checkout import assemble
from mixin_skips import ONLY, SKIPPED

ROOT = Path(__file__).parents[2]
CHECKOUT = os.environ.get("TRANSFORMERS_TESTS")
# what a part of the tests gives, with FlashAttention, accelerators and the export tests left out
LEAST = {"mesa": 146, "hybrid": 151, "linear": 146, "delta": 146, "kalman": 146, "softmax": 152, "window": 152}


def listed(kind: str) -> set[str]:
    """Return the names that may be skipped for a kind of model."""
    others = {name for kinds, names in ONLY.items() if kind not in kinds for name in names.split()}
    return {f"test_{name}" for names in SKIPPED.values() for name in names.split() if name not in others}


def outcomes(report: Path) -> dict[str, tuple[str, str]]:
    """Return what became of each test, "passed", "skipped" or "failed", and its message."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [case.find("failure"), case.find("error")]
        skipped = case.find("skipped")
        if any(element is not None for element in bad):
            message = next(element.get("message", "") for element in bad if element is not None)
            found[case.get("name", "")] = ("failed", message)
        elif skipped is not None:
            found[case.get("name", "")] = ("skipped", skipped.get("message", ""))
        else:
            found.setdefault(case.get("name", ""), ("passed", ""))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(CHECKOUT is None, reason="TRANSFORMERS_TESTS names no checkout of transformers' tests/")
@pytest.mark.skipif(importlib.util.find_spec("parameterized") is None, reason="their tests need parameterized")
@pytest.mark.parametrize("kind", LEAST)
def test_their_tests_pass(kind: str, tmp_path: Path) -> None:
    missing = assemble(Path(str(CHECKOUT)).absolute(), tmp_path / "tree")
    report = tmp_path / "report.xml"
    result = subprocess.run(
        [
            *[sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider"],
            *["-c", str(tmp_path / "tree/pytest.ini"), "--rootdir", str(tmp_path / "tree")],
            *[f"{Path(__file__).parent / 'mixin_classes.py'}::Test{kind.capitalize()}", f"--junitxml={report}"],
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "tree"), *(path for path in sys.path if path)]),
            "RUN_SLOW": "yes",
            "HF_HUB_OFFLINE": "1",
        },
        cwd=tmp_path / "tree",
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), result.stdout + result.stderr
    found = outcomes(report)
    print(kind, dict(Counter(state for state, _ in found.values())), "stand-ins:", missing)
    failed = {name: message for name, (state, message) in found.items() if state == "failed"}
    assert not failed, result.stdout[-20000:]
    unlisted = {name: why for name, (state, why) in found.items() if state == "skipped" and name not in listed(kind)}
    assert not unlisted
    assert sum(state == "passed" for state, _ in found.values()) >= LEAST[kind]
    assert result.returncode == 0, result.stdout[-20000:]
