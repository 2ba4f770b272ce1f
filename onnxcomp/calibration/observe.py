"""Watch inner tensors of a model while calibration data run through it: how their values spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.calibration.data import CalibrationData
from onnxcomp.calibration.watch import OpenSession, Progress, silent, watch
from onnxcomp.model import Model
from onnxcomp.numerics.histogram import Histogram
from onnxcomp.runtime import Session, Value


@dataclass
class Observation:
    """What was seen of one tensor: how its values spread, its type, its rank (None where it varied or never came)."""

    histogram: Histogram = field(default_factory=Histogram)
    dtypes: set[str] = field(default_factory=set)
    ranks: set[int] = field(default_factory=set)

    @property
    def rank(self) -> int | None:
        """The number of dimensions, None where it varied or the tensor never came."""
        return next(iter(self.ranks)) if len(self.ranks) == 1 else None

    @property
    def fault(self) -> str | None:
        """Why no range can be taken from it, None where one can."""
        if self.dtypes - {"float32"}:
            return f"is {', '.join(sorted(self.dtypes))}, not float32"
        if self.histogram.odd:
            return "has values that are not finite"
        return None if self.histogram.count else "had no values in the calibration data"

    def see(self, value: Value) -> None:
        """Take in one value of the tensor."""
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            self.dtypes.add(value.dtype.name if isinstance(value, np.ndarray) else type(value).__name__)
            return
        self.dtypes.add(value.dtype.name)
        self.ranks.add(value.ndim)
        self.histogram.add(value)


def observe(
    model: Model,
    names: Sequence[str],
    data: CalibrationData,
    *,
    limit: int | None = None,
    open_session: OpenSession = Session,
    progress: Progress = silent,
) -> Mapping[str, Observation]:
    """What the tensors of the main graph called ``names`` hold while the first ``limit`` samples run.

    The model remembers it: taking back asks for parts of the same tensors again and again.
    Raises TargetError or VerificationError where the model does not load or run.
    """
    known: dict[str, Observation] = model.memo.setdefault((observe, data, limit), {})
    missing = [name for name in names if name not in known]
    if missing:
        seen = {name: Observation() for name in missing}

        def see(name: str, value: Value) -> None:
            seen[name].see(value)

        watch(model, missing, data, see, limit=limit, open_session=open_session, progress=progress)
        known.update(seen)
    return {name: known[name] for name in names}
