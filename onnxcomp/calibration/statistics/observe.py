"""Watch inner tensors of a model while calibration data run through it: how their values spread."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.calibration.statistics.subgraph_sketches import Sketch, Sketched, sketched
from onnxcomp.calibration.statistics.watch import OpenSession, Progress, See, silent, watch
from onnxcomp.errors import TargetError, VerificationError
from onnxcomp.model import Model
from onnxcomp.numerics.integers.histogram import Extent, Histogram
from onnxcomp.runtime import Session, Value


@dataclass
class Observation:
    """What was seen of one tensor: how its values spread, its type, its rank (None where it varied or never came).

    values: a Histogram, or an Extent where the ends were all that was asked for.
    reason: why the tensor could not be watched, None where it was.
    """

    values: Extent = field(default_factory=Histogram)
    dtypes: set[str] = field(default_factory=set)
    ranks: set[int] = field(default_factory=set)
    reason: str | None = None

    @property
    def histogram(self) -> Histogram:
        """The values' histogram; TypeError where the ends were all that was asked for."""
        if not isinstance(self.values, Histogram):
            raise TypeError("only the ends were observed")
        return self.values

    @property
    def rank(self) -> int | None:
        """The number of dimensions, None where it varied or the tensor never came."""
        return next(iter(self.ranks)) if len(self.ranks) == 1 else None

    @property
    def fault(self) -> str | None:
        """Why no range can be taken from it, None where one can."""
        if self.reason:
            return self.reason
        if self.dtypes - {"float32"}:
            return f"is {', '.join(sorted(self.dtypes))}, not float32"
        if self.values.non_finite:
            return "has values that are not finite"
        return None if self.values.count else "had no values in the calibration data"

    def see(self, value: Value) -> None:
        """Take in one value of the tensor."""
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            self.dtypes.add(value.dtype.name if isinstance(value, np.ndarray) else type(value).__name__)
            return
        self.dtypes.add(value.dtype.name)
        self.ranks.add(value.ndim)
        self.values.add(value)

    def see_sketch(self, sketch: Sketch) -> None:
        """Take in what came of it in one run; nothing where the run never reached it."""
        self.ranks |= sketch.ranks
        if sketch.is_odd:
            self.values.non_finite += 1
            return
        self.values.add_sample(sketch.samples, low=sketch.low, high=sketch.high, count=sketch.count)


def observe(
    model: Model,
    keys: Sequence[str],
    data: CalibrationData,
    *,
    ends_only: bool = False,
    limit: int | None = None,
    open_session: OpenSession = Session,
    progress: Progress = silent,
) -> Mapping[str, Observation]:
    """What the tensors that go by these keys (``Scope.key``) hold while the first ``limit`` samples run.

    Tensors in subgraphs are seen through sketches (see ``inner``): their ends are exact, their histograms are of
    evenly drawn samples. ends_only: without histograms, which takes a quarter less time. The model remembers what
    was seen: taking back asks for parts of the same tensors again and again.
    Raises TargetError or VerificationError where the model does not load or run.
    """
    known = _known(model, data, limit, ends_only)
    missing = [key for key in dict.fromkeys(keys) if key not in known]
    seen = {key: Observation(Extent() if ends_only else Histogram()) for key in missing}
    main = _main_names(model)
    options: dict[str, Any] = {"limit": limit, "open_session": open_session, "progress": progress}
    outer = [key for key in missing if key in main]
    if outer:
        watch(model, outer, data, lambda name, value: seen[name].see(value), **options)
    inner = [key for key in missing if key not in main]
    if inner:
        _observe_inner(
            sketched(model, inner), seen, lambda source, names, see: watch(source, names, data, see, **options)
        )
    known.update(seen)
    return {key: known[key] for key in keys}


def _known(model: Model, data: CalibrationData, limit: int | None, ends_only: bool) -> MutableMapping[str, Observation]:
    """What the model remembers; histograms tell the ends, too."""
    whole: dict[str, Observation] = model.memo.setdefault((observe, data, limit, False), {})
    if not ends_only:
        return whole
    return ChainMap(model.memo.setdefault((observe, data, limit, True), {}), whole)


def _main_names(model: Model) -> set[str]:
    """The tensors of the main graph."""
    graph = model.proto.graph
    names = {out for node in graph.node for out in node.output}
    names.update(each.name for each in graph.input)
    names.update(each.name for each in graph.initializer)
    return names


def _observe_inner(
    found: Sketched, seen: Mapping[str, Observation], run: Callable[[Model, list[str], See], None]
) -> None:
    """Fill the observations of tensors in subgraphs from what the model with sketches hands out."""
    for key, fault in found.faults.items():
        seen[key].reason = fault
    for key, dtype in found.dtypes.items():
        seen[key].dtypes.add(dtype)
    places = {name: (key, part) for key, names in found.outputs.items() for part, name in enumerate(names)}
    waiting: dict[str, dict[int, Value]] = {}

    def see(name: str, value: Value) -> None:
        key, part = places[name]
        parts = waiting.setdefault(key, {})
        parts[part] = value
        if len(parts) == len(found.outputs[key]):
            seen[key].see_sketch(Sketch.of(*(parts[each] for each in sorted(parts))))
            del waiting[key]

    if not places:
        return
    try:
        run(found.model, list(places), see)
    except (TargetError, VerificationError) as error:
        for key in found.outputs:
            seen[key].reason = f"cannot be watched: {error}"
