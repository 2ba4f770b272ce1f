"""Calibration data that a program holds: arrays, and what gives arrays, as a file or a function would.

    {"x": array}        -> one group, as an .npz of it would be
    array               -> the model's one input, as an .npy would be
    [{"x": a}, ...]     -> feeds, as a function gives them; a generator is read once, up to 10,000 of them
    lambda: ...         -> what it gives, as of ``module:function``
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from onnxcomp.calibration.data.sources import MAX_FEEDS, ArrayScratch, Loader, as_value, feed_loaders, named
from onnxcomp.errors import CalibrationError
from onnxcomp.runtime import ValueSpec

FORMS = "a path, module:function, a dict of arrays, an array, an iterable of dicts, or a function that gives these"
ARRAYS = "arrays from Python"
FEEDS = "feeds from Python"


def is_named(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether the source is a file, a folder or a function by its name."""
    return isinstance(source, (str, os.PathLike))


def held_loaders(source: Any, inputs: Sequence[ValueSpec], scratch: ArrayScratch) -> list[tuple[str, Loader]]:
    """Loaders of what a program holds. Raises CalibrationError for what holds no arrays."""
    if isinstance(source, Mapping):
        values = {str(name): as_value(value) for name, value in source.items()}
        return [(ARRAYS, functools.partial(dict, values))]
    if hasattr(source, "__array__"):
        return [(ARRAYS, functools.partial(dict, _alone(source, inputs)))]
    if callable(source):
        with named(ARRAYS):
            source = source()
        if isinstance(source, Mapping) or hasattr(source, "__array__"):
            return held_loaders(source, inputs, scratch)
    if isinstance(source, (bytes, str)) or not isinstance(source, Iterable):
        raise CalibrationError(f"calibration data: must be {FORMS}, got {type(source).__name__}")
    return feed_loaders(FEEDS, _feeds(source, inputs), scratch)


def described(source: Any) -> str:
    """What reports call the source."""
    if is_named(source):
        return str(source)
    return ARRAYS if isinstance(source, Mapping) or hasattr(source, "__array__") else FEEDS


def _feeds(source: Iterable[Any], inputs: Sequence[ValueSpec]) -> Iterator[Mapping[str, Any]]:
    """The feeds of an iterable, of the single input where they are arrays."""
    given = iter(source)
    for number in range(MAX_FEEDS):
        with named(FEEDS):
            feed = next(given, None)
        if feed is None:
            return
        if hasattr(feed, "__array__"):
            feed = _alone(feed, inputs)
        if not isinstance(feed, Mapping):
            raise CalibrationError(
                f"calibration data: feed {number} must be a dict of arrays by input name, got {type(feed).__name__}"
            )
        yield feed


def _alone(array: Any, inputs: Sequence[ValueSpec]) -> dict[str, Any]:
    """An array for the model's only input. Raises CalibrationError for a model of several."""
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise CalibrationError(f"calibration data: one array was given and the model wants: {names}. Give a dict.")
    return {inputs[0].name: np.asarray(array)}


Held = Mapping[str, Any] | Iterable[Any] | Callable[[], Any]
