"""Running claims and keeping what came out: one JSON file a claim and size."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mesalm.lab.claims import Claim, Curve, Findings, Size, chosen, judge, load_claims
from mesalm.lab.experiments import EXPERIMENTS
from mesalm.lab.workbench import Workbench
from mesalm.settings import SettingsError
from mesalm.train.pretrain import device_name, versions

RESULTS = Path("reports/lab")
NETS = Path("runs/lab")


def list_claims() -> None:
    """Print every claim with its number and criteria."""
    for name, claim in load_claims().items():
        print(f"{claim.number:2d} {name}\n   {claim.claim}")
        for criterion in claim.criteria:
            print(f"   - {criterion.quantity}: {criterion.words()}")


def run_claims(
    names: Sequence[str],
    size: Size = "small",
    seeds: int = 1,
    *,
    out: Path = RESULTS,
    nets: Path = NETS,
    device: str = "cpu",
    quiet: bool = False,
) -> dict[str, bool]:
    """Run claims with seeds 0 .. seeds - 1, print and write what came out; return whether each was reproduced.

    Trained nets are kept under ``nets`` and used again; results go to ``out``/CLAIM-SIZE.json. Raises SettingsError for
    a name that is no claim's.
    """
    if seeds < 1:
        raise SettingsError(f"seeds: must be at least 1, not {seeds}")
    claims = load_claims()
    wanted = chosen(names, claims)
    reproduced = {}
    for name in wanted:
        claim = claims[name]
        found = [EXPERIMENTS[name](Workbench(seed, nets, device, quiet), claim.sizes(size)) for seed in range(seeds)]
        write_result(out / f"{name}-{size}.json", name, claim, size, found, device)
        reproduced[name] = print_verdict(name, claim, found)
    return reproduced


def print_verdict(name: str, claim: Claim, found: Sequence[Findings]) -> bool:
    """Print a claim's quantities beside their criteria; return whether all hold."""
    rulings = judge(claim, [findings.values for findings in found])
    holds = all(ruling.holds for ruling in rulings)
    print(f"{claim.number:2d} {name}: {'reproduced' if holds else 'not reproduced'}")
    for ruling in rulings:
        spread = f" ({ruling.least:.4g} to {ruling.largest:.4g})" if len(found) > 1 else ""
        mark = "ok " if ruling.holds else "NOT"
        print(f"   {mark} {ruling.criterion.quantity}: {ruling.mean:.4g}{spread}, {ruling.criterion.words()}")
    return holds


def write_result(path: Path, name: str, claim: Claim, size: Size, found: Sequence[Findings], device: str) -> None:
    """Write the findings of all seeds with sizes, criteria and versions; the file appears whole."""
    content = {
        "claim": name,
        "size": size,
        "sizes": claim.sizes(size),
        "criteria": [criterion.model_dump(exclude_none=True) for criterion in claim.criteria],
        "seeds": [rounded(asdict(findings)) for findings in found],
        "versions": versions(),
        "device": device_name(torch.device(device)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_results(folder: Path, size: Size) -> dict[str, list[Findings]]:
    """Return the findings of every claim that has a result of this size, one entry a seed.

    Raises SettingsError for a result whose criteria or sizes are not those of claims.yaml now.
    """
    results = {}
    for name, claim in load_claims().items():
        path = folder / f"{name}-{size}.json"
        if not path.is_file():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        criteria = [criterion.model_dump(exclude_none=True) for criterion in claim.criteria]
        if content["criteria"] != criteria or content["sizes"] != claim.sizes(size):
            raise SettingsError(f"{path}: was made with other criteria or sizes; run `mesalm lab run {name}` again")
        results[name] = [_findings(seed) for seed in content["seeds"]]
    return results


def rounded(value: Any, digits: int = 6) -> Any:
    """Return plain data with every float rounded to ``digits`` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, list) else value


def _findings(data: dict[str, Any]) -> Findings:
    return Findings(**{**data, "curves": [Curve(**curve) for curve in data["curves"]]})
