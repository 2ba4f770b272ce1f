"""Of many combinations of parameters a sample is quick tests; the others are slow ones."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def one_in(step: int, **values: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test by every combination of the values, with one in ``step`` of them for `make test`.

    Taken are those whose places in their lists add up to a multiple of ``step``: the same each time, and each value
    with many others. Raises ValueError where some value would be in slow tests only.
    """
    lists = [list(each) for each in values.values()]
    every = list(itertools.product(*map(enumerate, lists)))
    quick = [sum(place for place, _ in each) % step == 0 for each in every]
    for at, (name, listed) in enumerate(zip(values, lists, strict=True)):
        if {each[at][0] for each, taken in zip(every, quick, strict=True) if taken} != set(range(len(listed))):
            raise ValueError(f"one_in: step must leave each value of {name} in a quick test, got {step}")
    marks = {True: (), False: (pytest.mark.slow,)}
    return pytest.mark.parametrize(
        tuple(values),
        [
            pytest.param(*(value for _, value in each), marks=marks[taken])
            for each, taken in zip(every, quick, strict=True)
        ],
    )
