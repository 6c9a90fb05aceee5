"""Change single settings by dotted key, for the command line and for the arms of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mesalm.recipe_yaml import read_yaml
from mesalm.settings import Settings, SettingsError, without_none_words

EXCLUSIVE = {"train.tokens": "train.steps", "train.steps": "train.tokens"}
"""Setting one of these keys removes the other, since a recipe may have only one of the two."""

NO_VALUE = ("*", "&", "!", "@", "%", "`")
"""First characters that mark an override's value as plain text instead of YAML, such as the pattern ``*.txt``."""

TABLES = {"arms": 2, "grid": 1}
"""Sections whose entries are dotted keys, and the number of names before such a key."""


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``dotted.key=YAML value`` into the key and its value."""
    key, sign, value = text.partition("=")
    key = key.strip()
    if not sign or not key:
        raise SettingsError(f"{text!r}: must be dotted.key=value, such as train.steps=100")
    if value.lstrip().startswith(NO_VALUE):
        return key, value.strip()
    return key, read_yaml(value, key)


def apply_overrides(data: dict[str, Any], changes: Iterable[tuple[str, Any]], root: type[Settings]) -> None:
    """Set dotted keys in the plain data of a recipe, in place.

    A number in a key is an index into a list (``data.sources.0.files``). Missing sections and lists are
    filled in from the defaults of ``root`` before their parts are changed. Values are checked later, when the
    settings are built; here only a key that leads into a value without parts raises SettingsError.
    """
    given = list(changes)
    keys = {key for key, _ in given}
    for key, value in given:
        other = EXCLUSIVE.get(key)
        if other is not None and without_none_words(value) is not None and other not in keys:
            _remove(data, other.split("."))
        _set(data, key, value, root)


def _remove(data: Any, path: list[str]) -> None:
    for part in path[:-1]:
        data = data.get(part) if isinstance(data, dict) else None
    if isinstance(data, dict):
        data.pop(path[-1], None)


def _set(data: dict[str, Any], key: str, value: Any, root: type[Settings]) -> None:
    parts = key.split(".")
    names = TABLES.get(parts[0], len(parts))
    path = [*parts[:names], *([".".join(parts[names:])] if parts[names:] else [])]
    spot: Any = data
    section: type[Settings] | None = root
    for depth, part in enumerate(path[:-1]):
        where = ".".join(path[: depth + 1])
        place = _place(spot, part, where)
        default = _default(section, part)
        if isinstance(spot, dict) and spot.get(part) is None:
            spot[part] = _plain(default)
        spot = spot[place]
        section = type(default) if isinstance(default, Settings) else None
        if not isinstance(spot, (dict, list)):
            raise SettingsError(f"{key}: {where} is {spot!r} and has no fields; set {where} itself")
    spot[_place(spot, path[-1], key)] = value


def _place(spot: Any, part: str, where: str) -> str | int:
    if not isinstance(spot, list):
        return part
    if not part.isdecimal() or int(part) >= len(spot):
        raise SettingsError(f"{where}: must be an index into a list of {len(spot)}, from 0 to {len(spot) - 1}")
    return int(part)


def _default(section: type[Settings] | None, name: str) -> Any:
    field = section.model_fields.get(name) if section is not None else None
    return None if field is None else field.get_default(call_default_factory=True)


def _plain(default: Any) -> Any:
    if isinstance(default, Settings):
        return {}
    if isinstance(default, list):
        return [item.model_dump(mode="json") if isinstance(item, Settings) else item for item in default]
    return {}
