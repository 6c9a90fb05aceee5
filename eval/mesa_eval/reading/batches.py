"""Group rows of tokens into batches, by length or by a shared prefix that is read only once.

The batches depend on neither the model nor the number of processes: the same rows always give the same
batches, and so the same numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

LEAST_SHARED = 16  # tokens; reading a shorter prefix again costs less than a batch of its own
LENGTHS_APART = 0.9  # prefixes at least this long, against the longest of a batch, are cut to one length
HELD = 4  # a batch behind prefixes may hold this many times the tokens it reads, in the cache


@dataclass(frozen=True)
class Batch:
    """The tokens that one forward pass reads.

    rows: indices of rows. cut: number of tokens of each row that are already in a cache, 0 for none; heads: rows whose
    first `cut` tokens are the prefixes, which are read together first; slots: the head that each row continues.
    """

    rows: tuple[int, ...]
    cut: int = 0
    heads: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Group:
    rows: tuple[int, ...]
    cut: int


def plan_batches(
    rows: Sequence[Sequence[int]],
    firsts: Sequence[int],
    labels: Sequence[Hashable] | None,
    budget: int,
) -> list[Batch]:
    """Group rows into batches of at most `budget` tokens, including padding.

    rows: tokens, of which all but the last are read; firsts: the first scored position of each, at least 1; labels:
    rows with the same label are searched for a common prefix (None: no prefixes are shared). A prefix ends before the
    position that predicts the first scored token of any of its rows. Rows without scored tokens are left out.
    """
    wanted = [index for index, row in enumerate(rows) if len(row) > firsts[index]]
    groups, alone = _find_groups(rows, firsts, wanted, labels) if labels is not None else ([], wanted)
    batches = [Batch(tuple(chosen)) for chosen in _by_length(alone, [len(row) - 1 for row in rows], budget)]
    for bucket in _buckets(groups, budget):
        cut = min(group.cut for group in bucket)
        heads = tuple(group.rows[0] for group in bucket)
        slot = {row: place for place, group in enumerate(bucket) for row in group.rows}
        left = [len(row) - 1 - cut for row in rows]
        for chosen in _by_length(list(slot), left, budget, held=cut, most_held=HELD * budget):
            batches.append(Batch(tuple(chosen), cut, heads, tuple(slot[row] for row in chosen)))
    return batches


def plan_prompts(lengths: Sequence[int], most: Sequence[int], budget: int) -> list[Batch]:
    """Group prompts into batches by length; all prompts of a batch have the same limit `most` on new tokens."""
    batches: list[Batch] = []
    for more in sorted(set(most)):
        own = [index for index, wanted in enumerate(most) if wanted == more]
        batches.extend(Batch(tuple(rows)) for rows in _by_length(own, [length + more for length in lengths], budget))
    return batches


def tokens_read(batches: Iterable[Batch], rows: Sequence[Sequence[int]]) -> int:
    """Return how many tokens the batches read, without padding and with each prefix counted once."""
    heads = {(batch.heads, batch.cut) for batch in batches if batch.cut}
    prefixes = sum(len(own) * cut for own, cut in heads)
    return prefixes + sum(len(rows[row]) - 1 - batch.cut for batch in batches for row in batch.rows)


def _find_groups(
    rows: Sequence[Sequence[int]], firsts: Sequence[int], wanted: Sequence[int], labels: Sequence[Hashable]
) -> tuple[list[_Group], list[int]]:
    """Return the groups with long enough prefixes, and the rows without a group."""
    members: dict[Hashable, list[int]] = {}
    for index in wanted:
        members.setdefault(labels[index], []).append(index)
    groups, alone = [], []
    for own in members.values():
        cut = _common_prefix([rows[index] for index in own], min(firsts[index] for index in own) - 1)
        if len(own) > 1 and cut >= LEAST_SHARED:
            groups.append(_Group(tuple(own), cut))
        else:
            alone.extend(own)
    return groups, alone


def _common_prefix(rows: Sequence[Sequence[int]], limit: int) -> int:
    """Return the length of the common prefix of all rows, at most `limit` tokens."""
    ordered = sorted(map(tuple, rows))
    first, last = ordered[0], ordered[-1]  # rows between them in order share at least what these two do
    for place in range(min(limit, len(first), len(last))):
        if first[place] != last[place]:
            return place
    return min(limit, len(first), len(last))


def _buckets(groups: Sequence[_Group], budget: int) -> list[list[_Group]]:
    """Combine groups whose prefixes have similar lengths and that can be read in one pass."""
    buckets: list[list[_Group]] = []
    for group in sorted(groups, key=lambda group: -group.cut):
        if buckets:
            longest, count = buckets[-1][0].cut, len(buckets[-1])
            if group.cut >= LENGTHS_APART * longest and (count + 1) * longest <= budget:
                buckets[-1].append(group)
                continue
        buckets.append([group])
    return buckets


def _by_length(
    chosen: Sequence[int], lengths: Sequence[int], budget: int, held: int = 0, most_held: int = 0
) -> list[list[int]]:
    """Cut indices, longest first, into batches with padded tokens within the budget."""
    order = sorted(chosen, key=lambda index: -lengths[index])
    batches = []
    position = 0
    while position < len(order):
        longest = lengths[order[position]]
        count = budget // longest
        if held:
            count = min(count, most_held // (held + longest))
        count = max(1, count)
        batches.append(order[position : position + count])
        position += count
    return batches
