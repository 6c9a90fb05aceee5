"""A table of claims and studies: those of the paper, or those defined in a Python file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesalm.files import file_hash, import_file
from mesalm.lab.claims import TABLE, Claim, Experiment, Size, Study, load_claims, load_studies
from mesalm.settings import SettingsError, hint, unknown_key


@dataclass(frozen=True)
class ClaimTable:
    """Claims and studies by name, and their ``file``; ``source`` is its sha256 if it is Python, "" for the paper's."""

    title: str
    claims: Mapping[str, Claim]
    studies: Mapping[str, Study] = field(default_factory=dict)
    source: str = ""
    file: Path = TABLE

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Return the claims and studies given by name, claim number or "all", each once, in the order of the table.

        A number selects all versions of its claim. Studies follow the claims; "all" does not include them. Raises
        SettingsError for an unknown name.
        """
        by_number: dict[str, set[str]] = {}
        for name, claim in self.claims.items():
            by_number.setdefault(str(claim.number), set()).add(name)
        wanted: set[str] = set()
        for name in names:
            if name == "all":
                wanted |= set(self.claims)
            elif name in self.claims or name in by_number or name in self.studies:
                wanted |= by_number.get(name, {name})
            else:
                there = "`mesalm lab list` shows them all" if self.studies else f"choose from {', '.join(self.claims)}"
                meant = hint(name, [*self.claims, *self.studies], there)
                raise SettingsError(f"{name}: there is no such claim; {meant}")
        return [name for name in (*self.claims, *self.studies) if name in wanted]

    def sizes(self, name: str, size: Size, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the sizes of a claim or study, with ``changes`` applied.

        Raises SettingsError if it has no sizes of this scale, and for changes to an unknown size or to another type.
        """
        if name in self.studies:
            sizes = self.studies[name].sizes(self.claims, size)
        else:
            sizes = self.claims[name].sizes(size)
        if not sizes:
            raise SettingsError(f"size: {name} has no {size} size; leave out --size {size}")
        for key, value in (changes or {}).items():
            if key not in sizes:
                raise SettingsError(f"{name}: {key}: {unknown_key(key, sizes)}")
            sizes[key] = _alike(key, value, sizes[key])
        return sizes

    def experiment(self, name: str) -> Experiment:
        """Return the experiment of a claim or study."""
        if name in self.claims:
            return self.claims[name].experiment
        study = self.studies[name]
        return study.experiment or self.claims[study.sizes_of].experiment

    def criteria(self, name: str) -> list[dict[str, Any]]:
        """Return the criteria of a claim in the form of result files; a study has none."""
        criteria = self.claims[name].criteria if name in self.claims else []
        return [criterion.model_dump(exclude_none=True) for criterion in criteria]


def load_table(path: Path = TABLE) -> ClaimTable:
    """Return the claims of a file: a table of the paper's claims in YAML, or a Python file.

    The Python file defines ``CLAIMS``, name -> fields of `Claim`, and ``EXPERIMENTS``, name -> function(bench, sizes)
    -> `Findings`. Raises SettingsError with one line for an unusable file.
    """
    if path.suffix != ".py":
        return ClaimTable("The mesa-optimisation paper", load_claims(path), load_studies())
    module = import_file(path)
    for part in ("CLAIMS", "EXPERIMENTS"):
        if not isinstance(getattr(module, part, None), dict):
            raise SettingsError(f"{path}: has no dictionary {part}; see docs/lab.md")
    if lacking := sorted(set(module.CLAIMS) ^ set(module.EXPERIMENTS)):
        raise SettingsError(f"{path}: {lacking[0]} must be in both CLAIMS and EXPERIMENTS")
    if taken := sorted(set(module.CLAIMS) & set(load_claims())):
        raise SettingsError(f"{path}: {taken[0]} is a claim of the paper, whose result it would replace; rename it")
    claims = {
        name: Claim.build({"number": place, **entry, "experiment": module.EXPERIMENTS[name]}, name)
        for place, (name, entry) in enumerate(module.CLAIMS.items(), start=1)
    }
    return ClaimTable(path.stem, claims, source=file_hash(path), file=path)


def _alike(key: str, value: Any, known: Any) -> Any:
    """Return a value, which must have the type of the one it replaces; integers are accepted as floats."""
    if type(known) is float and type(value) is int:
        return float(value)
    if type(value) is not type(known):
        raise SettingsError(f"{key}: must be like {known!r}, not {value!r}")
    return value
