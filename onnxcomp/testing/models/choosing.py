"""One source of choices for the model builders: a seed, or whatever else answers ``integer``, such as hypothesis."""

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Chooser(Protocol):
    """Makes the choices of one model; the same answers give the same model."""

    def integer(self, low: int, high: int) -> int:
        """Return an integer between `low` and `high`, both included."""


class RandomChooser:
    """Choices from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)


def choice(chooser: Chooser, options: Sequence[T]) -> T:
    """Return one of `options`; the first is the plainest, hypothesis shrinks towards it."""
    return options[chooser.integer(0, len(options) - 1)]


def chance(chooser: Chooser, percent: int) -> bool:
    """Return True in about `percent` of 100 draws; hypothesis shrinks towards False."""
    return chooser.integer(0, 99) >= 100 - percent
