"""Data of first steps become data of later ones: the states hold what the original makes of the samples before.

x (300, 64), state all zero  ->  x (300, 64), state after 0 to 15 steps

Data that hold first steps only say nothing of a recurrent matrix, which multiplies zeros. Where the states of the data
vary already, and where caches have rows already, they are kept.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxcomp.calibration.data.calibration_data import Batch, CalibrationData
from onnxcomp.calibration.data.groups import Group, natural_order
from onnxcomp.calibration.data.sample_axes import Cut
from onnxcomp.calibration.data.sources import IN_MEMORY_BYTES, LABELS, Loader
from onnxcomp.calibration.states.flow import LAST_STATES, StateFlow
from onnxcomp.calibration.states.lanes import Rows, blocks, sequences
from onnxcomp.calibration.states.states import GROWING, RECURRENT, SLIDING, State, find_states, unvaried_inputs
from onnxcomp.calibration.states.steps import Steps
from onnxcomp.errors import TargetError, VerificationError
from onnxcomp.graph.extract import up_to
from onnxcomp.model import Model
from onnxcomp.runtime import Session, Value
from onnxcomp.runtime.isolated import read_values, write_values

Array = NDArray[Any]
MOST_STEPS = 16
LEAST_SEQUENCES = 8


def rolled_out(model: Model, session: Session, data: CalibrationData, *, seed: int = 0) -> CalibrationData:
    """The data with states as the model itself makes them, where the data's are those of first steps.

    session: the model, opened. The samples are steps of their own sequences where they are steps of any, else
    neighbours in their order are taken for that: up to 16 of them, and pairs where a sample has several steps in
    itself, so that half of the states stay as they are, in case that it is a whole utterance. There are as many
    samples as before, and those of one sequence are marked as such. A sample that is a whole sequence with an empty
    cache is cut: a third of them stay, a third hold their second half with the cache of the first, a third their last
    position. A note says what was done.
    """
    states = find_states(model, session, data, seed=seed)
    if not states or data.sample_count < 2:
        return data
    names = ", ".join(state.input for state in states[:3]) + (", ..." if len(states) > 3 else "")
    try:
        most = 2 if _has_inner_steps(model, states, data) else MOST_STEPS
        found = _rolled_out(states, session, data, most, seed)
    except (TargetError, VerificationError) as error:
        note = f"the states ({names}) are those of first steps, and the model does not go on from them ({error})"
        return replace(data, notes=(*data.notes, note))
    if found is data:
        return data
    note = f"states as the original makes them, since those of the data are of first steps: {names}"
    return replace(found, notes=(*data.notes, note))


def _rolled_out(
    states: Sequence[State], session: Session, data: CalibrationData, most: int, seed: int
) -> CalibrationData:
    caches = [state.input for state in states if state.kind == GROWING]
    inputs = [state.input for state in states if state.kind in (RECURRENT, SLIDING)]
    steps = Steps.of(data, states, session.run)
    if caches:
        if any(steps.past_length(feeds) for feeds in data.batches()):
            return data
        if steps.has_whole_sequences:
            parts = Steps.by_length(data, states, session.run, data.sample_count)
            return _with_groups(data, (each for part in parts for each in _cut_samples(part, session, seed)))
        return _with_groups(data, _stepped(steps, session, most))
    starts = set.intersection(*({*group.starts} for group in data.groups))
    if not inputs or not unvaried_inputs(data) | starts >= set(inputs):
        return data
    if all(name in group.cut.axes for group in data.groups for name in inputs):
        return _with_states(inputs, steps, session, most)
    return _with_groups(data, _stepped(steps, session, most))


def _has_inner_steps(model: Model, states: Sequence[State], data: CalibrationData) -> bool:
    """Whether one of the states is that of an LSTM, GRU or RNN node of the main graph that reads several steps a run.

    Raises VerificationError where the model does not run.
    """
    flow = StateFlow.of(model.proto.graph, [state.input for state in states])
    nodes = [node for node in model.proto.graph.node if node.op_type in LAST_STATES]
    axes = {node.input[0]: _step_axis(node) for node in nodes if any(flow.moved.get(each) for each in node.input[5:])}
    values = data.first_sample()
    inner = [name for name in axes if name not in values]
    if inner:
        with up_to(model, inner).opened_on(functools.partial(Session, optimization="none")) as session:
            values |= session.run(values)
    return any(np.shape(values[name])[axis] > 1 for name, axis in axes.items())


def _step_axis(node: NodeProto) -> int:
    """The axis of a recurrent node's input that counts its steps."""
    return 1 if any(each.name == "layout" and each.i for each in node.attribute) else 0


def _lanes(data: CalibrationData, most: int) -> tuple[list[Rows], NDArray[np.int64]]:
    """The sequences that are rolled out: whole ones of the data, else pieces of ``most`` steps; a number for each."""
    whole = sequences(data)
    if not data.are_sequences:
        most = min(most, max(2, data.sample_count // LEAST_SEQUENCES))
        whole = [part for rows in whole for part in np.array_split(rows, -(-len(rows) // most))]
    return whole, np.arange(len(whole))


def _with_states(names: Sequence[str], steps: Steps, session: Session, most: int) -> CalibrationData:
    """The data with arrays of states in place of those that every sample had."""
    data = steps.data
    lanes, numbers = _lanes(data, most)
    marks = [np.zeros(group.cut.count, np.int64) for group in data.groups]
    for lane, number in zip(lanes, numbers, strict=True):
        for group, position in lane:
            marks[group][position] = number
    arrays: list[dict[str, Array]] = [{} for _ in data.groups]
    for block in blocks(data, lanes, steps.side_by_side):
        for step, (batch, _) in enumerate(steps.run(session.run, block)):
            for name in names:
                _keep(arrays, name, batch.axes[name], batch.feeds[name], block.rows(step), data)
    groups = [
        replace(group, load=functools.partial(_overlaid, group.load, own), sequences=mark, starts=())
        for group, own, mark in zip(data.groups, arrays, marks, strict=True)
    ]
    return replace(data, groups=tuple(groups))


def _keep(
    arrays: list[dict[str, Array]], name: str, axis: int, value: Array, rows: Rows, data: CalibrationData
) -> None:
    """Write the states of some samples to their places in the arrays of their groups."""
    for i, (group, position) in enumerate(rows.tolist()):
        own = arrays[group]
        if name not in own:
            shape = list(value.shape)
            shape[axis] = data.groups[group].cut.count + data.groups[group].cut.dropped
            own[name] = _empty(data, f"{group}-{len(own)}", tuple(shape), value.dtype)
            own[name][...] = data.groups[group].load()[name]  # what fills no batch keeps its own
        np.moveaxis(own[name], axis, 0)[position] = np.moveaxis(value, axis, 0)[i]


def _empty(data: CalibrationData, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array to be filled: in memory, or in a file where it is large."""
    if np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize <= IN_MEMORY_BYTES // 8:
        return np.empty(shape, dtype)
    return np.lib.format.open_memmap(data.scratch.path / f"state{name}.npy", "w+", dtype, shape)


def _overlaid(load: Loader, arrays: Mapping[str, Array]) -> dict[str, Value]:
    return {**load(), **arrays}


def _stepped(steps: Steps, session: Session, most: int) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
    """Batches of one step each, with the numbers of their sequences."""
    lanes, _ = _lanes(steps.data, most)
    number = 0
    for block in blocks(steps.data, lanes, steps.side_by_side):
        for batch, _ in steps.run(session.run, block):
            yield batch, np.arange(number, number + batch.count)
        number += len(block.lanes)


def _cut_samples(steps: Steps, session: Session, seed: int) -> Iterator[tuple[Batch, None]]:
    """Batches of samples from some position on, with the cache of what was before."""
    data = steps.data
    order = np.random.default_rng(seed).permutation(data.order)
    places = list(dict.fromkeys((0, steps.length // 2, steps.length - 1) if steps.has_whole_sequences else (0,)))
    for i, place in enumerate(places):
        lanes = [row[None] for row in order[i :: len(places)]]
        windows = ((0, place), (place, steps.length)) if place else ((0, steps.length),)
        for block in blocks(data, lanes, steps.side_by_side):
            *_, (batch, _) = steps.run(session.run, replace(block, windows=windows))
            yield batch, None


def _with_groups(
    data: CalibrationData, batches: Iterable[tuple[Batch, NDArray[np.int64] | None]]
) -> CalibrationData:
    """The data with a group for each batch."""
    groups: list[Group] = []
    held = 0
    for batch, numbers in batches:
        values: dict[str, Value] = dict(batch.feeds)
        if batch.labels is not None:
            values[LABELS] = batch.labels
        held += sum(value.nbytes for value in values.values() if isinstance(value, np.ndarray))
        load: Loader = functools.partial(dict, values)
        if held > IN_MEMORY_BYTES:
            folder = data.scratch.path / f"steps{len(groups)}"
            write_values(folder, values)
            load = functools.partial(read_values, folder)
        exact = data.groups[0].cut.exact if batch.axes else None
        cut = Cut(batch.axes, batch.count, exact)
        groups.append(Group(f"{data.source} step {len(groups)}", load, cut, numbers))
    return replace(data, groups=tuple(groups), order=natural_order(groups))
