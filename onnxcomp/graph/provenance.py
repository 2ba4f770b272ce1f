"""Which tensor of a rewritten model is which tensor of the model before, though channels were cut, added or scaled.

    now = take(before, kept) * factor

What repairs a model compares it with the original in the units and sizes of now.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.model import Model

NEW = -1  # in ``Origin.kept``: an index that is not from before, with zeros


@dataclass(frozen=True, eq=False)
class Origin:
    """What one tensor was before.

    tensor: its key then, None where nothing of then can be compared with it. rank: of the tensor. kept: for each axis
    (from 0) that was cut or widened, where each index of now stood before, or NEW. factor: of that rank, by which the
    tensor was multiplied, broadcast; None for 1.
    """

    tensor: str | None
    rank: int = 0
    kept: Mapping[int, Array] = field(default_factory=dict)
    factor: Array | None = None

    def as_now(self, before: Array) -> Array | None:
        """What values from before are in the sizes and units of now; None where that cannot be told."""
        if self.tensor is None or before.ndim != self.rank:
            return None
        value = before
        for axis, index in self.kept.items():
            value = taken(value, index, axis)
        return value if self.factor is None else (value * self.factor).astype(before.dtype)

    def channels_as_now(self, before: Array, axis: int) -> Array | None:
        """The same of one value (n,) for each index of an axis; None where the factor differs along others too."""
        if self.tensor is None or not -self.rank <= axis < self.rank:
            return None
        own = axis % self.rank
        value = taken(before, self.kept[own], 0) if own in self.kept else before
        if self.factor is None:
            return value
        if any(size != 1 for each, size in enumerate(self.factor.shape) if each != own):
            return None
        return (value * self.factor.reshape(-1)).astype(before.dtype)

    def since(self, older: Origin | None) -> Origin:
        """What the tensor was still earlier, where ``older`` says what ``self.tensor`` was then."""
        if older is None or self.tensor is None:
            return self
        if older.tensor is None or older.rank != self.rank:
            return Origin(None)
        kept, factor = dict(older.kept), older.factor
        for axis, index in self.kept.items():
            kept[axis] = _composed(kept[axis], index) if axis in kept else index
            if factor is not None and factor.shape[axis] > 1:
                factor = np.take(factor, np.maximum(index, 0), axis=axis)
        if self.factor is not None:
            factor = self.factor if factor is None else factor * self.factor
        return Origin(older.tensor, self.rank, kept, factor)


Origins = Mapping[str, Origin]
"""Of the tensors that are no longer what they were, by the key of now."""


def since(newer: Origins, older: Origins) -> Origins:
    """The origins after two rewrites, one after the other."""
    return {**older, **{key: each.since(older.get(each.tensor or "")) for key, each in newer.items()}}


@dataclass(frozen=True, eq=False)
class Reference:
    """The model that a repair holds the present one against; origins: what the tensors of now were in it."""

    model: Model
    origins: Origins = field(default_factory=dict)

    def is_as_it_was(self, key: str) -> bool:
        """Whether the tensor has the sizes and units that it had."""
        return key not in self.origins

    def as_now(self, key: str, before: Array) -> Array | None:
        """What the reference holds in the tensor of this name, in the sizes and units of now; None where they cannot
        be compared."""
        origin = self.origins.get(key)
        if origin is None:
            return before
        return origin.as_now(before) if origin.tensor == key else None

    def channels_as_now(self, key: str, before: Array, axis: int) -> Array | None:
        """The same of one value (n,) for each index of an axis of the tensor."""
        origin = self.origins.get(key)
        if origin is None:
            return before
        return origin.channels_as_now(before, axis) if origin.tensor == key else None

    def constant(self, key: str) -> Array | None:
        """The values that a constant of now had, in the sizes and units of now; None where there was none."""
        origin = self.origins.get(key, Origin(key))
        found = self._constants.get(origin.tensor or "")
        if found is None:
            return None
        values = np.asarray(found.values)
        return origin.as_now(values) if key in self.origins else values

    @functools.cached_property
    def _constants(self) -> dict[str, Constant]:
        return constants_by_key(open_plain(self.model))


def taken(value: Array, index: Array, axis: int) -> Array:
    """Values of before along an axis as they stand now, with zeros where the index is ``NEW``."""
    found: Array = np.take(value, np.maximum(index, 0), axis=axis)
    fresh = (index == NEW).reshape([-1 if each == axis else 1 for each in range(value.ndim)])
    return np.where(fresh, value.dtype.type(0), found) if fresh.any() else found


def _composed(older: Array, newer: Array) -> Array:
    return np.where(newer == NEW, NEW, older[np.maximum(newer, 0)])
