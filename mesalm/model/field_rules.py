"""Validation rules and descriptions for the fields of a configuration."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Config = TypeVar("Config", bound=type[Any])

STORED = (
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "partial_rotary_factor",
    "per_layer_config",
    "quantization_config",
    "rope_theta",
    "tokenizer_class",
)
"""Configuration keys that transformers reads or writes although no class declares them."""

ROTARY = ("partial_rotary_factor", "rope_scaling", "rope_theta")
"""Keys of older configurations whose values transformers moves into `rope_parameters` unless that is given."""


class FieldRule(NamedTuple):
    """The rule of a field: `fault` returns what is wrong with a value, or None; `meaning` is the field's help."""

    fault: Callable[[Any], str | None]
    meaning: str


def documented(config: Config) -> Config:
    """Append one line per field in `field_rules` to a configuration's docstring: type, default and meaning."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    lines = [
        f"{name} ({fields[name].type}, default {fields[name].default!r}): {rule.meaning}"
        for name, rule in config.field_rules.items()
    ]
    lines = [textwrap.fill(line, 116, initial_indent=4 * " ", subsequent_indent=8 * " ") for line in lines]
    config.__doc__ = "\n".join([inspect.cleandoc(config.__doc__ or ""), "", "Args:", *lines])
    return config


def expect(words: str, holds: Callable[[Any], bool], meaning: str, none: str = "") -> FieldRule:
    """Make a rule that `holds(value)` must be true, described by `words`; `none` says what None means, if allowed."""
    if none:
        words = f"{words}, or None for {none}"

    def fault(value: Any) -> str | None:
        fits = bool(none) if value is None else holds(value)
        return None if fits else f"{value!r} must be {words}"

    return FieldRule(fault, meaning)


def whole(least: int, meaning: str, none: str = "") -> FieldRule:
    """Make a rule for whole numbers of at least `least`."""
    return expect(
        f"a whole number of at least {least}", lambda value: is_whole(value) and value >= least, meaning, none
    )


def number(words: str, holds: Callable[[float], bool], meaning: str, none: str = "") -> FieldRule:
    """Make a rule for finite numbers for which `holds` is true; `words` follow "a number" in the message."""
    return expect(f"a number {words}".rstrip(), lambda value: is_number(value) and holds(value), meaning, none)


def positive(meaning: str, none: str = "") -> FieldRule:
    """Make a rule for numbers above 0."""
    return number("above 0", lambda value: value > 0, meaning, none)


def not_negative(meaning: str) -> FieldRule:
    """Make a rule for numbers of at least 0."""
    return number("of at least 0", lambda value: value >= 0, meaning)


def choice(names: Iterable[str], meaning: str) -> FieldRule:
    """Make a rule for one of several names."""
    known = tuple(names)
    return expect(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known, meaning)


def truth(meaning: str) -> FieldRule:
    """Make a rule for True and False."""
    return expect("True or False", lambda value: isinstance(value, bool), meaning)


def token(meaning: str) -> FieldRule:
    """Make a rule for a token id or None."""
    return expect("a token id", is_whole, meaning, none="no such token")


def tokens(meaning: str) -> FieldRule:
    """Make a rule for a token id, a list of token ids, or None."""
    return expect(
        "a token id or a list of them",
        lambda value: is_whole(value) or (isinstance(value, (list, tuple)) and all(map(is_whole, value))),
        meaning,
        none="no such token",
    )


def table(meaning: str) -> FieldRule:
    """Make a rule for a dictionary or None."""
    return expect("a dictionary", lambda value: isinstance(value, dict), meaning, none="the default")


def names_of(known: Iterable[str], kind: str, meaning: str, further: str = "") -> FieldRule:
    """Make a rule for one known name or a list of them; `kind` says what they name, `further` how to add one."""

    def fault(value: Any) -> str | None:
        choices = sorted(known)
        if not isinstance(value, (str, list, tuple)):
            return f"{value!r} must be a name or a list of names out of {', '.join(choices)}"
        names = [value] if isinstance(value, str) else value
        if not names:
            return f"the list is empty; name at least one of {', '.join(choices)}"
        strange = [name for name in names if name not in choices]
        return f"{strange[0]!r} is not a {kind}; choose from {', '.join(choices)}{further}" if strange else None

    return FieldRule(fault, meaning)


def check_rotary(rope: dict[str, Any]) -> None:
    """Raise ValueError for invalid `rope_parameters` of softmax mixers that transformers itself would accept."""
    kind, known = rope.get("rope_type"), ("default", *ROPE_INIT_FUNCTIONS)
    base: Any = rope.get("rope_theta")
    part: Any = rope.get("partial_rotary_factor")
    if kind not in known:
        raise ValueError(f"rope_parameters: rope_type {kind!r} is unknown; choose from {', '.join(known)}")
    if not is_number(base) or base <= 0:
        raise ValueError(f"rope_parameters: rope_theta {base!r} must be a number above 0")
    if part not in (None, 1) and kind != "proportional":
        raise ValueError(f"rope_parameters: partial_rotary_factor {part!r} must be 1: whole heads are rotated")


def misspelt(key: str, fields: Iterable[str]) -> str | None:
    """Return the field whose name an unknown key resembles, None if there is none.

    The cutoff lets names from other models pass, such as `norm_eps` and `num_dense_layers`: transformers' tests set
    them in every configuration.
    """
    return next(iter(difflib.get_close_matches(key, list(fields), n=1, cutoff=0.86)), None)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)
