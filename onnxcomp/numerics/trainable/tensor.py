"""A weight that is trained: free arrays, the values that they stand for, and the way back of a gradient.

    values(arrays) -> W          pull(arrays, dL/dW) -> dL/darrays          settled(arrays) -> W, encoding

What a form keeps (zeros, levels, a grid) is in ``values``: whatever the arrays become, W has it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.encodings.encoding import Encoding

Array = NDArray[Any]
Arrays = Mapping[str, Array]


class TrainedTensor(ABC):
    """One weight of float32, as free arrays of float32 by name.

    ``progress`` goes from 0 to 1 while the training goes on; what hardens on the way is hard at 1.
    """

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
    """All values are free, or those alone that are not zero: w = v * (w0 != 0).

    initial: the weight. least: the least size of a typical value that steps are relative to, for biases near zero.
    encoding: that of the mask, handed on.
    """

    initial: Array
    keep_zeros: bool = False
    least: float = 0.0
    encoding: Encoding | None = None

    def start(self) -> dict[str, Array]:
        return {"values": np.array(self.initial, np.float32)}

    def values(self, arrays: Arrays, progress: float = 1.0) -> Array:
        return arrays["values"]

    def pull(self, arrays: Arrays, adjoint: Array, progress: float = 1.0) -> dict[str, Array]:
        return {"values": np.where(self.initial != 0, adjoint, 0) if self.keep_zeros else adjoint}

    def limited(self, arrays: Arrays) -> dict[str, Array]:
        values = arrays["values"]
        return {"values": np.where(self.initial != 0, values, self.initial) if self.keep_zeros else values}

    def units(self) -> dict[str, Array]:
        return {"values": np.maximum(typical(self.initial), np.float32(self.least))}

    def settled(self, arrays: Arrays) -> tuple[Array, Encoding | None]:
        return self.limited(arrays)["values"].astype(self.initial.dtype), self.encoding


def typical(values: Array) -> Array:
    """(): the root of the mean square of the values that are not zero; the least normal number where all are."""
    held = np.asarray(values, np.float64)
    held = held[held != 0]
    size = np.sqrt(np.square(held).mean()) if held.size else 0.0
    return np.asarray(max(float(size), float(np.finfo(np.float32).tiny)), np.float32)
