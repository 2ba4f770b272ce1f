"""If, Loop and Scan: subgraphs, run as often as the inputs say. Lists of tensors, and values that may be absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from onnxcomp.training.torch_graph.rule import Body, Call, Tensor, rule
from onnxcomp.training.torch_graph.values import TYPES

Bodies = Mapping[str, Body]


@rule("If", bodies=True, host=(0,))
def if_(call: Call, bodies: Bodies, condition: Tensor) -> tuple[Any, ...]:
    return tuple(bodies["then_branch" if bool(condition) else "else_branch"]())


@rule("Loop", bodies=True, host=(0, 1))
def loop(
    call: Call, bodies: Bodies, most: Tensor | None = None, condition: Tensor | None = None, *states: Any
) -> tuple[Any, ...]:
    goes_on, turn, count = condition is None or bool(condition), 0, len(states)
    scanned: list[list[Any]] = [[] for _ in range(call.outputs - count)]
    while goes_on and (most is None or turn < int(most)):
        again, *made = bodies["body"](torch.tensor(turn), torch.tensor(True), *states)
        states, goes_on, turn = tuple(made[:count]), bool(again), turn + 1
        for rows, row in zip(scanned, made[count:], strict=False):
            rows.append(row)
    return *states, *(_stacked(call, rows, place) for place, rows in enumerate(scanned))


def _stacked(call: Call, rows: Sequence[Tensor], place: int, axis: int = 0) -> Tensor:
    """What every turn gave, along a new axis; for no turn, what the body declares."""
    if rows:
        return torch.stack(list(rows), axis)
    body = next(each.g for each in call.node.attribute if each.name == "body")
    scanned = body.output[len(body.output) - call.outputs + _state_count(call) + place :]
    kind = scanned[0].type.tensor_type if scanned else None
    shape = [each.dim_value for each in kind.shape.dim] if kind else []
    return torch.zeros(0, *shape, dtype=TYPES[kind.elem_type] if kind else torch.float32, device=call.device)


def _state_count(call: Call) -> int:
    count: int = 2 if call.node.op_type == "Loop" else call.get("num_scan_inputs")
    return max(len(call.node.input) - count, 0)


@rule("Scan", bodies=True)
def scan(call: Call, bodies: Bodies, *inputs: Any) -> tuple[Any, ...]:
    if call.opset < 9:
        return _scan_batches(call, bodies, *inputs)
    count = call.get("num_scan_inputs")
    states, sequences = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    axes = call.get("scan_input_axes") or [0] * count
    return _scan_once(call, bodies["body"], states, sequences, axes, call.get("scan_input_directions") or [0] * count)


def _scan_once(
    call: Call, body: Body, states: Sequence[Any], sequences: Sequence[Tensor], axes: Sequence[int],
    turned: Sequence[int],
) -> tuple[Any, ...]:  # fmt: skip
    rows = [
        list((each.flip(axis) if back else each).unbind(axis))
        for each, axis, back in zip(sequences, axes, turned, strict=True)
    ]
    count = call.outputs - len(states)
    scanned: list[list[Any]] = [[] for _ in range(count)]
    held = list(states)
    for row in zip(*rows, strict=True):
        made = body(*held, *row)
        held = made[: len(states)]
        for kept, each in zip(scanned, made[len(states) :], strict=False):
            kept.append(each)
    places = call.get("scan_output_axes") or [0] * count
    backwards = call.get("scan_output_directions") or [0] * count
    made = [
        _stacked(call, kept[::-1] if back else kept, place, axis)
        for place, (kept, axis, back) in enumerate(zip(scanned, places, backwards, strict=True))
    ]
    return *held, *made


def _scan_batches(call: Call, bodies: Bodies, lengths: Tensor | None, *inputs: Any) -> tuple[Any, ...]:
    """Opset 8: the first axis of everything is the batch, each sample of which may have a length of its own."""
    count = call.get("num_scan_inputs")
    states, sequences = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    full = sequences[0].shape[1]
    samples = []
    for sample in range(sequences[0].shape[0]):
        length = full if lengths is None else int(lengths[sample])
        rows = [each[sample, :length] for each in sequences]
        own = [each[sample] for each in states]
        made = _scan_once(call, bodies["body"], own, rows, [0] * count, call.get("directions") or [0] * count)
        tails = [_extended(each, full) for each in made[len(states) :]]
        samples.append((*made[: len(states)], *tails))
    return tuple(torch.stack(each) for each in zip(*samples, strict=True))


def _extended(rows: Tensor, count: int) -> Tensor:
    """Rows of zeros after those that a short sequence gave."""
    return torch.cat([rows, rows.new_zeros(count - rows.shape[0], *rows.shape[1:])])


@rule("SequenceMap", bodies=True)
def sequence_map(call: Call, bodies: Bodies, rows: Sequence[Any], *rest: Any) -> tuple[Any, ...]:
    turns = [
        bodies["body"](row, *(each[place] if isinstance(each, list) else each for each in rest))
        for place, row in enumerate(rows)
    ]
    return tuple(list(each) for each in zip(*turns, strict=True)) if turns else ([],) * call.outputs


@rule("SequenceConstruct")
def sequence_construct(call: Call, *inputs: Tensor) -> list[Tensor]:
    return list(inputs)


@rule("SequenceEmpty", discrete=True)
def sequence_empty(call: Call) -> list[Tensor]:
    return []


@rule("SequenceAt", host=(1,))
def sequence_at(call: Call, rows: list[Tensor], place: Tensor) -> Tensor:
    return rows[int(place)]


@rule("SequenceInsert", host=(2,))
def sequence_insert(call: Call, rows: list[Tensor], x: Tensor, place: Tensor | None = None) -> list[Tensor]:
    at = len(rows) if place is None else int(place)
    at = at + len(rows) if at < 0 else at
    return [*rows[:at], x, *rows[at:]]


@rule("SequenceErase", host=(1,))
def sequence_erase(call: Call, rows: list[Tensor], place: Tensor | None = None) -> list[Tensor]:
    at = (len(rows) - 1 if place is None else int(place)) % len(rows)
    return [*rows[:at], *rows[at + 1 :]]


@rule("SequenceLength", discrete=True)
def sequence_length(call: Call, rows: list[Tensor]) -> Tensor:
    return torch.tensor(len(rows))


@rule("ConcatFromSequence")
def concat_from_sequence(call: Call, rows: list[Tensor]) -> Tensor:
    axis = call.get("axis")
    return torch.stack(rows, axis) if call.get("new_axis", 0) else torch.cat(rows, axis)


@rule("SplitToSequence", host=(1,))
def split_to_sequence(call: Call, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    axis = call.get("axis", 0)
    if sizes is None:
        parts = x.split(1, axis)
        return [each if call.get("keepdims", 1) else each.squeeze(axis) for each in parts]
    return list(x.split(int(sizes) if sizes.dim() == 0 else sizes.tolist(), axis))


@rule("Optional")
def optional(call: Call, x: Any = None) -> Any:
    return x


@rule("OptionalGetElement")
def optional_get_element(call: Call, x: Any) -> Any:
    return x


@rule("OptionalHasElement", discrete=True)
def optional_has_element(call: Call, x: Any = None) -> Tensor:
    return torch.tensor(x is not None)
