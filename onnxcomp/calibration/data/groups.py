"""Groups of calibration arrays that are cut together, as they are read from files, folders and functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration.data.sample_axes import WHOLE, Cut, find_cut
from onnxcomp.calibration.data.samples import check_type
from onnxcomp.calibration.data.sequences import Stepped
from onnxcomp.calibration.data.sources import IN_MEMORY_BYTES, LABELS, Loader, source_files
from onnxcomp.calibration.data.stacks import Stack
from onnxcomp.errors import CalibrationError
from onnxcomp.files import Inputs
from onnxcomp.runtime import Value, ValueSpec

Array = NDArray[Any]
MAX_OPEN_GROUPS = 64
SEQUENCES_A_GROUP = 2**32  # so many numbers are each group's own


@dataclass(frozen=True)
class Group:
    """Arrays that are cut together: one file, one test data set or one feed of a function.

    sequences: (count,) int64, of each sample the number of the sequence that it is a step of, where the samples are
    steps of sequences. A sequence may go on in the next group; its steps lie in their order.
    starts: inputs that hold, at every step, the state that the sequence starts with.
    """

    name: str
    load: Loader
    cut: Cut
    sequences: NDArray[np.int64] | None = None
    starts: tuple[str, ...] = ()


def read_groups(
    loaders: Iterable[tuple[str, Loader]],
    as_read: Callable[..., Stepped],
    inputs: Sequence[ValueSpec],
    not_samples: Mapping[str, frozenset[int]] | None,
    *,
    is_stepped: bool,
) -> tuple[list[Group], list[bool]]:
    """Each part of the data, and whether it has labels. as_read: makes steps of what is loaded, which is asked for
    again at each loading where ``is_stepped``.

    Kept open while there are few and they fit; else read again each time. A memory map costs a file descriptor.
    """
    groups: list[Group] = []
    labelled = []
    held_bytes = 0
    for name, plain in loaders:
        read = functools.partial(as_read, name=name)
        load = functools.partial(_read_steps, plain, read) if is_stepped else plain
        steps = read(plain())
        values = steps.values
        held_bytes += sum(v.nbytes for v in values.values() if type(v) is np.ndarray)
        is_kept = len(groups) < MAX_OPEN_GROUPS and held_bytes <= IN_MEMORY_BYTES
        again = functools.partial(_unchanged, Inputs(source_files(name)), load)
        kept = functools.partial(dict, values) if is_kept else again
        _refuse_names(name, values, inputs)
        stack = Stack.of(values, inputs) if steps.sequences is None else None
        if stack is not None:
            labelled.append(_has_labels(name, values, inputs, stack.count))
            groups += [Group(f"{name}, {at}", each, WHOLE) for at, each in enumerate(stack.loaders(kept))]
            continue
        cut = _fitted_cut(values, inputs, not_samples)
        labelled.append(_has_labels(name, values, inputs, cut.count + cut.dropped if cut.axes else None))
        numbers = steps.sequences
        if numbers is not None:
            numbers = len(groups) * SEQUENCES_A_GROUP + numbers[: cut.count]
        groups.append(Group(name, kept, cut, numbers, steps.starts))
    return groups, labelled


def _read_steps(load: Loader, read: Callable[[Mapping[str, Value]], Stepped]) -> Mapping[str, Value]:
    return read(load()).values


def _unchanged(files: Inputs, load: Loader) -> Mapping[str, Value]:
    """What is loaded, once more, from files that are as they were the first time."""
    files.refuse_changes()
    return load()


def natural_order(groups: Sequence[Group]) -> NDArray[np.int64]:
    parts = [
        np.stack([np.full(group.cut.count, i), np.arange(group.cut.count)], axis=1) for i, group in enumerate(groups)
    ]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros((0, 2), np.int64)


def _refuse_names(name: str, values: Mapping[str, Value], inputs: Sequence[ValueSpec]) -> None:
    """Raise CalibrationError for names and types that are not the model's."""
    known = {spec.name for spec in inputs}
    missing = [spec.name for spec in inputs if spec.name not in values and "optional(" not in spec.type]
    extra = [key for key in values if key not in known and key != LABELS]
    if missing or extra:
        wrong = [f"lacks {', '.join(missing)}"] if missing else []
        wrong += [f"has {', '.join(extra)}, which the model does not"] if extra else []
        raise CalibrationError(f"calibration data: {name} {' and '.join(wrong)}")
    for spec in inputs:
        if spec.name in values:
            check_type(name, values[spec.name], spec)


def _fitted_cut(
    values: Mapping[str, Value], inputs: Sequence[ValueSpec], not_samples: Mapping[str, frozenset[int]] | None
) -> Cut:
    shapes = {
        spec.name: np.shape(values[spec.name])
        for spec in inputs
        if spec.is_tensor and isinstance(values.get(spec.name), np.ndarray)
    }
    return find_cut(shapes, inputs, not_samples)


def _has_labels(name: str, values: Mapping[str, Value], inputs: Sequence[ValueSpec], wanted: int | None) -> bool:
    """wanted: of how many samples, where they are told apart."""
    if LABELS not in values or any(spec.name == LABELS for spec in inputs):
        return False
    labels = np.asarray(values[LABELS])
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        given = f"an array of shape {labels.shape} of {labels.dtype.name}"
        raise CalibrationError(
            f"calibration data: {name}: labels must be integers, the class of each sample, got {given}. "
            "Leave them out to compare the outputs themselves."
        )
    found = len(labels)
    if wanted is not None and found != wanted:
        raise CalibrationError(f"calibration data: {name} has {found} labels for {wanted} samples")
    return True
