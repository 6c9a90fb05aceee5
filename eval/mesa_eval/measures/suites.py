"""The evaluation suites of suites.yaml and their sizes, fixed before any model is seen.

A version in use never changes: other sizes or selection rules become a new version such as `full-2`, and
`--suite full` then selects that one. Scores of different versions are not compared.

A budget limits the tokens a model reads for all built-in measures and a typical set of some thirty few-shot files:
0.8 million for `quick`, 8 million for `full`; `paper` asks everything and has no budget.
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

    text_bytes, document_bytes: bytes of text scored (None: all) and the maximum per document, so that long documents do
    not dominate; longest_window: maximum window length in tokens; position_tokens, position_windows: maximum tokens
    and windows for loss by position and recall; document_windows: maximum of these windows per document;
    length_windows: windows of eight times the length, for loss past the window; copy_windows: random sequences;
    few_shot: see `FewShotSizes`; tasks: built-in tasks used when none is named; budget: maximum tokens a model reads
    for the suite and a typical set of files (None: no limit).
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
    """Return a version of a suite, such as "full-1", or the newest version of a suite, such as "full".

    Raises a one-line ValueError for any other name.
    """
    if suite in suites:
        return suites[suite]
    if suite not in SUITE_NAMES:
        raise ValueError(
            f"--suite {suite!r}: unknown; it must be one of {', '.join(SUITE_NAMES)}, or a version: {', '.join(suites)}"
        )
    versions = [name for name in suites if name.rpartition("-")[0] == suite]
    return suites[max(versions, key=lambda name: int(name.rpartition("-")[2]))]
