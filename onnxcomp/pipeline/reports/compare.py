"""The outputs of two models side by side: how far the second is from the first, output by output."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxcomp import formats
from onnxcomp.budget import Drop
from onnxcomp.calibration import CalibrationData, Sequences
from onnxcomp.errors import VerificationError
from onnxcomp.graph.ir.seeds import seeded
from onnxcomp.model import Model, load
from onnxcomp.pipeline.api import silent
from onnxcomp.pipeline.opening import open_data
from onnxcomp.pipeline.run import Progress
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.safety.unseen import with_unseen
from onnxcomp.shown import Row, Shown
from onnxcomp.target import Target
from onnxcomp.verify import Verdict, Verifier
from onnxcomp.verify.reference import Array, OutputStore, flatten
from onnxcomp.verify.repeatable import draws_differently

Source = str | os.PathLike[str] | bytes | onnx.ModelProto | Model


@dataclass(frozen=True)
class OutputComparison:
    """One output over all samples.

    kind: what the reference's output was taken for (see the metric), "" where the metric is a score.
    divergence, interval: in the metric's unit, None where it is not measured by output. max_abs_error: the
    largest difference of an element, None for outputs that are no numbers. max_abs_value: the reference's
    largest magnitude, to compare it with.
    """

    name: str
    kind: str
    divergence: float | None
    interval: tuple[float, float] | None
    max_abs_error: float | None
    max_abs_value: float | None


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """How far a model is from the reference; ``verdict`` says whether it is within the limit, and why not."""

    reference: str
    model: str
    reference_bytes: int
    model_bytes: int
    target: str
    data: str
    random: bool
    metric: str
    verdict: Verdict
    outputs: tuple[OutputComparison, ...]
    notes: tuple[str, ...]
    shapes: dict[str, list[int]]
    shapes_from: str

    @property
    def passed(self) -> bool:
        """Whether the model is within the limit."""
        return bool(self.verdict.passed)

    def headline(self) -> str:
        """Both names, and whether the second is within the limit."""
        said = self.verdict.describe()
        word = "not verified" if not said.get("verified", True) else "PASS" if said["passed"] else "FAIL"
        return f"{self.reference} and {self.model}: {word}"

    def rows(self) -> list[Row]:
        """What was compared, and how far each output is off."""
        sizes = (self.reference_bytes, self.model_bytes)
        where = "random inputs, which show breakage only" if self.random else self.data
        found: list[Row] = [("size", f"{sizes[0]:,} -> {sizes[1]:,} bytes, {formats.smaller(*sizes)}")]
        found.append(("compared", f"on {where}, on {self.target}"))
        said = self.verdict.describe()
        if said["divergence"] is not None:
            found.append((self.metric, f"{formats.significant(said['divergence'])}, limit {said['limit']:.3g}"))
        found += [(f"output {each.name}", _said_of(each)) for each in self.outputs]
        found += [("why", each) for each in said["reasons"]]
        return found + [("note", each) for each in self.notes]


def _said_of(output: OutputComparison) -> str:
    parts = [f"taken for {output.kind}"] if output.kind else []
    parts += [f"divergence {formats.significant(output.divergence)}"] if output.divergence is not None else []
    parts += [f"largest error {formats.significant(output.max_abs_error)}"] if output.max_abs_error is not None else []
    return ", ".join(parts)


def compare(
    reference: Source,
    model: Source,
    *,
    calibration: str | os.PathLike[str] | Sequences | CalibrationData | None = None,
    target: str | Target = "cpu",
    metric: str = "auto",
    outputs: Mapping[str, str] | None = None,
    max_drop: Drop | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """Run both models on the target on the same inputs and compare their outputs.

    outputs: what outputs are by the user's word, by name (see ``Verifier``).
    calibration: all its samples are used; None draws inputs from types and shapes, which shows breakage only;
    input_shapes: of these.
    Raises OnnxcompError where the reference or the inputs are at fault; a model that does not run has a
    verdict that says so.
    """
    first = seeded(load(reference))
    second = seeded(load(model), alike=first)
    where = target if isinstance(target, Target) else Target.of(target)
    progress(0, 1, "running the reference")
    data = open_data(first, calibration, where, seed, input_shapes)
    different = draws_differently(first, data, where)
    verifier = Verifier(first, data, target=where, metric=metric, max_drop=max_drop, seed=seed, outputs=outputs)
    progress(0, 1, "running the model")
    reach = None if data.is_random else Reach(verifier.on(data))
    verdict = with_unseen(verifier.check(second), first, second, reach)
    compared = () if verdict.failed else _outputs(first, second, data, where, verifier, verdict)
    doubt = "" if data.is_random or verifier.wanted_samples is not None else verdict.doubt
    return Comparison(
        reference=first.name,
        model=second.name,
        reference_bytes=first.size_bytes,
        model_bytes=second.size_bytes,
        target=where.name,
        data=data.source,
        random=data.is_random,
        metric=verifier.metric,
        verdict=verdict,
        outputs=compared,
        notes=tuple(dict.fromkeys([*verifier.notes, *filter(None, [different, doubt])])),
        shapes=data.timed_shapes(),
        shapes_from=data.shapes_from,
    )


def _outputs(
    first: Model, second: Model, data: CalibrationData, target: Target, verifier: Verifier, verdict: Verdict
) -> tuple[OutputComparison, ...]:
    """The largest differences, joined with what the verdict says of each output."""
    reference = OutputStore()
    reference.extend(_run(first, data, target))
    errors: dict[str, float | None] = {}
    peaks: dict[str, float | None] = {}
    for left, right in zip(reference, _run(second, data, target), strict=True):
        for name in left:
            if name not in right:
                raise VerificationError(f"{second.name}: output {name} is missing")
            errors[name] = _larger(errors.get(name, 0.0), _max_abs(left[name], right[name]))
            peaks[name] = _larger(peaks.get(name, 0.0), _max_abs(left[name], None))
    kinds = verifier.describe()["outputs"]
    measured = {each.name: each for each in sorted(verdict.outputs, key=lambda each: each.value)}
    found = []
    for name in errors:
        own = measured.get(name)
        interval = None if own is None else (own.low, own.high)
        value = None if own is None else own.value
        found.append(OutputComparison(name, kinds.get(name, ""), value, interval, errors[name], peaks[name]))
    return tuple(found)


def _run(model: Model, data: CalibrationData, target: Target) -> Iterator[dict[str, Array]]:
    with model.opened_on(target.session) as session:
        for feeds in data.batches():
            yield flatten(session.run(feeds))


def _larger(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


def _max_abs(left: Array, right: Any) -> float | None:
    """The largest magnitude, of the difference where there is a second array; what is not finite is left out."""
    if left.dtype == object or left.dtype.kind in "OSU":
        return None
    if not left.size:
        return 0.0
    wide = left.astype(np.float64)
    found = np.abs(wide if right is None else wide - right.astype(np.float64))
    value = float(np.max(found, where=np.isfinite(found), initial=0.0))
    return value if math.isfinite(value) else None
