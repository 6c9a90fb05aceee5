"""The suites of suites.yaml: how much each asks, fixed before any model is seen.

A version that has been used is never changed: other sizes or other rules of choice are a new version beside it, such as
`full-2`, and `--suite full` then means that one. Scores of different versions are not compared.

Budgets are tokens that a model reads, all of the suite's own measures and the few-shot files of a usual set (some
thirty) together: `quick` 0.8 million, `full` 8 million; `paper` asks the whole suite and has none.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from mesa_eval.tasks.task import FewShotSizes


@dataclass(frozen=True)
class Suite:
    """The sizes of a suite.

    text_bytes, document_bytes: bytes of text scored (None: all) and the most taken of one document, so that long ones
    do not stand for all; longest_window: bound on the window length, in tokens; position_tokens, position_windows:
    bounds on the windows for loss by position and recall; document_windows: the most of them taken of one document;
    length_windows: windows of eight times the length, for loss past it; copy_windows: random sequences; few_shot: see
    `FewShotSizes`; tasks: built-in tasks asked when none is named; budget: tokens that a model reads at most for the
    suite and a usual set of files (None: no bound).
    """

    name: str
    text_bytes: int | None
    document_bytes: int
    longest_window: int
    position_tokens: int
    position_windows: int
    document_windows: int
    length_windows: int
    copy_windows: int
    few_shot: FewShotSizes
    budget: int | None = None
    tasks: tuple[str, ...] = ("copying", "key_value_recall", "case_change")

    def record(self) -> dict[str, Any]:
        """Return the sizes as plain data."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


_FILE = Path(__file__).with_name("suites.yaml")
SUITES: dict[str, Suite] = {
    name: TypeAdapter(Suite).validate_python({"name": name, **sizes})
    for name, sizes in yaml.safe_load(_FILE.read_text(encoding="utf-8")).items()
}
SUITE_NAMES = tuple(dict.fromkeys(name.rpartition("-")[0] for name in SUITES))


def find_suite(suite: str, suites: Mapping[str, Suite] = SUITES) -> Suite:
    """Return the suite of a version, such as "full-1", or the newest of a suite, such as "full".

    Raises ValueError in one line for any other name.
    """
    if suite in suites:
        return suites[suite]
    if suite not in SUITE_NAMES:
        raise ValueError(
            f"--suite {suite!r}: unknown; it must be one of {', '.join(SUITE_NAMES)}, or a version: {', '.join(suites)}"
        )
    versions = [name for name in suites if name.rpartition("-")[0] == suite]
    return suites[max(versions, key=lambda name: int(name.rpartition("-")[2]))]
