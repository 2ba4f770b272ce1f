"""Which samples go to the verification part: whole families of them, so that no content is on both sides.

a b a c d b  (shuffled, by content)  ->  verification a a b b, calibration c d

A family is one content, or one sequence where samples are steps of sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnxcomp.calibration.data.groups import Group

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
LEAST_FAMILIES = 8  # long sequences are cut into stretches until there are about so many


def divided(
    groups: Sequence[Group], order: Ints, contents: Ints, rng: np.random.Generator, fraction: float, minimum: int
) -> tuple[Ints, Ints] | str:
    """The rows of ``order`` (samples, 2), shuffled, for calibration and verification; or why none can be kept apart.

    contents: (samples,) of each row. fraction, minimum: of the distinct samples to verify on, half at most.
    """
    rows = _shuffled_rows(groups, order, rng)
    if len(rows) < 2:
        return "too few samples to keep some apart"
    distinct = len(np.unique(contents))
    are_sequences = all(group.sequences is not None for group in groups)
    if not are_sequences and distinct == len(order):
        share = max(math.ceil(fraction * len(rows)), math.ceil(minimum / len(rows[0])))
        share = min(share, len(rows) // 2)
        return order[np.concatenate(rows[share:])], order[np.concatenate(rows[:share])]
    if distinct < 2:
        return f"all {len(order)} samples are equal, so none can be kept apart"
    shuffled = np.concatenate(rows)
    share = min(max(math.ceil(fraction * distinct), minimum), distinct // 2)
    families = stretches(sequence_of(groups, order), order) if are_sequences else contents
    is_chosen = chosen_side(contents[shuffled], families[shuffled], share)
    parts = [list(_units(groups, order, shuffled[side])) for side in (~is_chosen, is_chosen)]
    if not all(parts):
        return "too few distinct samples to keep some apart"
    calibration, verification = (order[np.concatenate(part)] for part in parts)
    return calibration, verification


def sequence_of(groups: Sequence[Group], order: Ints) -> Ints:
    """(samples,) of each row of ``order`` the number of its sequence, where all samples are steps."""
    numbers = np.zeros(len(order), np.int64)
    for i, group in enumerate(groups):
        here = order[:, 0] == i
        if group.sequences is not None:
            numbers[here] = group.sequences[order[here, 1]]
    return numbers


def _shuffled_rows(groups: Sequence[Group], order: Ints, rng: np.random.Generator) -> list[Ints]:
    """Where in ``order`` the samples stand, shuffled, in units of the batch that their group demands."""
    mixed = []
    for number in range(len(groups)):
        here = np.flatnonzero(order[:, 0] == number)
        mixed.append(here[rng.permutation(len(here))])
    units = list(_units(groups, order, np.concatenate(mixed)))
    return [units[i] for i in rng.permutation(len(units))]


def _units(groups: Sequence[Group], order: Ints, rows: Ints) -> Iterator[Ints]:
    """Rows in units of the batch that their group's model dimension demands, incomplete ones left out.

    Where no group demands more than one they stay in their order.
    """
    if not any((group.cut.exact or 1) > 1 for group in groups):
        yield from (rows[i : i + 1] for i in range(len(rows)))
        return
    for number, group in enumerate(groups):
        own = rows[order[rows, 0] == number]
        unit = group.cut.exact or 1
        yield from (own[i : i + unit] for i in range(0, len(own) - unit + 1, unit))


def chosen_side(contents: Ints, families: Ints, wanted: int) -> Mask:
    """Which samples are taken, as (samples,) bool; families are taken in the order in which they first appear.

    contents, families: (samples,) equal numbers for equal contents and for the same family. wanted: distinct contents
    to take; a family that would exceed that is passed over, but one is taken and one is left wherever there are two.
    A content in two families goes where its first sample goes.
    """
    first = _first_appearances(contents)
    owner = dict(zip(contents[first].tolist(), families[first].tolist(), strict=True))
    names, starts, weights = np.unique(families[np.sort(first)], return_index=True, return_counts=True)
    taken: set[int] = set()
    total = 0
    for at in np.argsort(starts):
        is_all = len(taken) + 1 == len(names)
        if not is_all and (not taken or total + weights[at] <= wanted):
            taken.add(int(names[at]))
            total += int(weights[at])
    return np.array([owner[content] in taken for content in contents.tolist()], dtype=np.bool_)


def stretches(sequences: Ints, order: Ints) -> Ints:
    """(samples,) the family of each row of ``order``: its sequence, or where these are few, a stretch of it."""
    names, inverse, counts = np.unique(sequences, return_inverse=True, return_counts=True)
    parts = -(-LEAST_FAMILIES // len(names))
    steps = np.lexsort((order[:, 1], order[:, 0], inverse))
    starts = np.cumsum(counts) - counts
    ranks = np.empty(len(order), np.int64)
    ranks[steps] = np.arange(len(order)) - np.repeat(starts, counts)
    return np.asarray(inverse * parts + ranks * parts // counts[inverse], dtype=np.int64)


def _first_appearances(numbers: Ints) -> Ints:
    """Where each number stands first."""
    return np.asarray(np.unique(numbers, return_index=True)[1], dtype=np.int64)
