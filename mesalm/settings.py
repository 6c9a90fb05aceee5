"""Typed settings with one-line errors and field descriptions; the base of every recipe section."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Self

import pydantic
from pydantic_core import ErrorDetails, PydanticUndefined

NONE_WORDS = ("none", "None")
"""Words for no value, besides YAML's null."""

LARGEST_SEED = 2**32 - 1
"""The largest seed that every random number generator accepts."""

LEAST_TEMPERATURE = 1e-4
"""Smallest sampling temperature above 0: dividing logits by less could overflow."""


class SettingsError(ValueError):
    """A setting is invalid; the one-line message names its dotted key."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice whose spelling is nearest to ``word``, None when nothing is close."""
    found = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1, cutoff=0.5)
    return found[0] if found else None


def hint(word: str, choices: Iterable[str], otherwise: str) -> str:
    """Return "did you mean ...?" with the nearest choice, or ``otherwise`` if nothing is close."""
    guess = nearest(word, choices)
    return f"did you mean {guess!r}?" if guess else otherwise


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return an error message for an unknown key, with the nearest known key or a list of all."""
    names = sorted(known)
    return "unknown key; " + hint(key, names, f"the keys here are {', '.join(names)}")


def without_none_words(value: Any) -> Any:
    """Return None for a word in `NONE_WORDS`, and anything else unchanged."""
    return None if isinstance(value, str) and value in NONE_WORDS else value


def one_of(word: str, choices: Iterable[str], what: str) -> str:
    """Return ``word`` if it is one of ``choices``; else raise ValueError that says ``what`` and the nearest choice."""
    if word not in choices:
        raise ValueError(f"{word!r} is not {what}; " + hint(word, choices, f"choose from {', '.join(choices)}"))
    return word


def known(choices: Callable[[], Iterable[str]], what: str) -> pydantic.AfterValidator:
    """Return a validator that allows only ``choices()``, evaluated on use, with the error of `one_of`."""
    return pydantic.AfterValidator(lambda word: one_of(word, choices(), what))


class Settings(pydantic.BaseModel):
    """One section of settings: unknown keys are errors, assignments are validated, ``none`` means no value.

    Subclasses declare every field as ``Field(..., description=...)``, which `describe` and ``--help`` print. Conditions
    on several fields are checked in ``_check``.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", validate_assignment=True, validate_default=True, allow_inf_nan=False
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _none_is_no_value(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields.items()
        optional = {name for name, field in fields if type(None) in typing.get_args(field.annotation)}
        return {name: without_none_words(value) if name in optional else value for name, value in data.items()}

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        given = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        found = next((item for item in given if isinstance(item, bool)), None)
        if found is not None:
            kinds = set(re.findall(r"\w+", type_name(cls.model_fields[str(info.field_name)].annotation)))
            if kinds & {"int", "float"} and not kinds & {"bool", "any"}:
                raise ValueError(f"must be a number, not {found}")  # pydantic would read it as 1 or 0
        return value

    @pydantic.model_validator(mode="after")
    def _goes_together(self) -> Self:
        self._check()
        return self

    def _check(self) -> None:
        """Raise ValueError for fields that are inconsistent with each other; the base class has no such check."""

    @classmethod
    def build(cls, data: Any, where: str = "") -> Self:
        """Validate ``data`` (a mapping of field names to values) into settings.

        ``where`` is the dotted key under which this section stands; it begins every key in an error.
        Raises SettingsError, one line for the first fault found and the number of further faults.
        """
        if not isinstance(data, dict):
            section = where or cls.__name__
            raise SettingsError(f"{section}: must be a mapping of settings, not {_shown(data)}")
        try:
            return cls.model_validate(data)
        except pydantic.ValidationError as error:
            faults = error.errors(include_url=False)
            lines = list(dict.fromkeys(_fault_line(cls, fault, where) for fault in _merged(faults)))
            line = lines[0]
            if len(lines) > 1:
                line += f" (and {len(lines) - 1} more)"
        raise SettingsError(line)

    @classmethod
    def describe(cls, prefix: str = "") -> list[tuple[str, str, str, str]]:
        """List every field as (dotted key, type, default, description), nested sections opened in place.

        The key of a list's element has a ``0`` where the position stands; the key of a table's entry has
        ``NAME``.
        """
        rows: list[tuple[str, str, str, str]] = []
        for name, field in cls.model_fields.items():
            key = f"{prefix}.{name}" if prefix else name
            inner, holder = _section_of(field.annotation)
            default = _default_of(field)
            if inner is not None and holder == "":
                rows.extend(inner.describe(key))
                continue
            rows.append((key, type_name(field.annotation), default, field.description or ""))
            if inner is not None:
                rows.extend(inner.describe(f"{key}.{holder}"))
        return rows


def help_lines(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Return rows of `Settings.describe` as text: a line with key, type and default, and one with the meaning."""
    return "\n".join(f"{key} ({kind}) = {default}\n    {meaning}" for key, kind, default, meaning in rows)


def type_name(annotation: Any) -> str:
    """Return a type annotation in the short words used by ``--help``, such as ``int | none``."""
    if annotation is None or annotation is type(None):
        return "none"
    if annotation is Any:
        return "any"
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return " | ".join(str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_name(argument) for argument in arguments)
    if origin is None:
        return getattr(annotation, "__name__", str(annotation))
    inside = ", ".join("..." if argument is Ellipsis else type_name(argument) for argument in arguments)
    return f"{getattr(origin, '__name__', str(origin))}[{inside}]"


def _section_of(annotation: Any) -> tuple[type[Settings] | None, str]:
    """Return the Settings class inside an annotation and how it is held: "" itself, "0" list, "NAME" dict."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation, ""
    origin = typing.get_origin(annotation)
    for argument in typing.get_args(annotation):
        inner, holder = _section_of(argument)
        if inner is None:
            continue
        if origin in (list, tuple):
            return inner, "0"
        if origin is dict:
            return inner, "NAME"
        return inner, holder
    return None, ""


def _default_of(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "(required)"
    return _shown(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.model_dump(exclude_defaults=True)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def _key_path(fault: ErrorDetails) -> list[int | str]:
    # A union puts its branch's name into the location; such a part is no key, so it is left out.
    return [part for part in fault["loc"] if not (isinstance(part, str) and _is_branch(part))]


def _merged(faults: list[ErrorDetails]) -> list[ErrorDetails]:
    """Join the faults that the branches of one union reported for one key into a single fault."""
    merged: list[ErrorDetails] = []
    for fault in faults:
        last = merged[-1] if merged else None
        expected = fault["msg"].removeprefix("Input should be ")
        both_types = last is not None and expected != fault["msg"] and last["msg"].startswith("Input should")
        if last is not None and both_types and _key_path(last) == _key_path(fault):
            last["msg"] += f" or {expected}"
        else:
            merged.append(fault)
    return merged


def _fault_line(cls: type[Settings], fault: ErrorDetails, where: str) -> str:
    """Turn one of pydantic's faults into a line: dotted key, what it was, what it must be."""
    path = _key_path(fault)
    key = ".".join([*([where] if where else []), *(str(part) for part in path)])
    kind = fault["type"]
    if kind == "extra_forbidden":
        return f"{key}: {unknown_key(str(path[-1]), _names_at(cls, path[:-1]))}"
    if kind == "missing":
        return f"{key}: is missing; give it a value"
    message = fault["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{key}: {message}" if key else message
    if kind in ("too_short", "too_long"):
        context = fault.get("ctx") or {}
        limit = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return f"{key}: must have {limit} items, not {context['actual_length']}"
    if message.startswith("Input should be "):
        message = "must be " + message.removeprefix("Input should be ")
    if kind in ("dict_type", "model_type"):
        message = "must be a mapping of settings"
    line = f"{key}: {message}, not {_shown(fault['input'])}"
    if kind == "list_type" and isinstance(fault["input"], (str, int, float)):
        line += f"; write [{fault['input']}]"
    context = fault.get("ctx") or {}
    if kind == "literal_error" and isinstance(fault["input"], str):
        guess = nearest(fault["input"], re.findall(r"'([^']*)'", str(context.get("expected", ""))))
        line += f"; did you mean {guess!r}?" if guess else ""
    return line


def _is_branch(part: str) -> bool:
    return part in {"str", "int", "float", "bool", "none", "any"} or "[" in part


def _names_at(cls: type[Settings], path: list[int | str]) -> list[str]:
    """Return the field names of the section that ``path`` leads to."""
    current = cls
    for part in path:
        field = current.model_fields.get(str(part))
        if field is None:
            # A position in a list or an entry of a table: the section was already entered with the field.
            continue
        inner, _ = _section_of(field.annotation)
        if inner is None:
            return []
        current = inner
    return list(current.model_fields)
