"""Weights with an encoding: its levels and scales are trained, its codes are fixed, or follow a shadow of floats.

    fixed      w = c[q] s          dL/dc = sum over the cluster of s dL/dw   (Han et al. 2015, trained quantization)
    shadow     q = nearest(v / s)  dL/dv = dL/dw,  dL/ds = sum dL/dw (w - v) / s  (Bengio et al. 2013; LSQ, Esser 2019)

The formulas are the encoding's own term and its derivative, whatever it is made of. Levels of zero stay zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcomp.numerics.encodings.code_path import SHORT_BYTES
from onnxcomp.numerics.encodings.encoding import (
    CodebookEncoding,
    Encoding,
    RescaledEncoding,
    ScaledEncoding,
    split_shape,
)
from onnxcomp.numerics.encodings.expression import Term, evaluate
from onnxcomp.numerics.encodings.gradient import gradient, parameters
from onnxcomp.numerics.trainable.tensor import Array, Arrays, TrainedTensor, typical

BOOK = "codebook"
SCALES = ("scale", "factor")
LEAST_SCALE = 0.05  # of what it was: a scale may not vanish or change its sign
MERGED = (1e-7, 1e-6, 1e-5, 1e-4)  # of the largest level: levels so near that codes cannot be told become one
MARGIN = 0.45  # of the way to the next level: how far a shadow may start from its level


@dataclass(frozen=True, eq=False)
class TrainedLevels(TrainedTensor):
    """The encoding's arrays are free and its codes fixed: each level is one parameter for all that have it."""

    encoding: Encoding
    initial: Array
    codes: Array = field(init=False)
    term: Term = field(init=False)
    own: Mapping[str, Array] = field(init=False)

    def __post_init__(self) -> None:
        codes = self.encoding.encode(self.initial)
        if codes is None:
            raise ValueError(f"the {self.encoding.kind} encoding does not make the values")
        term = self.encoding.trainable(codes, self.initial.shape)
        for name, value in (("codes", codes), ("term", term), ("own", parameters(term))):
            object.__setattr__(self, name, value)

    def start(self) -> dict[str, Array]:
        return {name: np.array(each, np.float32) for name, each in self.own.items()}

    def values(self, arrays: Arrays, progress: float = 1.0) -> Array:
        return evaluate(self.term, self._stored(arrays))

    def pull(self, arrays: Arrays, adjoint: Array, progress: float = 1.0) -> dict[str, Array]:
        found = gradient(self.term, adjoint, self._stored(arrays))
        return {name: np.where(self._fixed(name), 0, each).astype(np.float32) for name, each in found.items()}

    def limited(self, arrays: Arrays) -> dict[str, Array]:
        return {name: _limited(name, each, self.own[name]) for name, each in arrays.items()}

    def units(self) -> dict[str, Array]:
        return {name: unit(name, each) for name, each in self.own.items()}

    def settled(self, arrays: Arrays) -> tuple[Array, Encoding | None]:
        made = self.encoding.with_arrays(self._stored(arrays))
        return settled(made, self.codes, self.initial.shape)

    def _fixed(self, name: str) -> Array:
        """Which elements do not move: levels of zero."""
        return self.own[name] == 0 if name == BOOK else np.zeros((), bool)

    def _stored(self, arrays: Arrays) -> dict[str, Array]:
        """The arrays as they will be stored: in float16 where that lost nothing before."""
        return {name: as_short_as(self.own[name], each) for name, each in arrays.items()}


@dataclass(frozen=True, eq=False)
class TrainedRounding(TrainedTensor):
    """A shadow of the values is free, and rounded to the encoding's levels, which are free too.

    towards: values from before they were rounded, of the same shape: the shadow starts as near to them as its codes
    allow. softness: until this share of the training the values go from the shadow to
    its rounded form (alpha-blending, Liu et al. 2019, https://arxiv.org/abs/1903.01061).
    """

    encoding: Encoding
    initial: Array
    towards: Array | None = None
    softness: float = 0.0
    own: Mapping[str, Array] = field(init=False)

    def __post_init__(self) -> None:
        codes = self.encoding.encode(self.initial)
        if codes is None:
            raise ValueError(f"the {self.encoding.kind} encoding does not make the values")
        object.__setattr__(self, "own", parameters(self.encoding.trainable(codes, self.initial.shape)))

    def start(self) -> dict[str, Array]:
        found = {name: np.array(each, np.float32) for name, each in self.own.items()}
        return {"shadow": self._first_shadow(), **found}

    def values(self, arrays: Arrays, progress: float = 1.0) -> Array:
        hard = self._rounded(arrays)[2]
        share = self._hardness(progress)
        return hard if share >= 1 else np.asarray(share * hard + (1 - share) * arrays["shadow"], hard.dtype)

    def pull(self, arrays: Arrays, adjoint: Array, progress: float = 1.0) -> dict[str, Array]:
        encoding, codes, _ = self._rounded(arrays)
        share = self._hardness(progress)
        found = gradient(encoding.trainable(codes, self.initial.shape), share * adjoint)
        for name in SCALES:
            if name in found:
                found[name] = found[name] - self._through_codes(name, encoding, arrays, share * adjoint)
        if BOOK in found and self.encoding.kind == CodebookEncoding.kind:
            found[BOOK] = np.where(self.own[BOOK] == 0, 0, found[BOOK][_places(arrays[BOOK])])
        return {"shadow": adjoint, **{name: each.astype(np.float32) for name, each in found.items()}}

    def limited(self, arrays: Arrays) -> dict[str, Array]:
        kept = {name: _limited(name, each, self.own[name]) for name, each in arrays.items() if name in self.own}
        shadow = arrays["shadow"]
        low, high = self._reach(self.encoding.with_arrays(self._stored(kept)))
        return {"shadow": shadow if low is None else np.clip(shadow, low, high), **kept}

    def units(self) -> dict[str, Array]:
        return {"shadow": typical(self.initial), **{name: unit(name, each) for name, each in self.own.items()}}

    def settled(self, arrays: Arrays) -> tuple[Array, Encoding | None]:
        encoding, codes, _ = self._rounded(arrays)
        return settled(encoding, codes, self.initial.shape)

    def _hardness(self, progress: float) -> float:
        return 1.0 if self.softness <= 0 else min(1.0, progress / self.softness)

    def _stored(self, arrays: Arrays) -> dict[str, Array]:
        return {name: as_short_as(self.own[name], arrays[name]) for name in self.own}

    def _rounded(self, arrays: Arrays) -> tuple[Encoding, Array, Array]:
        """The encoding with its arrays as they are, the codes of the shadow, and their values."""
        encoding = ascending(self.encoding.with_arrays(self._stored(arrays)))
        codes = encoding.nearest(arrays["shadow"])
        return encoding, codes, encoding.decode(codes, self.initial.shape)

    def _through_codes(self, name: str, encoding: Encoding, arrays: Arrays, adjoint: Array) -> Array:
        """What a larger scale takes away because the shadow then lies lower among the levels: sum dL/dw v / s."""
        scale = np.asarray(getattr(encoding, name) if hasattr(encoding, name) else getattr(encoding.inner, name))  # type: ignore[attr-defined]
        shape = split_shape(self.initial.shape, *_blocks(encoding, name))
        low, high = self._reach(encoding)
        shadow = arrays["shadow"]
        inside = True if low is None else (shadow > low) & (shadow < high)
        share = np.where(inside, adjoint * shadow, 0).reshape(shape) / np.where(scale == 0, 1, scale)
        axes = tuple(at for at, size in enumerate(np.shape(scale)) if size == 1) if np.ndim(scale) else None
        return np.asarray(share.sum(axis=axes, keepdims=np.ndim(scale) > 0), np.float32).reshape(np.shape(scale))

    def _reach(self, encoding: Encoding) -> tuple[Array, Array] | tuple[None, None]:
        """The lowest and the highest value that the encoding makes at each place; None for vectors."""
        if encoding.level_count > 256 or not isinstance(encoding, ScaledEncoding | RescaledEncoding):
            return None, None
        shape = self.initial.shape
        ends = (0, encoding.level_count - 1)
        first, last = (encoding.decode(np.full(shape, code, np.uint8), shape) for code in ends)
        return np.minimum(first, last), np.maximum(first, last)

    def _first_shadow(self) -> Array:
        """The values, moved towards those from before as far as the codes stay what they are; where these harden
        slowly, those from before themselves. A value whose code is not the nearest stays where it is, in the middle: it
        was rounded so by its outputs, together with others, and would be the first to be rounded back."""
        values = np.array(self.initial, np.float32)
        if self.towards is not None and self.softness > 0:
            return np.array(self.towards, np.float32)
        if self.towards is None or self.encoding.level_count > 256 or self._reach(self.encoding)[0] is None:
            return values
        codes = self.encoding.nearest(self.initial).astype(np.int64)
        is_nearest = codes == self.encoding.nearest(np.asarray(self.towards, np.float32))
        last = self.encoding.level_count - 1
        below, above = (
            self.encoding.decode(np.clip(codes + step, 0, last).astype(np.uint8), values.shape) for step in (-1, 1)
        )
        low, high = np.minimum(below, above), np.maximum(below, above)
        wanted = np.asarray(self.towards, np.float32)
        reach = np.clip(wanted, values + MARGIN * (low - values), values + MARGIN * (high - values))
        return np.where(is_nearest & np.isfinite(reach), reach, values).astype(np.float32)


def unit(name: str, values: Array) -> Array:
    """What a step of an encoding's array is relative to: each scale to itself, levels to their typical size."""
    if name in SCALES:
        size = np.abs(values).astype(np.float32)
        return np.maximum(size, LEAST_SCALE * typical(values))
    return typical(values)


def as_short_as(model: Array, values: Array) -> Array:
    """The values in the type of ``model``, rounded to float16 where all of that is float16 and is stored so."""
    if model.nbytes > SHORT_BYTES and model.dtype == np.float32:
        with np.errstate(over="ignore"):
            half = model.astype(np.float16)
        if np.array_equal(half.astype(np.float32), model):
            return values.astype(np.float16).astype(model.dtype)
    return values.astype(model.dtype)


def ascending(encoding: Encoding) -> Encoding:
    """The encoding with its levels in order."""
    if isinstance(encoding, CodebookEncoding):
        return replace(encoding, codebook=np.sort(encoding.codebook, kind="stable"))
    return encoding


def settled(encoding: Encoding, codes: Array, shape: tuple[int, ...]) -> tuple[Array, Encoding | None]:
    """The values of the codes, with the encoding whose ``encode`` finds them; levels that are as good as equal are made
    equal for that."""
    if isinstance(encoding, CodebookEncoding):
        order = np.argsort(encoding.codebook, kind="stable")
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        codes = places[codes].astype(np.uint8)
        encoding = replace(encoding, codebook=encoding.codebook[order])
    values = encoding.decode(codes, shape)
    for tolerance in MERGED:
        if encoding.encode(values) is not None:
            return values, encoding
        if not isinstance(encoding, CodebookEncoding):
            break
        encoding = replace(encoding, codebook=_merged(encoding.codebook, tolerance))
        values = encoding.decode(codes, shape)
    return (values, encoding) if encoding.encode(values) is not None else (values, None)


def _merged(book: Array, tolerance: float) -> Array:
    """Ascending levels, those within the tolerance of the one before equal to it; zero stays."""
    made, least = np.array(book), tolerance * float(np.abs(book).max(initial=0))
    for at in range(1, len(made)):
        if made[at] - made[at - 1] <= least:
            made[at - 1 if made[at] == 0 else at] = made[at if made[at] == 0 else at - 1]
    return made


def _places(book: Array) -> Array:
    """Where each level stands once they are in order."""
    places = np.empty(len(book), np.int64)
    places[np.argsort(book, kind="stable")] = np.arange(len(book))
    return places


def _limited(name: str, values: Array, before: Array) -> Array:
    """A scale of the sign that it had, and not as good as zero."""
    if name not in SCALES:
        return values
    size = LEAST_SCALE * np.abs(before)
    return np.where(before >= 0, np.maximum(values, size), np.minimum(values, -size)).astype(np.float32)


def _blocks(encoding: Encoding, name: str) -> tuple[int | None, int | None]:
    """Axis and block size by which a scale is laid out; none of either for the factor of a rescaled grid."""
    if name == "factor":
        return None, None
    own = encoding.inner if isinstance(encoding, RescaledEncoding) else encoding
    assert isinstance(own, ScaledEncoding)
    return own.axis, own.block_size
