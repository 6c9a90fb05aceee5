"""What the fields of a configuration may hold: rules that say in words what they ask for."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

Rule = Callable[[Any], str | None]
"""Return what is wrong with a value, None if nothing is."""


def expect(words: str, holds: Callable[[Any], bool], none: str = "") -> Rule:
    """Make the rule that `holds` must be true of a value; `none` says what None means where it is allowed."""
    if none:
        words = f"{words}, or None for {none}"

    def rule(value: Any) -> str | None:
        fits = bool(none) if value is None else holds(value)
        return None if fits else f"{value!r} must be {words}"

    return rule


def whole(least: int, none: str = "") -> Rule:
    """Make the rule of whole numbers from `least` on."""
    return expect(f"a whole number of at least {least}", lambda value: _is_whole(value) and value >= least, none)


def number(words: str, holds: Callable[[float], bool], none: str = "") -> Rule:
    """Make the rule of finite numbers of which `holds` is true; `words` follow "a number"."""
    return expect(f"a number {words}".rstrip(), lambda value: is_number(value) and holds(value), none)


def choice(names: Iterable[str]) -> Rule:
    """Make the rule of one name out of several."""
    known = tuple(names)
    return expect(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known)


truth = expect("True or False", lambda value: isinstance(value, bool))
token = expect("a token id", lambda value: _is_whole(value), none="no such token")
tokens = expect(
    "a token id or a list of them",
    lambda value: _is_whole(value) or (isinstance(value, (list, tuple)) and all(map(_is_whole, value))),
    none="no such token",
)
table = expect("a dictionary", lambda value: isinstance(value, dict), none="the default")


def names_of(known: Iterable[str], kind: str) -> Rule:
    """Make the rule of one name or a list of names out of several; `kind` is what they name."""
    choices = sorted(known)

    def rule(value: Any) -> str | None:
        if not isinstance(value, (str, list, tuple)):
            return f"{value!r} must be a name or a list of names out of {', '.join(choices)}"
        names = [value] if isinstance(value, str) else value
        if not names:
            return f"the list is empty; name at least one of {', '.join(choices)}"
        strange = [name for name in names if name not in choices]
        return f"{strange[0]!r} is not a {kind}; choose from {', '.join(choices)}" if strange else None

    return rule


def misspelt(key: str, fields: Iterable[str]) -> str | None:
    """Return the field that an unknown key is nearly the name of, None for a key that resembles none."""
    return next(iter(difflib.get_close_matches(key, list(fields), n=1, cutoff=0.8)), None)


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number, which True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
