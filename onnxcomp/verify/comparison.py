"""One model's outputs against the original's, batch by batch, through all lenses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics import Floats, Lens
from onnxcomp.numerics.metrics.lenses import VALUES_FACTOR
from onnxcomp.verify.measures import agreement, lenses_of
from onnxcomp.verify.reading.outputs import Outputs
from onnxcomp.verify.verdict import OutputDivergence

Array = NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass
class ComparedBatches:
    """What is known of a model so far. prefix: put before the names of the measures."""

    outputs: Outputs
    metric: str
    seed: int
    prefix: str = ""
    _values: dict[tuple[str, int], list[Floats]] = field(default_factory=dict)
    _kept: dict[str, list[Floats]] = field(default_factory=dict)
    _agreed: dict[bool, list[Floats]] = field(default_factory=dict)  # by whether the output is taken for classes

    def add(self, i: int, reference: Arrays, candidate: Arrays) -> None:
        """Take in batch ``i``."""
        for name, output in self.outputs.described.items():
            lenses = lenses_of(self.metric, output)
            if not lenses or name not in reference or name not in candidate:
                continue
            pair = self.outputs.pair(i, name, reference, candidate[name])
            for at, lens in enumerate(lenses):
                self._values.setdefault((name, at), []).append(lens.measure(pair))
            kept = self.outputs.kept_error(i, name, reference[name], candidate[name])
            if kept is not None:
                self._kept.setdefault(name, []).append(kept)
            if output.has_classes and not output.silent:
                self._agreed.setdefault(output.kind == "classes", []).append(agreement(output, pair))

    @property
    def agreement(self) -> float | None:
        """The share of positions whose winning class is the same, of outputs that may be class scores where none is
        taken for some; None where nothing has classes."""
        found = self._agreed.get(True) or self._agreed.get(False)
        return float(np.concatenate(found).mean()) if found else None

    def divergences(self) -> tuple[list[OutputDivergence], float | None]:
        """Each output by each measure, and the share of the samples that the worst one rests on."""
        found: list[OutputDivergence] = []
        worst, affected = 0.0, None
        for (name, at), parts in self._values.items():
            lens = lenses_of(self.metric, self.outputs.described[name])[at]
            for measure, values in lens.summaries(np.concatenate(parts)).items():
                found.append(self._divergence(name, measure, values, lens))
                if found[-1].value > worst:
                    worst, affected = found[-1].value, _affected_share(values)
        for name, kept in self._kept.items():
            got = metrics.estimate(VALUES_FACTOR * np.concatenate(kept), seed=self.seed, repeats=self.outputs.repeats)
            found.append(OutputDivergence(name, "values", f"{self.prefix}copied rows", got.value, got.low, got.high))
        return found, affected

    def by_sample(self) -> dict[str, tuple[float, Floats]]:
        """By output and measure the divergence and the numbers that it is the mean of, or that mean's root, where each
        sample has one and it grows with the error (a shift may have either sign)."""
        found = {}
        for (name, at), parts in self._values.items():
            lens, numbers = lenses_of(self.metric, self.outputs.described[name])[at], np.concatenate(parts)
            for measure, values in lens.summaries(numbers).items():
                if values.shape == (len(numbers),) and lens.power <= 1:
                    found[f"{name}: {measure}"] = self._divergence(name, measure, values, lens).value, values
        return found

    def _divergence(self, name: str, measure: str, values: Floats, lens: Lens) -> OutputDivergence:
        kind = self.outputs.described[name].kind
        if measure in ("labels", "top1") and np.isin(values, (0.0, 1.0)).all():
            told = len(values) / self.outputs.repeats
            got = metrics.share(values.mean() * told, told)
        else:
            got = metrics.estimate(values, power=lens.power, seed=self.seed, repeats=self.outputs.repeats)
        return OutputDivergence(name, kind, self.prefix + measure, got.value, got.low, got.high, lens.power < 1)


def _affected_share(values: Floats) -> float | None:
    """(sum d)^2 / (n sum d^2): how many of the samples a mean of these rests on."""
    squares = float(np.square(values).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares > 0 and np.isfinite(squares) else None


def incomparable(reference: Arrays, candidate: Arrays, ragged: frozenset[str] = frozenset()) -> str | None:
    """Why outputs of one batch cannot be compared, or None: missing, other type or shape, new NaN.

    ragged: outputs whose length depends on the data, where another length is no fault.
    """
    if reference.keys() != candidate.keys():
        return f"outputs differ: {', '.join(sorted(reference.keys() ^ candidate.keys()))}"
    for name, left in reference.items():
        right = candidate[name]
        if left.dtype != right.dtype:
            return f"output {name} is {right.dtype.name}, it was {left.dtype.name}"
        if left.shape != right.shape:
            if name in ragged and left.ndim == right.ndim:
                continue
            return f"output {name} has shape {list(right.shape)}, it was {list(left.shape)}"
        broken = metrics.new_nonfinite(left, right)
        if broken:
            return f"output {name} has {broken} NaN or infinite values that the original does not have"
    return None


def widened(outputs: Arrays) -> dict[str, Array]:
    """The outputs, those of short floats in float32."""
    short = ("float16", "bfloat16")
    return {name: each.astype(np.float32) if each.dtype.name in short else each for name, each in outputs.items()}
