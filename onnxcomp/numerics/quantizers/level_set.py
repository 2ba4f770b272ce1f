"""Where the values of a weight may lie: (level[code] - offset[u]) * scale[u], u the unit that a position belongs to.

Affine grids and codebooks in one form: levels 0, 1, .. with an offset, or any levels without. A unit is what shares
a scale: the whole weight, a channel, a block. Positions are in any order: in the weight's own shape, or packed
into the matrices (g groups, r rows, k columns) that its nodes multiply with.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.arrays.nearest import MOST_LEVELS, LevelFinder
from onnxcomp.numerics.encodings.code_path import CodePath, code_path
from onnxcomp.numerics.encodings.encoding import CodebookEncoding, GridEncoding, compute_dtype, float_dtype
from onnxcomp.numerics.encodings.expression import evaluate

Array = NDArray[Any]
LevelEncoding = GridEncoding | CodebookEncoding
MANY_VALUES = 1500  # from which on buckets are the shorter way to the nearest levels than a search
FORMS = (["Gather"], ["Gather", "Mul"], ["Sub", "Mul"])  # operators between codes and values, Casts aside


@dataclass(frozen=True)
class Lattice:
    """level: (n,) float64, ascending. scale, offset: (units,) float64; a scale of 0 stands for a unit of zeros.
    unit: integers, one a position."""

    level: Array
    scale: Array
    offset: Array
    unit: Array

    @property
    def is_grid(self) -> bool:
        """Whether the levels are 0, 1, .., n - 1."""
        return bool(self.level[0] == 0 and self.level[-1] == self.level.size - 1 and (np.diff(self.level) == 1).all())

    @property
    def reach(self) -> Array:
        """The largest magnitude of a level of each unit, at a scale of one."""
        ends = self.level[[0, -1]] - self.offset[:, None]
        reach: Array = np.abs(ends).max(axis=1)
        return reach

    def at(self, where: Any) -> Lattice:
        """The lattice of some of the positions."""
        return replace(self, unit=self.unit[where])

    def values(self, codes: Array) -> Array:
        """What codes (of the units' shape) stand for, float64."""
        values: Array = (self.level[codes] - self.offset[self.unit]) * self.scale[self.unit]
        return values

    def nearest(self, values: Array) -> Array:
        """The codes of the levels nearest to values of the units' shape, uint8."""
        return Places(self).codes(values)


class Places:
    """The lattice with scale and offset for each position, for rounding many times."""

    def __init__(self, lattice: Lattice) -> None:
        self._level = lattice.level
        self._middle = (lattice.level[1:] + lattice.level[:-1]) / 2
        # One level alone has a step of next to nothing.
        self._steps = np.diff(lattice.level) if lattice.level.size > 1 else np.full(1, 1e-30)
        self._is_grid = lattice.is_grid
        self._scale = lattice.scale[lattice.unit]
        self._divisor = np.where(self._scale == 0, 1.0, self._scale)
        self._offset = lattice.offset[lattice.unit]

    @functools.cached_property
    def _between(self) -> LevelFinder:
        return LevelFinder(self._middle)

    def codes(self, values: Array, at: Any = ...) -> Array:
        """The nearest codes, of the positions ``at``, uint8."""
        position = self._position(values, at)
        if self._is_grid:  # several times as fast as a search
            return np.minimum(np.maximum(np.rint(position), 0), self._level.size - 1).astype(np.uint8)
        if position.size < MANY_VALUES or self._level.size > MOST_LEVELS:
            return np.searchsorted(self._middle, position).astype(np.uint8)
        return self._between.codes(position)

    def values(self, codes: Array, at: Any = ...) -> Array:
        """What codes stand for."""
        values: Array = (self._level[codes] - self._offset[at]) * self._scale[at]
        return values

    def rounded(self, values: Array, at: Any = ...) -> Array:
        """The nearest values of the lattice."""
        return self.values(self.codes(values, at), at)

    def drawn(self, values: Array, sharpness: float, at: Any = ...) -> Array:
        """Values moved away from the middle of their two levels, to ``sharpness`` times the distance, at most to a
        level; those beyond the ends to the ends."""
        position, last = self._position(values, at), max(0, self._level.size - 2)
        if self._is_grid and self._level.size > 1:  # faster than looking levels up that are what they count
            low = np.minimum(np.maximum(np.floor(position), 0), last)
            moved = low + np.minimum(np.maximum(0.5 + sharpness * (position - low - 0.5), 0), 1)
        else:
            found = np.searchsorted(self._level, position, side="right") - 1
            below = np.minimum(np.maximum(found, 0), last).astype(np.intp)
            low, step = self._level[below], self._steps[below]
            moved = low + np.minimum(np.maximum(0.5 + sharpness * ((position - low) / step - 0.5), 0), 1) * step
        drawn: Array = (moved - self._offset[at]) * self._scale[at]
        return drawn

    def _position(self, values: Array, at: Any) -> Array:
        position: Array = values / self._divisor[at] + self._offset[at]
        return position


def lattice_of(encoding: LevelEncoding, shape: tuple[int, ...]) -> Lattice:
    """The lattice that the encoding's term makes, its units in the weight's shape.

    ValueError where the term is not (level[code] - offset) * scale.
    """
    path = code_path(encoding, shape)
    parts = _parts(path)
    level = parts.get("Gather", np.arange(encoding.level_count))
    scale, offset = np.broadcast_arrays(parts.get("Mul", np.ones(())), parts.get("Sub", np.zeros(())))
    unit = np.broadcast_to(np.arange(scale.size, dtype=np.int32).reshape(scale.shape), path.codes_shape).reshape(shape)
    scale, offset = (each.reshape(-1).astype(np.float64) for each in (scale, offset))
    return Lattice(level.astype(np.float64), scale, offset, unit)


def _parts(path: CodePath) -> dict[str, Array]:
    """The levels, the offset and the scale by the operators that bring them in."""
    arrays = [(step.op, step.operand) for step in path.steps if step.op not in ("Cast", "Reshape")]
    if [op for op, _ in arrays] not in FORMS or not path.is_scalar:
        raise ValueError(f"{' '.join(op for op, _ in arrays)}: these operators make no lattice")
    return {op: evaluate(operand) for op, operand in arrays if operand is not None}


def with_lattice(encoding: LevelEncoding, lattice: Lattice) -> LevelEncoding:
    """The encoding with the lattice's scales and levels, which must be as many as its own, rounded to its types."""
    compute = compute_dtype(float_dtype(encoding.dtype))
    if encoding.scale is not None:
        scales = lattice.scale.astype(compute)
        form = encoding.scale.shape if scales.size == encoding.scale.size else encoding.zero_point.shape  # type: ignore[union-attr]
        encoding = replace(encoding, scale=scales.reshape(form))
    if isinstance(encoding, CodebookEncoding):
        encoding = encoding.with_arrays({"codebook": lattice.level})
    return encoding
