"""Make a folder that transformers' own tests run in, from a checkout of its `tests/`, whole or in part."""

from __future__ import annotations

import json
from pathlib import Path

import transformers

ABSENT = """
import unittest

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*arguments, **options):
        raise unittest.SkipTest("the checkout lacks {module}")

    return absent
"""
STAND_INS = {
    "utils/tiny_model_summary.json": json.dumps({}),
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": "config_common_kwargs = "
    + repr({"output_hidden_states": True, "id2label": {0: "label"}, "label2id": {"label": 0}, "return_dict": False}),
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin: pass\n"
    "class ExportGenerateTesterMixin(ExportTesterMixin): pass\n",
    "distributed_testing_utils.py": ABSENT.format(module="distributed_testing_utils"),
}
"""What the mixins import and a part of the tests, a source distribution's for instance, does not hold."""


def assemble(checkout: Path, folder: Path) -> list[str]:
    """Link the tests into `folder/tests`, beside the installed library where they look for its source.

    Returns the files that the checkout lacks and that stand-ins were written for.

    Raises:
        ValueError: `checkout` is not a folder of the library's tests.
    """
    if not (checkout / "causal_lm_tester.py").is_file():
        raise ValueError(f"{checkout}: no causal_lm_tester.py here; name the tests/ folder of a transformers checkout")
    missing = [name for name in STAND_INS if not (checkout / name).exists()]
    rooms = {name.split("/")[0] for name in missing if "/" in name}
    (folder / "src").mkdir(parents=True)
    (folder / "src/transformers").symlink_to(Path(transformers.__file__).parent)
    (folder / "tests").mkdir()
    for entry in checkout.iterdir():
        if entry.name in rooms:  # a room that is filled up
            (folder / "tests" / entry.name).mkdir()
            for inner in entry.iterdir():
                (folder / "tests" / entry.name / inner.name).symlink_to(inner)
        else:
            (folder / "tests" / entry.name).symlink_to(entry)
    for name in missing:
        target = folder / "tests" / name
        target.parent.mkdir(exist_ok=True)
        target.write_text(STAND_INS[name], encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    return missing
