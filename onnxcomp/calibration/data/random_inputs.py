"""Inputs drawn from what a model declares, for models that come without data.

Dimensions that the model leaves open are tried in a fixed order of plausible sizes; the first choice that
the model runs with is taken. The same symbol has the same size everywhere. ONNX Runtime shows an input of unknown
rank as a scalar; where it runs on none, other ranks are tried, the same for all such inputs.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxcomp.calibration.data.sample_axes import BATCH_SYMBOL
from onnxcomp.errors import CalibrationError, VerificationError
from onnxcomp.runtime import Feeds, Value, ValueSpec

BATCHES = (2, 1)
CHANNELS = (3, 1)
IMAGE_SIZES = (224, 64, 32, 28, 320, 640)
LENGTHS = (16, 32, 64, 8, 128, 512, 576, 1, 16_000)
PASTS = (8, 0)
ID_BOUNDS = (100, 2, 1)
RANKS = (2, 4, 3, 1)
MAX_TRIES = 120
MAX_ELEMENTS = 2**26  # of all inputs of a run together
MAX_KEPT = 2**25  # of the feeds after the first: fewer than were asked for where they are so large
MAX_DRAWN = 2**28  # of all that is tried
TRIED_S = 30.0  # a model that takes longer to fail is not tried with more sizes
SAMPLE_RATE = 16_000
SOME_WORDS = ("a", "bc", "onnx", "")

Key = str | tuple[str, int]
Sizes = Mapping[Key, int]


def draw(
    inputs: Sequence[ValueSpec], *, seed: int, run: Callable[[Feeds], object], batches: int
) -> list[dict[str, Value]]:
    """``batches`` feeds, or fewer large ones, that ``run`` accepts.

    Raises CalibrationError when no choice of sizes runs.
    """
    failure: VerificationError | str | None = None
    drawn, started = 0, time.monotonic()
    for ranked, (sizes, bound) in _tries(inputs):
        elements = sum(math.prod(_shape(spec, sizes)) for spec in ranked)
        drawn += min(elements, MAX_ELEMENTS)
        if drawn > MAX_DRAWN or time.monotonic() - started > TRIED_S:
            break
        if elements > MAX_ELEMENTS:
            failure = failure or f"inputs of {elements:,} numbers are more than the {MAX_ELEMENTS:,} that are drawn"
            continue
        rng = np.random.default_rng(seed)
        feeds = {spec.name: _value(spec, sizes, bound, rng) for spec in ranked}
        try:
            run(feeds)
        except VerificationError as error:
            failure = failure or error
            continue
        more = min(batches - 1, MAX_KEPT // max(elements, 1))
        rest = [{spec.name: _value(spec, sizes, bound, rng) for spec in ranked} for _ in range(more)]
        return [feeds, *(other for other in rest if _runs(run, other))]
    raise CalibrationError(f"no random inputs were found that the model runs with; give data ({failure})")


def _runs(run: Callable[[Feeds], object], feeds: Feeds) -> bool:
    """Whether the values too, not only the sizes, are ones that the model takes."""
    try:
        run(feeds)
    except VerificationError:
        return False
    return True


def _tries(inputs: Sequence[ValueSpec]) -> Iterator[tuple[Sequence[ValueSpec], tuple[Sizes, int]]]:
    """The inputs as they may be meant, with sizes and a bound."""
    yield from ((inputs, choice) for choice in itertools.islice(_choices(inputs), MAX_TRIES))
    unranked = {spec.name for spec in inputs if spec.is_tensor and not spec.shape}
    for rank in RANKS if unranked else ():
        ranked = [replace(spec, shape=(None,) * rank) if spec.name in unranked else spec for spec in inputs]
        yield from ((ranked, choice) for choice in itertools.islice(_choices(ranked), MAX_TRIES))


def _choices(inputs: Sequence[ValueSpec]) -> Iterator[tuple[Sizes, int]]:
    """Sizes of the open dimensions with a bound for integer ids, likeliest first."""
    roles = {key: role for spec in inputs for key, role in _roles(spec)}
    present = set(roles.values())

    def options(role: str, sizes: Sequence[int]) -> Sequence[int]:
        return sizes if role in present else sizes[:1]

    has_ids = any(spec.dtype is not None and spec.dtype.kind == "i" for spec in inputs)
    for length, image, channels, past, batch, bound in itertools.product(
        options("length", LENGTHS),
        options("image", IMAGE_SIZES),
        options("channels", CHANNELS),
        options("past", PASTS),
        options("batch", BATCHES),
        ID_BOUNDS if has_ids else ID_BOUNDS[:1],
    ):
        chosen = {
            "length": length,
            "image": image,
            "channels": channels,
            "past": past,
            "batch": batch,
            "total": past + length,
        }
        yield {key: chosen[role] for key, role in roles.items()}, bound


def _roles(spec: ValueSpec) -> Iterator[tuple[Key, str]]:
    """Each open dimension of an input with what it most likely stands for."""
    rank = len(spec.shape)
    is_channels_last = rank == 4 and spec.shape[3] in (1, 3, 4)
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, int):
            continue
        key = _key(spec, axis)
        symbol = dim.lower() if isinstance(dim, str) else ""
        if "past" in symbol or "cache" in symbol:
            yield key, "total" if "+" in symbol or "total" in symbol else "past"
        elif "total" in symbol:
            yield key, "total"
        elif axis == 0 or BATCH_SYMBOL.fullmatch(symbol) or _is_state_batch(spec, axis):
            yield key, "batch"
        elif rank == 4 and axis == (3 if is_channels_last else 1):
            yield key, "channels"
        elif rank == 4:
            yield key, "image"
        else:
            yield key, "length"


def _is_state_batch(spec: ValueSpec, axis: int) -> bool:
    """Whether this is the middle of (layers, batch, hidden), as recurrent states have it."""
    return len(spec.shape) == 3 and axis == 1 and all(isinstance(spec.shape[i], int) for i in (0, 2))


def _key(spec: ValueSpec, axis: int) -> Key:
    dim = spec.shape[axis]
    return dim if isinstance(dim, str) else (spec.name, axis)


def _shape(spec: ValueSpec, sizes: Sizes) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else sizes[_key(spec, axis)] for axis, dim in enumerate(spec.shape))


def _value(spec: ValueSpec, sizes: Sizes, bound: int, rng: np.random.Generator) -> Value:
    if spec.dtype is None:
        raise CalibrationError(f"input {spec.name} of type {spec.type} cannot be drawn at random; give data")
    shape = _shape(spec, sizes)
    if spec.is_sequence:
        return [_array(spec, shape, bound, rng) for _ in range(2)]
    return _array(spec, shape, bound, rng)


def _array(spec: ValueSpec, shape: tuple[int, ...], bound: int, rng: np.random.Generator) -> Value:
    dtype = spec.dtype
    assert dtype is not None
    is_fixed = all(isinstance(dim, int) for dim in spec.shape)
    lowered = spec.name.lower()
    if dtype.kind == "O":
        return rng.choice(np.array(SOME_WORDS, object), size=shape)
    if "mask" in lowered and dtype.kind in "biuf":
        return np.ones(shape, dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        if re.search("position", lowered) and shape:
            return np.broadcast_to(np.arange(shape[-1]), shape).astype(dtype)
        if re.search("token_type|segment", lowered):
            return np.zeros(shape, dtype)
        if re.fullmatch(r"sr|.*sampl\w*_?rate", lowered):
            return np.full(shape, SAMPLE_RATE, dtype)
        if len(shape) <= 1 and is_fixed:
            # Likely a shape, a count or an axis: large ones make outputs that no memory holds.
            return rng.integers(1, 4, shape).astype(dtype) if bound > 1 else np.zeros(shape, dtype)
        top = 256 if dtype == np.uint8 else min(bound, 127)
        return rng.integers(0, top, shape).astype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
