"""Arrays of whole feeds, for a model that has no axis for samples: one axis more than it declares, the first.

    input (300, 100, 81) for [frames, bands]    -> 300 feeds of (100, 81)
    state (300, 25)      for [25]               -> each feed its own
    rate  ()             for []                 -> goes along unchanged
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.calibration.data.sources import LABELS, Loader
from onnxcomp.runtime import Value, ValueSpec


@dataclass(frozen=True)
class Stack:
    """``count`` feeds, which the arrays of these names hold along their first axis."""

    names: frozenset[str]
    count: int

    @classmethod
    def of(cls, values: Mapping[str, Value], inputs: Sequence[ValueSpec]) -> Stack | None:
        """None where the arrays are no stack: each has the rank that the model declares, or one fits in no way."""
        names = set()
        for spec in inputs:
            value = values.get(spec.name)
            if not spec.is_tensor or not isinstance(value, np.ndarray) or value.ndim == len(spec.shape):
                continue
            # ONNX Runtime shows a tensor of unknown rank as a scalar.
            if not spec.shape or value.ndim != len(spec.shape) + 1 or not _fits(value.shape[1:], spec.shape):
                return None
            names.add(spec.name)
        counts = {len(np.asarray(values[name])) for name in names}
        return cls(frozenset(names), counts.pop()) if len(counts) == 1 and counts != {0} else None

    def taken(self, values: Mapping[str, Value], at: int) -> dict[str, Value]:
        """One feed, with its label where there are labels of all."""
        found = {name: value[at] if name in self.names else value for name, value in values.items()}
        if LABELS in values and LABELS not in self.names:
            found[LABELS] = np.asarray(values[LABELS])[at : at + 1]
        return found

    def loaders(self, load: Loader) -> Iterator[Loader]:
        """What loads each feed."""
        for at in range(self.count):
            yield functools.partial(_taken, self, load, at)


def _taken(stack: Stack, load: Loader, at: int) -> dict[str, Value]:
    return stack.taken(load(), at)


def _fits(shape: tuple[int, ...], declared: Sequence[int | str | None]) -> bool:
    return all(not isinstance(dim, int) or dim == size for size, dim in zip(shape, declared, strict=True))
