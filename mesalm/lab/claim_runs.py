"""Run claims and store their results, one JSON file per claim and size."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mesalm.files import described, write_text
from mesalm.hub.open_model import usable_device
from mesalm.lab.claim_table import ClaimTable, load_table
from mesalm.lab.claims import TABLE, Claim, Curve, Findings, Size, judge
from mesalm.lab.plan import ClaimPlan, Planned, plan_experiments
from mesalm.lab.workbench import Workbench
from mesalm.settings import SettingsError
from mesalm.train.speeds import device_name
from mesalm.versions import versions
from mesalm.wording import plural

RESULTS = Path("reports/lab")
NETS = Path("runs/lab")


@dataclass(frozen=True)
class ClaimResult:
    """The content of a result file: sizes and criteria of a claim or study, and the findings of each seed.

    source, file: `ClaimTable.source` of a claim that is not the paper's, and its file, relative to the result.
    """

    sizes: dict[str, Any]
    criteria: list[dict[str, Any]]
    first_seed: int
    seeds: list[Findings]
    source: str = ""
    file: str = ""

    def made_from(self, table: ClaimTable, name: str, sizes: dict[str, Any]) -> bool:
        """Return whether the claim had these sizes, and its present criteria and source."""
        return (self.criteria, self.sizes, self.source) == (table.criteria(name), sizes, table.source)


def list_claims() -> None:
    """Print every claim with its number and criteria, then the studies."""
    table = load_table()
    for name, claim in table.claims.items():
        print(f"{claim.number:2d} {name}\n   {claim.claim}")
        if claim.why:
            print(f"   version {claim.version}: {claim.why}")
        for criterion in claim.criteria:
            print(f"   - {criterion.quantity}: {criterion.words()}")
    for name, study in table.studies.items():
        print(f" - {name}\n   {study.question}")


def run_claims(
    names: Sequence[str],
    size: Size = "small",
    seeds: int = 1,
    *,
    first_seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
    out: Path = RESULTS,
    nets: Path = NETS,
    device: str = "cpu",
    quiet: bool = False,
    traces: bool = False,
    missing: bool = False,
    cheapest_first: bool = False,
    file: Path = TABLE,
) -> dict[str, bool | None]:
    """Run claims and studies with ``seeds`` seeds each, print and write the results, and return the verdicts.

    A verdict is True if a claim was reproduced or a study has run, False if a claim was not reproduced, and None if the
    experiment failed. A failure prints the error (with a traceback if ``traces``, or unless bad input or a file caused
    it), and the others still run. Trained nets are stored under ``nets`` and reused; results go to
    ``out``/CLAIM-SIZE.json. ``changes`` replace sizes; the result then goes to CLAIM-changed.json. ``missing`` skips
    claims with a result for these sizes, criteria, code and seeds; ``cheapest_first`` uses the order of `plan_claims`;
    `load_table` reads ``file``. Raises SettingsError for unknown claims or sizes, if nothing is left to run, and for
    a result of another file's claim.
    """
    if seeds < 1:
        raise SettingsError(f"seeds: must be at least 1, not {seeds}")
    device = str(usable_device(device))
    table = load_table(file)
    wanted = _wanted(names, without, table)
    if changes:
        for name in wanted:
            table.sizes(name, size, changes)  # reject a change that does not apply to one of them before running any
    paths = {name: out / f"{name}-{'changed' if changes else size}.json" for name in wanted}
    for name in wanted if table.source else ():
        other = read_result(paths[name]).file if paths[name].is_file() else ""
        if other not in ("", _place(table, paths[name])):
            raise SettingsError(
                f"{paths[name]}: holds the result of a claim of this name in {os.path.normpath(out / other)}; rename "
                "the claim, give another --out, or delete the result"
            )
    numbers = range(first_seed, first_seed + seeds)
    if missing:
        wanted = [name for name in wanted if not _holds(paths[name], table, name, size, changes, numbers)]
        if not wanted:
            print("no result is missing")
    if cheapest_first and wanted:
        wanted = plan_experiments(_planned(wanted, table, size, changes), numbers, nets, device).order()
    outcomes: dict[str, bool | None] = {}
    for name in wanted:
        try:
            benches = [Workbench(seed, nets, device, quiet) for seed in numbers]
            outcomes[name] = _run(name, table, table.sizes(name, size, changes), benches, paths[name])
        except Exception as error:
            if traces or not isinstance(error, (ValueError, OSError)):
                traceback.print_exception(error)
            print(f"mesalm lab: {name} failed: {_words(error)}", file=sys.stderr)
            outcomes[name] = None
    if len(wanted) > 1 and not set(wanted) <= set(table.studies):
        print(_summary(outcomes, table.studies))
    return outcomes


def plan_claims(
    names: Sequence[str],
    size: Size = "small",
    seeds: int = 1,
    *,
    first_seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
    nets: Path = NETS,
    device: str = "cpu",
    file: Path = TABLE,
) -> ClaimPlan:
    """Return what `run_claims` with the same arguments would need, less the training steps already under ``nets``.

    Raises SettingsError as `run_claims` does.
    """
    table = load_table(file)
    planned = _planned(_wanted(names, without, table), table, size, changes)
    return plan_experiments(planned, range(first_seed, first_seed + seeds), nets, str(usable_device(device)))


def _planned(names: Sequence[str], table: ClaimTable, size: Size, changes: Mapping[str, Any] | None) -> list[Planned]:
    """Return the first argument of `plan_experiments`."""
    return [(name, table.experiment(name), table.sizes(name, size, changes)) for name in names]


def _wanted(names: Sequence[str], without: Collection[str], table: ClaimTable) -> list[str]:
    """Return the claims and studies given by ``names`` except those given by ``without``."""
    left_out = table.chosen(list(without))
    wanted = [name for name in table.chosen(names) if name not in left_out]
    if not wanted:
        raise SettingsError("--without: leaves nothing to run; leave out fewer claims")
    return wanted


def _holds(
    path: Path, table: ClaimTable, name: str, size: Size, changes: Mapping[str, Any] | None, seeds: range
) -> bool:
    """Return whether a result has these sizes, the current criteria and code, and these seeds from the same first."""
    if not path.is_file():
        return False
    kept = read_result(path)
    alike = kept.made_from(table, name, table.sizes(name, size, changes))
    return alike and kept.first_seed == seeds.start and len(kept.seeds) >= len(seeds)


def _place(table: ClaimTable, path: Path) -> str:
    """Return where the file of own claims is, from the folder of a result."""
    return os.path.relpath(table.file.resolve(), path.parent.resolve())


def _run(name: str, table: ClaimTable, sizes: dict[str, Any], benches: Sequence[Workbench], path: Path) -> bool:
    """Run one claim or study on every bench, write and print its result; return whether all criteria are met."""
    found = [table.experiment(name)(bench, dict(sizes)) for bench in benches]
    if not all(isinstance(findings, Findings) for findings in found):
        raise SettingsError(f"the experiment must return Findings, not {type(found[0]).__name__}; see docs/lab.md")
    if name in table.claims:
        judge(table.claims[name], [findings.values for findings in found])  # raises if it cannot be judged
    write_result(path, name, table, sizes, found, benches[0])
    if name in table.claims:
        return print_verdict(name, table.claims[name], read_result(path).seeds)  # rounded, as the report sees them
    print(f" - {name}: {table.studies[name].question}")
    for quantity, mean in mean_quantities(found).items():
        print(f"       {quantity}: {mean:.4g}")
    return True


def _words(error: Exception) -> str:
    return described(error) if isinstance(error, OSError) else str(error) or type(error).__name__


def _summary(outcomes: dict[str, bool | None], studies: Collection[str]) -> str:
    """Return one line: the number of claims per outcome, and which were not reproduced or failed."""
    verdicts = {name: verdict for name, verdict in outcomes.items() if name not in studies}
    parts = [f"{plural(sum(verdict is True for verdict in verdicts.values()), 'claim')} reproduced"]
    for words, verdicts_of, kind in (("not reproduced", verdicts, False), ("failed", outcomes, None)):
        names = [name for name, verdict in verdicts_of.items() if verdict is kind]
        parts.append(f"{len(names)} {words}" + (f" ({', '.join(names)})" if names else ""))
    return ", ".join(parts)


def mean_quantities(found: Sequence[Findings]) -> dict[str, float]:
    """Return the mean of each quantity and control over the seeds that have it."""
    seeds = [{**each.values, **each.controls} for each in found]
    names = dict.fromkeys(name for each in seeds for name in each)
    return {name: statistics.fmean(each[name] for each in seeds if name in each) for name in names}


def print_verdict(name: str, claim: Claim, found: Sequence[Findings]) -> bool:
    """Print a claim's quantities and their criteria; return whether all are met."""
    rulings = judge(claim, [findings.values for findings in found])
    holds = all(ruling.holds for ruling in rulings)
    print(f"{claim.number:2d} {name}: {'reproduced' if holds else 'not reproduced'}")
    for ruling in rulings:
        spread = f" ({ruling.least:.4g} to {ruling.largest:.4g})" if len(found) > 1 else ""
        mark = "ok " if ruling.holds else "NOT"
        print(f"   {mark} {ruling.criterion.quantity}: {ruling.mean:.4g}{spread}, {ruling.criterion.words()}")
    return holds


def write_result(
    path: Path,
    name: str,
    table: ClaimTable,
    sizes: dict[str, Any],
    found: Sequence[Findings],
    first: Workbench,
) -> None:
    """Write the findings of all seeds with sizes, criteria, source and versions, atomically."""
    content = {
        "claim": name,
        "sizes": sizes,
        "criteria": table.criteria(name),
        **({"source": table.source, "file": _place(table, path)} if table.source else {}),
        "first_seed": first.seed,
        "seeds": [rounded(asdict(findings)) for findings in found],
        "versions": versions(),
        "device": device_name(torch.device(first.device)),
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_result(path: Path) -> ClaimResult:
    """Return the content of a file written by `write_result`; the first seed defaults to 0."""
    content = json.loads(path.read_text(encoding="utf-8"))
    seeds = [Findings(**{**seed, "curves": [Curve(**curve) for curve in seed["curves"]]}) for seed in content["seeds"]]
    first, source, file = content.get("first_seed", 0), content.get("source", ""), content.get("file", "")
    return ClaimResult(content["sizes"], content["criteria"], first, seeds, source, file)


def read_results(folder: Path, size: Size, file: Path = TABLE) -> dict[str, ClaimResult]:
    """Return the result of every claim and study that has one of this size.

    Raises SettingsError for a result whose criteria or sizes differ from those in ``file``, or if that is a Python file
    that has changed.
    """
    results, table = {}, load_table(file)
    for name in (*table.claims, *table.studies):
        path = folder / f"{name}-{size}.json"
        if path.is_file():
            kept = results[name] = read_result(path)
            if not kept.made_from(table, name, table.sizes(name, size)):
                command = run_command(name, size, kept.first_seed, len(kept.seeds), file)
                raise SettingsError(f"{path}: was made with other criteria, sizes or code; run `{command}` again")
    return results


def run_command(name: str, size: Size = "small", first_seed: int = 0, seeds: int = 1, file: Path = TABLE) -> str:
    """Return the command that produces a result, without options that have their default value."""
    words = ["mesalm", "lab", "run", *([] if file == TABLE else [str(file)]), name]
    options = (("--size", size, "small"), ("--seeds", seeds, 1), ("--first-seed", first_seed, 0))
    return shlex.join(
        [*words, *(str(word) for key, value, usual in options if value != usual for word in (key, value))]
    )


def rounded(value: Any, digits: int = 6) -> Any:
    """Return plain data with all floats rounded to ``digits`` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, list) else value
