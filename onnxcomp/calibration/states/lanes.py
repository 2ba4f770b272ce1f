"""Sequences of samples, and which of them can run side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.calibration.data.groups import Group

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class LaneBlock:
    """Sequences that run side by side, the longest first.

    lanes: of each sequence (steps, 2) int64, rows of ``CalibrationData.order``. windows: of samples that are sequences
    themselves, the positions of each step, from and to.
    """

    lanes: tuple[Rows, ...]
    windows: tuple[tuple[int, int], ...] = ()

    @property
    def steps(self) -> int:
        """How many steps the longest sequence has."""
        return len(self.windows) or len(self.lanes[0])

    def rows(self, step: int) -> Rows:
        """(sequences, 2) the samples of one step, of those sequences that are not over yet."""
        place = 0 if self.windows else step
        return np.stack([lane[place] for lane in self.lanes if len(lane) > place])


def sequences(data: CalibrationData) -> list[Rows]:
    """The rows of the data's order, (steps, 2) for each sequence: its own ones, else those of each group in turn.

    Groups of one sample, as a function gives them, follow one another.
    """
    order = data.order[np.lexsort((data.order[:, 1], data.order[:, 0]))]
    numbers = np.full(len(order), -1, np.int64)
    counts = np.bincount(order[:, 0], minlength=len(data.groups))
    for i, group in enumerate(data.groups):
        here = order[:, 0] == i
        if data.are_sequences and group.sequences is not None:
            numbers[here] = group.sequences[order[here, 1]]
        elif counts[i] > 1:
            numbers[here] = i
    by_number = order[np.argsort(numbers, kind="stable")]
    return np.split(by_number, np.flatnonzero(np.diff(np.sort(numbers))) + 1)


def blocks(data: CalibrationData, lanes: Iterable[Rows], most: int) -> list[LaneBlock]:
    """Sequences brought together that can run side by side, ``most`` of them at once.

    Where the model insists on a batch, what does not fill one is left out.
    """
    forms = [_form(data, group) for group in data.groups]
    exact = max(group.cut.exact or 1 for group in data.groups)
    alike: dict[Any, list[Rows]] = {}
    for lane in lanes:
        key: Any = tuple(dict.fromkeys(forms[group] for group in lane[:, 0]))
        if len(key) > 1 or exact > 1:  # all steps must fit together
            key = tuple(forms[group] for group in lane[:, 0])
        alike.setdefault(key, []).append(lane)
    found = []
    for own in alike.values():
        own.sort(key=len, reverse=True)
        for start in range(0, len(own), max(most, exact)):
            part = own[start : start + max(most, exact)]
            if len(part) >= exact:
                found.append(LaneBlock(tuple(part)))
    return found


def _form(data: CalibrationData, group: Group) -> Any:
    """What must be the same for samples of two groups to lie in one batch."""
    values = group.load()
    form: list[Any] = []
    for spec in data.inputs:
        value = values.get(spec.name)
        axis = group.cut.axes.get(spec.name)
        if not isinstance(value, np.ndarray):
            form.append(id(group))
        elif axis is None:
            form.append(np.asarray(value).tobytes())
        else:
            form.append((axis, *value.shape[:axis], *value.shape[axis + 1 :]))
    return tuple(form)


def by_form(data: CalibrationData) -> list[CalibrationData]:
    """The data in parts whose samples have the same shapes, the largest part first."""
    forms = [_form(data, group) for group in data.groups]
    rows: dict[Any, list[Rows]] = {}
    for row in data.order:
        rows.setdefault(forms[row[0]], []).append(row)
    parts = sorted(rows.values(), key=len, reverse=True)
    return [data] if len(parts) == 1 else [replace(data, order=np.stack(part)) for part in parts]
