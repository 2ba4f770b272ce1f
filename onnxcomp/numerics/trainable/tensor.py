"""A weight that is trained: free arrays, the values that they stand for, and the way back of a gradient.

    values(arrays) -> W          pull(arrays, dL/dW) -> dL/darrays          settled(arrays) -> W, encoding

What a form keeps (zeros, levels, a grid) is in ``values``: whatever the arrays become, W has it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.encodings.encoding import Encoding

LEAST_OF_SCALE = 0.05  # of what it was

Array = NDArray[Any]
Arrays = Mapping[str, Array]


class TrainedTensor(ABC):
    """One weight of float32, as free arrays of float32 by name.

    ``progress`` goes from 0 to 1 while the training goes on; what hardens on the way is hard at 1. initial: the weight
    as it is now.
    """

    initial: Array

    @abstractmethod
    def start(self) -> dict[str, Array]:
        """The free arrays as they are before the training."""

    @abstractmethod
    def values(self, arrays: Arrays, progress: float = 1.0) -> Array:
        """The weight's values. At 1 they are those of ``settled``."""

    @abstractmethod
    def pull(self, arrays: Arrays, adjoint: Array, progress: float = 1.0) -> dict[str, Array]:
        """dL/darray for each free array, from ``adjoint``: dL/dvalues."""

    @abstractmethod
    def units(self) -> dict[str, Array]:
        """For each free array what a relative step is relative to: (), or an array of its shape. Positive."""

    def penalty(self, arrays: Arrays, progress: float) -> dict[str, Array]:
        """The gradient of what the form adds to the loss, for the arrays that it concerns."""
        return {}

    def limited(self, arrays: Arrays) -> dict[str, Array]:
        """The arrays, taken back to where they mean something."""
        return dict(arrays)

    @abstractmethod
    def settled(self, arrays: Arrays) -> tuple[Array, Encoding | None]:
        """The values to keep, with the encoding that makes them, bit for bit, where there is one."""


@dataclass(frozen=True, eq=False)
class TrainedValues(TrainedTensor):
    """All values are free.

    initial: the weight. least: the least size of a typical value that steps are relative to, for biases near zero.
    encoding: one that fits any values, handed on.
    """

    initial: Array
    least: float = 0.0
    encoding: Encoding | None = None

    def start(self) -> dict[str, Array]:
        return {"values": np.array(self.initial, np.float32)}

    def values(self, arrays: Arrays, progress: float = 1.0) -> Array:
        return arrays["values"]

    def pull(self, arrays: Arrays, adjoint: Array, progress: float = 1.0) -> dict[str, Array]:
        return {"values": adjoint}

    def units(self) -> dict[str, Array]:
        return {"values": np.maximum(typical(self.initial), np.float32(self.least))}

    def settled(self, arrays: Arrays) -> tuple[Array, Encoding | None]:
        return arrays["values"].astype(self.initial.dtype), self.encoding


@dataclass(frozen=True, eq=False)
class TrainedAround(TrainedTensor):
    """A weight of which some is trained as ``inner``, whose arrays are its own. initial: the weight."""

    initial: Array
    inner: TrainedTensor

    def start(self) -> dict[str, Array]:
        return self.inner.start()

    def units(self) -> dict[str, Array]:
        return self.inner.units()

    def penalty(self, arrays: Arrays, progress: float) -> dict[str, Array]:
        return self.inner.penalty(arrays, progress)

    def limited(self, arrays: Arrays) -> dict[str, Array]:
        return self.inner.limited(arrays)


@dataclass(frozen=True, eq=False)
class TrainedNonzeros(TrainedAround):
    """What is zero stays zero; the other values, one after another, are trained as ``inner``: few of a pruned weight.

    encoding: that of the whole weight where it does not come of the inner one's, such as a mask.
    """

    encoding: Encoding | None = None
    places: Array = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", np.flatnonzero(self.initial.reshape(-1)))

    def values(self, arrays: Arrays, progress: float = 1.0) -> Array:
        return self._spread(self.inner.values(arrays, progress))

    def pull(self, arrays: Arrays, adjoint: Array, progress: float = 1.0) -> dict[str, Array]:
        return self.inner.pull(arrays, adjoint.reshape(-1)[self.places], progress)

    def settled(self, arrays: Arrays) -> tuple[Array, Encoding | None]:
        found, encoding = self.inner.settled(arrays)
        values = self._spread(found)
        whole = encoding or self.encoding
        return values, whole if whole is not None and whole.encode(values) is not None else None

    def _spread(self, values: Array) -> Array:
        """The values at their places, the zeros as they were (-0.0 stays that)."""
        whole = self.initial.reshape(-1).astype(values.dtype)
        whole[self.places] = values
        return whole.reshape(self.initial.shape)


@dataclass(frozen=True, eq=False)
class TrainedUnderMask(TrainedAround):
    """What is zero stays zero, where the others cannot be told apart from their places: they share scales with it."""

    def values(self, arrays: Arrays, progress: float = 1.0) -> Array:
        made = self.inner.values(arrays, progress)
        return np.where(self.initial != 0, made, self.initial.astype(made.dtype))

    def pull(self, arrays: Arrays, adjoint: Array, progress: float = 1.0) -> dict[str, Array]:
        return self.inner.pull(arrays, np.where(self.initial != 0, adjoint, 0), progress)

    def settled(self, arrays: Arrays) -> tuple[Array, Encoding | None]:
        found, encoding = self.inner.settled(arrays)
        values = np.where(self.initial != 0, found, self.initial.astype(found.dtype))
        return values, encoding if encoding is not None and encoding.encode(values) is not None else None


@dataclass(frozen=True, eq=False)
class TrainedScale(TrainedTensor):
    """A positive number, or several: steps are relative to each, and none may get as small as nothing."""

    initial: Array

    def start(self) -> dict[str, Array]:
        return {"scale": np.array(self.initial, np.float32)}

    def values(self, arrays: Arrays, progress: float = 1.0) -> Array:
        return arrays["scale"]

    def pull(self, arrays: Arrays, adjoint: Array, progress: float = 1.0) -> dict[str, Array]:
        return {"scale": adjoint}

    def units(self) -> dict[str, Array]:
        return {"scale": np.maximum(np.abs(self.initial).astype(np.float32), np.finfo(np.float32).tiny)}

    def limited(self, arrays: Arrays) -> dict[str, Array]:
        return {"scale": np.maximum(arrays["scale"], LEAST_OF_SCALE * np.abs(self.initial)).astype(np.float32)}

    def settled(self, arrays: Arrays) -> tuple[Array, Encoding | None]:
        return arrays["scale"].astype(self.initial.dtype), None


def typical(values: Array) -> Array:
    """(): the root of the mean square of the values that are not zero; the least normal number where all are."""
    held = np.asarray(values, np.float64)
    held = held[held != 0]
    size = np.sqrt(np.square(held).mean()) if held.size else 0.0
    return np.asarray(max(float(size), float(np.finfo(np.float32).tiny)), np.float32)
