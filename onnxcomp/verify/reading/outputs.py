"""The original's outputs as they are compared: samples first, copies of inputs left out, padding without weight, and
what each one was taken for.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration import CalibrationData
from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics import Floats, Output, Pair, Seen
from onnxcomp.numerics.metrics.class_scores import distributions
from onnxcomp.numerics.metrics.scales import LEAST_SQUARE
from onnxcomp.runtime import Value, ValueSpec
from onnxcomp.verify.evidence import Evidence
from onnxcomp.verify.limits import NOISE_FLOOR
from onnxcomp.verify.reading.copies import Copy, find_copies
from onnxcomp.verify.reading.padding import Padding
from onnxcomp.verify.reading.salience import Salience, find_salience
from onnxcomp.verify.reference import Layout, OutputStore, channel_axes, sample_axis, samples_first

Array = NDArray[Any]


class Outputs:
    """How each output of the original is read and cut.

    asked: the user's word for some of them. numbers: integer outputs that were made by rounding. linear: outputs that a
    linear operator computes. left_out: why an output is not compared, or None. states: outputs that are states.
    """

    def __init__(
        self,
        data: CalibrationData,
        layouts: list[Layout],
        store: OutputStore,
        specs: Mapping[str, ValueSpec],
        *,
        padding: Padding | None = None,
        asked: Mapping[str, str] | None = None,
        numbers: Callable[[str], bool] = lambda name: False,
        linear: Callable[[str], bool] = lambda name: True,
        left_out: Callable[[str], str | None] = lambda name: None,
        states: Collection[str] = (),
    ) -> None:
        self.data, self.layouts, self.store, self.specs = data, layouts, store, specs
        self.salience: dict[str, Salience] = {}
        self.padding = padding
        self.repeats = 1.0 if data.is_random else data.sample_count / max(1, data.distinct_count)
        self.axes = self._sample_axes()
        self.copies: dict[str, Copy] = {} if data.is_random else find_copies(self._fed())
        self.described = {
            name: self._describe(name, (asked or {}).get(name), numbers(name), linear(name)) for name in self.axes
        }
        self._set_aside(left_out, states)
        self.salience = find_salience(self.described, lambda name: lambda: self._seen(name), self._channel_axes)
        for name, found in self.salience.items():
            own = found.scores if found.source == name else None
            read = functools.partial(self._seen, name)
            self.described[name] = metrics.where_salient(self.described[name], read, found.axis, own)

    def _set_aside(self, left_out: Callable[[str], str | None], states: Collection[str]) -> None:
        """Leave out what other tensors stand for, and hold states loosely where there are other outputs."""
        for name, output in self.described.items():
            reason = left_out(name)
            if reason is not None:
                self.described[name] = dataclasses.replace(output, lenses=(), silent=output.silent or reason)
            elif name in states and set(self.described) - set(states):
                self.described[name] = metrics.of_state(output)

    def of_steps(self, layouts: list[Layout], store: OutputStore) -> Outputs:
        """The same readings of outputs that were made step by step, each in a batch of its own."""
        steps = copy.copy(self)
        steps.layouts, steps.store, steps.copies, steps.padding = layouts, store, {}, None
        steps.described = {name: each for name, each in self.described.items() if each.kind != "state"}
        return steps

    def evidence(self) -> Evidence:
        """What the data show of these outputs."""
        silent = {name: each.silent for name, each in self.described.items() if each.silent}
        compared = tuple(name for name, each in self.described.items() if not each.silent)
        return Evidence(self.data.distinct_count, compared, silent)

    def least_sure(self) -> float | None:
        """The least probability of a sample's winning class, of outputs with one class a sample; None without such."""
        found = [
            float(distributions(output.form, output.axis, seen.block).max(axis=-1).min())
            for name, output in self.described.items()
            if output.kind == "classes" and output.form is not None and not output.silent
            for seen in self._seen(name)
            if seen.block.ndim == 2 and len(seen.block)
        ]
        return min(found, default=None)

    def pair(self, i: int, name: str, reference: Mapping[str, Array], candidate: Array) -> Pair:
        """An output of batch ``i`` in both models as it is compared: what is no copy, samples first, and the weights of
        its positions. reference: all outputs of the original."""
        both = (reference[name], candidate)
        left, right = (samples_first(self._fresh(i, name, each), self.axes[name]) for each in both)
        if left.dtype.kind not in "biuOSU" or self.described[name].kind != "labels":
            left, right = metrics.shared_finite(left, right) if left.dtype.kind not in "OSU" else (left, right)
        return Pair(left, right, self._weights(i, name, left), self._salience(name, reference))

    def kept_error(self, i: int, name: str, reference: Array, candidate: Array) -> Floats | None:
        """(samples,) mean squared error of what is a copy of an input in the original, over the mean square of what is
        none; None where there is no such part, or the candidate copies it too."""
        copied = self.copies.get(name)
        if copied is None or copied.rows == 0 or reference.shape != candidate.shape:
            return None
        shape = self.layouts[i].shapes[copied.source]
        old, new = (samples_first(copied.kept(each, shape), self.axes[name]) for each in (reference, candidate))
        if np.array_equal(old, new):
            return None
        error = metrics.per_element(np.square(old.astype(np.float64) - new))
        own = np.square(samples_first(copied.fresh(reference, shape), self.axes[name]).astype(np.float64)).mean()
        return np.asarray(error.mean(axis=1) / max(float(own), LEAST_SQUARE))

    def samples(self, name: str, array: Array) -> Array:
        """An output with its samples on axis 0."""
        return samples_first(array, self.axes[name])

    # --- how they lie ---

    def _sample_axes(self) -> dict[str, int | None]:
        """Of each output that every batch has, the axis that counts samples in all of them."""
        found: dict[str, set[int | None]] = {}
        for layout, outputs in zip(self.layouts, self.store, strict=True):
            for name, array in outputs.items():
                axis = sample_axis(array, self.specs.get(name), layout, self.data.inputs)
                found.setdefault(name, set()).add(axis)
        return {name: axes.pop() if len(axes) == 1 else None for name, axes in found.items()}

    def _fed(self) -> Iterator[tuple[Mapping[str, Value], Mapping[str, Array]]]:
        batches = zip(self.data.batches(), self.store, strict=False)
        return ((feeds, outputs) for feeds, outputs in batches)

    def _fresh(self, i: int, name: str, array: Array) -> Array:
        copied = self.copies.get(name)
        is_whole = copied is None or copied.rows == 0
        return array if copied is None or is_whole else copied.fresh(array, self.layouts[i].shapes[copied.source])

    def _weights(self, i: int, name: str, array: Array) -> Array | None:
        """(samples, positions) that count of an output (samples, positions, ...), where padding is known."""
        if self.padding is None or self.axes[name] is None or array.ndim < 3:
            return None
        weights = self._masks[i]
        return weights if weights is not None and array.shape[:2] == weights.shape else None

    @functools.cached_property
    def _masks(self) -> list[Array | None]:
        assert self.padding is not None
        return [self.padding.weights(batch.feeds, batch.count) for batch in self.data.labelled_batches()]

    # --- what they are ---

    def _seen(self, name: str) -> Iterator[Seen]:
        bases = self._bases(name)
        for i, outputs in enumerate(self.store):
            base = next(bases)
            if name in outputs:
                block = samples_first(self._fresh(i, name, outputs[name]), self.axes[name])
                yield Seen(block, self._weights(i, name, block), base, self._salience(name, outputs))

    def _salience(self, name: str, outputs: Mapping[str, Array]) -> Floats | None:
        """(samples, positions): how much each position of an output says, where other scores tell."""
        found = self.salience.get(name)
        if found is None:
            return None
        return found.scores.salience(samples_first(outputs[found.source], self.axes[found.source]))

    def _channel_axes(self, name: str) -> tuple[int, ...]:
        """Where the channels of an output may lie, without its sample axis."""
        ranks = {outputs[name].ndim for outputs in self.store if name in outputs}
        axis = self.axes[name]
        return channel_axes(self.specs.get(name), axis, ranks.pop() + (axis is None)) if len(ranks) == 1 else ()

    def _bases(self, name: str) -> Iterator[Array | None]:
        """In each batch the first input of floats that has the output's shape; None throughout where there is none."""
        source = None if name in self.copies else self._twin(name)
        if source is None:
            yield from (None for _ in self.layouts)
            return
        for batch in self.data.labelled_batches():
            yield samples_first(np.asarray(batch.feeds[source], np.float64), self.axes[name])

    def _twin(self, name: str) -> str | None:
        """An input that has the output's shape in all batches, beyond one number a sample."""
        shapes = [value.shape if (value := found.get(name)) is not None else None for found in self.store]
        floats = [item.name for item in self.data.inputs if item.dtype is not None and item.dtype.kind == "f"]
        for source in floats:
            if shapes == [layout.shapes.get(source) for layout in self.layouts] and all(map(_beyond_vectors, shapes)):
                return source
        return None

    def _describe(self, name: str, asked: str | None, are_numbers: bool, linear: bool) -> Output:
        found = metrics.describe(
            lambda: self._seen(name),
            channel_axes=self._channel_axes(name),
            floor=NOISE_FLOOR if self.data.is_random else metrics.CONSTANT_FLOOR,
            asked=asked,
            are_numbers=are_numbers,
            linear=linear,
        )
        copied = self.copies.get(name)
        if copied is None or copied.rows != 0:
            return found
        return dataclasses.replace(found, silent=f"a copy of input {copied.source}")


def _beyond_vectors(shape: tuple[int, ...] | None) -> bool:
    return shape is not None and len(shape) > 1
