"""Inputs in the shapes that the user asks for.

x [N, 3]  first sample [[1, 2, 3]]   x=2,3   ->  [[1, 2, 3], [1, 2, 3]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxcomp.input_shapes import settle
from onnxcomp.runtime import Value, ValueSpec


def with_shapes(inputs: Sequence[ValueSpec], shapes: Mapping[str, Sequence[int]]) -> tuple[ValueSpec, ...]:
    """The inputs with the sizes asked for in place of open ones. Raises ParameterError as ``settle`` does."""
    stated = settle({spec.name: spec.shape for spec in inputs if spec.is_tensor}, shapes)
    return tuple(replace(spec, shape=stated[spec.name]) if spec.is_tensor else spec for spec in inputs)


def resized(feeds: Mapping[str, Value], inputs: Sequence[ValueSpec]) -> dict[str, Value]:
    """The feeds, with each axis whose size the inputs state repeated or cut to it."""
    return {spec.name: _resized(feeds[spec.name], spec) for spec in inputs if spec.name in feeds}


def _resized(value: Value, spec: ValueSpec) -> Value:
    if not isinstance(value, np.ndarray) or value.ndim != len(spec.shape) or not value.size:
        return value
    for axis, size in enumerate(spec.shape):
        if isinstance(size, int) and size != value.shape[axis]:
            value = np.take(value, np.arange(size) % value.shape[axis], axis=axis)
    return value
