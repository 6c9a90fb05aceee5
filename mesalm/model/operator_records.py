"""Records of an operator's tensors, and registration of functions on records with torch.library.

torch.library accepts only flat lists of tensors and numbers. Here functions take and return records (named tuples), and
operator schemas are derived from their annotations, so that no other code depends on the order of arguments.

Operators are registered in a namespace derived from this package's name, so that a second copy of the folder (remote
code beside a checkpoint) does not collide with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

NAMESPACE = re.sub(r"\W", "_", __package__ or __name__)


Gate = TypeVar("Gate", bound=Tensor | None)


class Tokens(NamedTuple, Generic[Gate]):
    """Query `[B, T, H, K]`, key `[B, T, G, K]`, value `[B, T, G, V]` and gates `[B, T, G]` of one call.

    A gate may be None, which means a log_forget of 0 or an input_gate of 1.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    log_forget: Gate
    input_gate: Gate


class Operands(NamedTuple):
    """The tensors of one call of mesa attention, or their gradients.

    query `[B, T, H, K]`, key `[B, T, G, K]`, value `[B, T, G, V]`, gates `[B, T, G]`, ridge `[G, K]`, initial states
    gram `[B, G, K, K]` and cross `[B, G, K, V]`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    log_forget: Tensor
    input_gate: Tensor
    ridge: Tensor
    gram: Tensor
    cross: Tensor


class Results(NamedTuple):
    """The results of one call of mesa attention.

    output `[B, T, H, V]`, final states gram and cross, solution `[B, T, H, K]`, and the steps of the slowest system of
    each chunk and head `[B, N, H]` (int32).
    """

    output: Tensor
    gram: Tensor
    cross: Tensor
    solution: Tensor
    steps: Tensor


class Upstreams(NamedTuple):
    """The upstream gradients of the output and of the final states."""

    upstream: Tensor
    gram_upstream: Tensor
    cross_upstream: Tensor


def split(arguments: Sequence[Any], *kinds: Any) -> list[Any]:
    """Group a flat list by `kinds`: a record type takes one entry per field, any other type takes one entry."""
    parts, first = [], 0
    for kind in kinds:
        end = first + (len(kind._fields) if _is_record(kind) else 1)
        parts.append(kind(*arguments[first:end]) if _is_record(kind) else arguments[first])
        first = end
    return parts


def register(name: str, function: Callable[..., Any], shapes: Callable[..., Any]) -> Any:
    """Register `function` as the operator `name`, which takes and returns the fields of the records as flat lists.

    shapes: a function of the same arguments that returns empty results of the right shapes and dtypes. All parameters
    and the result must be annotated; the result is a tensor, a record, or a tuple of records and tensors.
    """
    hints = get_type_hints(function)
    given = hints.pop("return")
    gives = get_args(given) if get_origin(given) is tuple else (given,)
    takes = tuple(hints.values())
    arguments = ", ".join(
        f"{kind.__name__} {field or parameter}" for parameter, hint in hints.items() for field, kind in _fields(hint)
    )
    results = ", ".join(kind.__name__ for hint in gives for _, kind in _fields(hint))

    def flat(called: Callable[..., Any]) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        def call(*values: Any) -> Tensor | tuple[Tensor, ...]:
            outcome = called(*split(values, *takes))
            if isinstance(outcome, Tensor):
                return outcome
            parts = (outcome,) if _is_record(given) else outcome
            return tuple(x for part in parts for x in (part if isinstance(part, tuple) else (part,)))

        return call

    schema = f"({arguments}) -> ({results})"
    operator = torch.library.custom_op(f"{NAMESPACE}::{name}", flat(function), mutates_args=(), schema=schema)
    operator.register_fake(flat(shapes))
    return operator


def _is_record(kind: Any) -> bool:
    return hasattr(kind, "_fields")


def _fields(kind: Any) -> list[tuple[str, Any]]:
    """Return names and types of a record's fields; for any other type the type itself with an empty name."""
    return list(get_type_hints(kind).items()) if _is_record(kind) else [("", kind)]
