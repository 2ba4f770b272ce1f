"""Symbols of an array coded in the context of those around them.

    symbol -> class and place;  class -> zero? sign? beyond 1? beyond 2? ...   bits with mixed probabilities
                                place                                          adaptive, one after another

Written and read by one walk over the steps of ``surroundings``: only where the bits come from differs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import PackError
from onnxcomp.packing.coders.classes import ClassScheme
from onnxcomp.packing.coders.mixing import MixingNode
from onnxcomp.packing.coders.range_coder import SymbolReader, SymbolWriter
from onnxcomp.packing.coders.surroundings import FINE, SIZES, ReadingStep, Shape4, Surroundings

Array = NDArray[Any]

PLACE_PRIOR = 16  # of each place in a class


class _Exchange(Protocol):
    """Where bits come from: a known array that is written, or what is read."""

    def __call__(self, ones: Array, known: Callable[[], Array]) -> Array: ...


def mean_magnitude(classes: Array, scheme: ClassScheme) -> int:
    """The mean magnitude of the classes in 16ths."""
    counts = np.bincount(np.abs(classes).reshape(-1), minlength=len(scheme.magnitudes))
    return max(1, int(FINE * (counts * scheme.magnitudes).sum() // max(1, classes.size)))


def write_mixed(writer: SymbolWriter, symbols: Array, shape: Shape4, scheme: ClassScheme, mean: int) -> None:
    """Write (n,) symbols that have a shape (rows, channels, height, width)."""

    def written(ones: Array, known: Callable[[], Array]) -> Array:
        bits = known().astype(np.int32)
        writer.bits(bits, ones)
        return bits

    classes = scheme.classes[symbols]
    _walk(shape, scheme, mean, written, classes.reshape(*shape[:2], -1))
    places = scheme.places[symbols]
    for size, room in enumerate(scheme.room):
        if room > 1:
            writer.adaptive(places[np.abs(classes) == size], np.full(room, PLACE_PRIOR))


def read_mixed(reader: SymbolReader, shape: Shape4, scheme: ClassScheme, mean: int) -> Array:
    """The inverse: (n,) int32 symbols. Raises PackError where there are none."""

    def read(ones: Array, known: Callable[[], Array]) -> Array:
        return reader.bits(ones)

    classes = _walk(shape, scheme, mean, read, None).reshape(-1)
    places = np.zeros(classes.size, np.int64)
    for size, room in enumerate(scheme.room):
        if room > 1:
            held = np.flatnonzero(np.abs(classes) == size)
            places[held] = reader.adaptive(held.size, np.full(room, PLACE_PRIOR))
    try:
        return scheme.symbols(classes, places)
    except IndexError as error:
        raise PackError(f"the packed symbols are broken: {error}.") from error


def _walk(shape: Shape4, scheme: ClassScheme, mean: int, exchange: _Exchange, known: Array | None) -> Array:
    """The signed classes (rows, channels, places of the grid), exchanged bit by bit. known: all of them, to write."""
    signed = np.concatenate([-scheme.magnitudes[:0:-1], scheme.magnitudes])
    middle = len(scheme.magnitudes) - 1
    around = Surroundings(shape, mean, int(scheme.magnitudes[-1]))
    found = np.zeros((shape[0], shape[1], shape[2] * shape[3]), np.int8)
    questions = [_Questions(scheme, exchange) for _ in range(2)]
    source = known if known is not None else np.zeros((shape[0], shape[1], 0), np.int8)
    for step in around.steps():
        own = source[step.first : step.last]
        own = own[:, :, step.places].reshape(-1) if known is not None else own.reshape(-1)
        classes = questions[step.color].exchanged(around.contexts(step), own)
        around.put(step, signed[classes.astype(np.int64) + middle])
        _put(found, step, classes)
    return found


def _put(found: Array, step: ReadingStep, classes: Array) -> None:
    found[step.first : step.last][:, :, step.places] = classes.reshape(
        step.last - step.first, found.shape[1], step.places.size
    )


class _Questions:
    """The questions that lead to a class, each with counts and weights of its own."""

    def __init__(self, scheme: ClassScheme, exchange: _Exchange) -> None:
        self._scheme = scheme
        self._exchange = exchange
        self._nodes: dict[tuple[int, int], MixingNode] = {}

    def exchanged(self, contexts: Array, known: Array) -> Array:
        """(n,) int8 classes of the symbols in these contexts. known: the same, or empty where they are read."""
        count = contexts.shape[1]
        lanes = np.arange(count)
        signs, sizes = np.ones(count, np.int8), np.zeros(count, np.int8)
        if self._scheme.has_zero:
            lanes = np.flatnonzero(self._asked((0, 0), contexts, lanes, lambda: known != 0))
        negative, positive = self._scheme.farthest
        if negative and positive:
            signs[lanes] = 2 * self._asked((0, 1), contexts, lanes, lambda: known[lanes] > 0) - 1
        elif negative:
            signs[lanes] = -1
        sizes[lanes] = 1
        for sign, farthest in ((-1, negative), (1, positive)):
            own = lanes[signs[lanes] == sign]
            for size in range(1, farthest):
                answer = partial(_is_beyond, known, own, size)
                own = own[self._asked((sign, size), contexts, own, answer) != 0]
                sizes[own] = size + 1
        return signs * sizes

    def _asked(self, key: tuple[int, int], contexts: Array, lanes: Array, known: Callable[[], Array]) -> Array:
        """The answers of these lanes to one question."""
        if not lanes.size:
            return np.zeros(0, np.int32)
        node = self._nodes.setdefault(key, MixingNode(SIZES))
        own = contexts if lanes.size == contexts.shape[1] else contexts.take(lanes, axis=1)
        ones, stretches = node.ones(own)
        bits = self._exchange(ones, known)
        node.learn(bits, ones, stretches, own)
        return bits


def _is_beyond(classes: Array, lanes: Array, size: int) -> Array:
    found: Array = np.abs(classes[lanes]) > size
    return found
