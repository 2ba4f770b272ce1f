"""The mean of each channel of inner tensors while calibration data run through a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.calibration.statistics.watch import OpenSession, Progress, silent, watch
from onnxcomp.model import Model
from onnxcomp.runtime import Session, Value

Array = NDArray[Any]


def channel_means(
    model: Model,
    axes: Mapping[str, int],
    data: CalibrationData,
    *,
    limit: int | None = None,
    open_session: OpenSession = Session,
    progress: Progress = silent,
) -> Mapping[str, Array]:
    """The means (channels,) float64 of tensors of the main graph along the axis given for each; the model remembers.

    Left out are tensors that never came, are not floats, have no such axis or are not finite, and those whose number
    of channels varied. Raises TargetError or VerificationError where the model does not load or run.
    """
    known: dict[tuple[str, int], Array | None] = model.memo.setdefault((channel_means, data, limit), {})
    missing = {name: _Sum(axis) for name, axis in axes.items() if (name, axis) not in known}
    if missing:

        def see(name: str, value: Value) -> None:
            missing[name].add(value)

        watch(model, list(missing), data, see, limit=limit, open_session=open_session, progress=progress)
    for name, found in missing.items():
        known[name, found.axis] = found.mean()
    return {name: mean for name, axis in axes.items() if (mean := known[name, axis]) is not None}


class _Sum:
    """Sums of one tensor's channels, as they come."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self._total: Array | None = None
        self._count = 0
        self._fault = False

    def add(self, value: Value) -> None:
        """Take in one value of the tensor."""
        if not isinstance(value, np.ndarray) or not -value.ndim <= self.axis < value.ndim or not _is_float(value):
            self._fault = True
            return
        rows = np.moveaxis(value, self.axis, 0).reshape(value.shape[self.axis], -1)
        total = rows.sum(axis=1, dtype=np.float64)
        if self._total is not None and total.shape != self._total.shape:
            self._fault = True
            return
        self._total = total if self._total is None else self._total + total
        self._count += rows.shape[1]

    def mean(self) -> Array | None:
        """(channels,), None where there is no sound one."""
        if self._fault or self._total is None or not self._count or not np.isfinite(self._total).all():
            return None
        return self._total / self._count


def _is_float(value: Array) -> bool:
    return value.dtype.kind == "f" or value.dtype.name == "bfloat16"
