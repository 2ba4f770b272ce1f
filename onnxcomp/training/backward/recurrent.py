"""LSTM, GRU and RNN as what they are made of: a Scan for each direction, whose derivative is that of any Scan.

X: (sequence, batch, input), W: (directions, gates * hidden, input), R: (directions, gates * hidden, hidden),
B: (directions, 2 * gates * hidden), states: (directions, batch, hidden).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxcomp.training.backward.bodies import add_input, add_output, new_body
from onnxcomp.training.backward.decompose import composition
from onnxcomp.training.backward.rules import At, NoRuleError
from onnxcomp.training.backward.values import INT64, Value, Writer

Turn = Callable[["Cell", Value, list[Value]], list[Value]]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FUNCTIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
PLAIN = frozenset({"Relu", "Sigmoid", "Tanh", "Softsign", "Softplus"})  # that take no number


class Cell:
    """One direction's weights inside the body of its Scan.

    functions: its activations. recurrent: (gates * hidden, hidden). beside: (gates * hidden), what is added to the
    recurrent product; None for nothing. peepholes: (3 * hidden) or None.
    """

    def __init__(self, write: Writer, at: At, functions: Sequence[str], tensors: Sequence[Value | None]) -> None:
        self.write, self.at, self.functions = write, at, functions
        self.hidden = int(at.attr("hidden_size") or at.static(at.needs(2), "its R")[2])
        within = [None if each is None else Value(write, each.tensor, each.data_type) for each in tensors]
        recurrent, self.beside, self.peepholes = within
        assert recurrent is not None
        self.recurrent = recurrent

    def apply(self, place: int, value: Value) -> Value:
        """One of the activations."""
        return self.write.op(self.functions[place], value)

    def part(self, value: Value, index: int, axis: int) -> Value:
        """The rows of one gate."""
        return value.slice([index * self.hidden], [(index + 1) * self.hidden], [axis])

    def product(self, state: Value, gates: slice | None = None) -> Value:
        """state R' of some gates (all for None), with what is added."""
        rows, beside = self.recurrent, self.beside
        if gates is not None:
            ends = [gates.start * self.hidden], [gates.stop * self.hidden], [0]
            rows = rows.slice(*ends)
            beside = None if beside is None else beside.slice(*ends)
        made = self.write.op("MatMul", state, rows.turned(2))
        return made if beside is None else made + beside


def lstm_turn(cell: Cell, seen: Value, states: list[Value]) -> list[Value]:
    """Gates in the order input, output, forget, cell."""
    state, memory = states
    gates = seen + cell.product(state)

    def gate(index: int, peeped: Value, place: int) -> Value:
        own = cell.part(gates, index, 1)
        return own if cell.peepholes is None else own + cell.part(cell.peepholes, place, 0) * peeped

    opened = cell.apply(0, gate(0, memory, 0))
    kept = 1.0 - opened if cell.at.attr("input_forget", 0) else cell.apply(0, gate(2, memory, 2))
    renewed = kept * memory + opened * cell.apply(1, cell.part(gates, 3, 1))
    shown = cell.apply(0, gate(1, renewed, 1))
    return [shown * cell.apply(2, renewed), renewed]


def gru_turn(cell: Cell, seen: Value, states: list[Value]) -> list[Value]:
    """Gates in the order update, reset, hidden."""
    (state,) = states
    both = cell.product(state, slice(0, 2))
    update = cell.apply(0, cell.part(seen, 0, 1) + cell.part(both, 0, 1))
    reset = cell.apply(0, cell.part(seen, 1, 1) + cell.part(both, 1, 1))
    if cell.at.attr("linear_before_reset", 0):
        inner = reset * cell.product(state, slice(2, 3))
    else:
        inner = cell.product(reset * state, slice(2, 3))
    new = cell.apply(1, cell.part(seen, 2, 1) + inner)
    return [(1.0 - update) * new + update * state]


def rnn_turn(cell: Cell, seen: Value, states: list[Value]) -> list[Value]:
    return [cell.apply(0, seen + cell.product(states[0]))]


TURNS: dict[str, Turn] = {"LSTM": lstm_turn, "GRU": gru_turn, "RNN": rnn_turn}


@composition("LSTM", "GRU", "RNN", domain="")
def recurrent(at: At) -> Sequence[Value]:
    """Y: (sequence, directions, batch, hidden), then the last states."""
    if at.attr("clip") is not None or at.attr("layout", 0):
        raise NoRuleError("it clips, or has its batch first")
    direction = at.attr("direction", "forward")
    ways = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[direction]
    made = [_direction(at, index, way) for index, way in enumerate(ways)]
    whole = [each[0].unsqueeze([1]) for each in made]
    last = [[each[1 + state].unsqueeze([0]) for each in made] for state in range(len(made[0]) - 1)]
    outputs = [(whole, 1), *((each, 0) for each in last)]
    return [at.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0] for parts, axis in outputs]


def _direction(at: At, index: int, way: int) -> list[Value]:
    """One direction's output at every step, (sequence, batch, hidden), and its last states."""
    op, write = at.node.op, at.write
    hidden = int(at.attr("hidden_size") or at.static(at.needs(2), "its R")[2])
    rows = GATES[op] * hidden
    weight, around, bias = (_own(at, place, index) for place in (1, 2, 3))
    assert weight is not None
    seen = at.op("MatMul", at.x, weight.turned(2))
    beside = None
    if bias is not None:
        seen, beside = seen + bias.slice([0], [rows], [0]), bias.slice([rows], [2 * rows], [0])
    count = 2 if op == "LSTM" else 1
    batch = write.size(at.x, 1)
    zero = write.zeros(write.joined([batch, [hidden]]), at.x.data_type)
    starts = [_own(at, 5 + state, index) or zero for state in range(count)]
    inner = new_body(write, f"{op}_turn")
    cell = Cell(inner, at, _functions(at, index), [around, beside, _own(at, 7, index) if op == "LSTM" else None])
    states = [add_input(inner, at.x.data_type, (None, hidden)) for _ in range(count)]
    element = add_input(inner, at.x.data_type, (None, rows))
    within = _within(at)
    is_within = None if within is None else add_input(inner, within.data_type, (None, 1))
    new = TURNS[op](cell, element, states)
    shown = new[0]
    if is_within is not None:
        new = [each.where(is_within, before) for each, before in zip(new, states, strict=True)]
        shown = shown.where(is_within)
    for each in (*new, shown):
        add_output(inner, each)
    inputs = [*starts, seen, *([] if within is None else [within])]
    scanned = len(inputs) - count
    attrs: dict[str, Any] = {"body": inner.scope.graph, "num_scan_inputs": scanned}
    attrs.update(scan_input_directions=[way] * scanned, scan_output_directions=[way])
    made = write.ops("Scan", *inputs, outputs=count + 1, type=at.x.data_type, attrs=attrs)
    return [made[-1], *made[:-1]]


def _own(at: At, place: int, index: int) -> Value | None:
    """One direction's part of an input."""
    value = at.input(place)
    return None if value is None else at.op("Gather", value, np.array(index), axis=0)


def _within(at: At) -> Value | None:
    """(sequence, batch, 1): whether a step is within its sample's length; None where all are as long."""
    lengths = at.input(4)
    if lengths is None:
        return None
    size = at.write.size(at.x, 0).reshape([])
    steps = at.op("Range", at.write.alike(0, size), size, at.write.alike(1, size))
    return steps.unsqueeze([1, 2]) < lengths.cast(INT64).unsqueeze([0, 2])


def _functions(at: At, index: int) -> list[str]:
    stated = [str(each) for each in at.attr("activations") or []]
    count = len(FUNCTIONS[at.node.op])
    own = stated[index * count : (index + 1) * count] or FUNCTIONS[at.node.op]
    by_name = {each.lower(): each for each in PLAIN}  # as ONNX Runtime reads them
    if any(each.lower() not in by_name for each in own):
        raise NoRuleError(f"its activations are {', '.join(own)}")
    return [by_name[each.lower()] for each in own]
