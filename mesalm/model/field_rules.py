"""What the fields of a configuration mean and may hold: rules that say in words what they ask for."""

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
"""Keys of configurations that transformers writes or reads though no class has them."""

ROTARY = ("partial_rotary_factor", "rope_scaling", "rope_theta")
"""Keys of older configurations whose values transformers moves into `rope_parameters`, unless those are given."""


class FieldRule(NamedTuple):
    """What a field may hold: `fault` returns what is wrong with a value, None if nothing is; `meaning` is its help."""

    fault: Callable[[Any], str | None]
    meaning: str


def documented(config: Config) -> Config:
    """Append to the docstring of a configuration one line per field of its `field_rules`: type, default, meaning."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    lines = [
        f"{name} ({fields[name].type}, default {fields[name].default!r}): {rule.meaning}"
        for name, rule in config.field_rules.items()
    ]
    lines = [textwrap.fill(line, 116, initial_indent=4 * " ", subsequent_indent=8 * " ") for line in lines]
    config.__doc__ = "\n".join([inspect.cleandoc(config.__doc__ or ""), "", "Args:", *lines])
    return config


def expect(words: str, holds: Callable[[Any], bool], meaning: str, none: str = "") -> FieldRule:
    """Make the rule that `holds` must be true of a value; `none` says what None means where it is allowed."""
    if none:
        words = f"{words}, or None for {none}"

    def fault(value: Any) -> str | None:
        fits = bool(none) if value is None else holds(value)
        return None if fits else f"{value!r} must be {words}"

    return FieldRule(fault, meaning)


def whole(least: int, meaning: str, none: str = "") -> FieldRule:
    """Make the rule of whole numbers from `least` on."""
    return expect(
        f"a whole number of at least {least}", lambda value: is_whole(value) and value >= least, meaning, none
    )


def number(words: str, holds: Callable[[float], bool], meaning: str, none: str = "") -> FieldRule:
    """Make the rule of finite numbers of which `holds` is true; `words` follow "a number"."""
    return expect(f"a number {words}".rstrip(), lambda value: is_number(value) and holds(value), meaning, none)


def positive(meaning: str, none: str = "") -> FieldRule:
    """Make the rule of numbers above 0."""
    return number("above 0", lambda value: value > 0, meaning, none)


def not_negative(meaning: str) -> FieldRule:
    """Make the rule of numbers from 0 on."""
    return number("of at least 0", lambda value: value >= 0, meaning)


def choice(names: Iterable[str], meaning: str) -> FieldRule:
    """Make the rule of one name out of several."""
    known = tuple(names)
    return expect(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known, meaning)


def truth(meaning: str) -> FieldRule:
    """Make the rule of True and False."""
    return expect("True or False", lambda value: isinstance(value, bool), meaning)


def token(meaning: str) -> FieldRule:
    """Make the rule of a token id or None."""
    return expect("a token id", is_whole, meaning, none="no such token")


def tokens(meaning: str) -> FieldRule:
    """Make the rule of a token id, a list of them, or None."""
    return expect(
        "a token id or a list of them",
        lambda value: is_whole(value) or (isinstance(value, (list, tuple)) and all(map(is_whole, value))),
        meaning,
        none="no such token",
    )


def table(meaning: str) -> FieldRule:
    """Make the rule of a dictionary or None."""
    return expect("a dictionary", lambda value: isinstance(value, dict), meaning, none="the default")


def names_of(known: Iterable[str], kind: str, meaning: str) -> FieldRule:
    """Make the rule of one name or a list of names out of several; `kind` is what they name."""

    def fault(value: Any) -> str | None:
        choices = sorted(known)
        if not isinstance(value, (str, list, tuple)):
            return f"{value!r} must be a name or a list of names out of {', '.join(choices)}"
        names = [value] if isinstance(value, str) else value
        if not names:
            return f"the list is empty; name at least one of {', '.join(choices)}"
        strange = [name for name in names if name not in choices]
        return f"{strange[0]!r} is not a {kind}; choose from {', '.join(choices)}" if strange else None

    return FieldRule(fault, meaning)


def check_rotary(rope: dict[str, Any]) -> None:
    """Raise ValueError for `rope_parameters` of softmax mixers that transformers itself would let pass."""
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
    """Return the field that an unknown key is nearly the name of, None for a key that resembles none.

    Names that other models have, such as `norm_eps` and `num_dense_layers`, resemble none: transformers' tests set them
    in every configuration.
    """
    return next(iter(difflib.get_close_matches(key, list(fields), n=1, cutoff=0.86)), None)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, which True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)
