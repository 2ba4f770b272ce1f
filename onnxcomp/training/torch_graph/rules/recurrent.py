"""LSTM, GRU and RNN, step by step as the specification says; torch's own where a node is of its kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule
from onnxcomp.training.torch_graph.rules.activations import activation
from onnxcomp.training.torch_graph.rules.shapes import reversed_within

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State], State]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
PARAMETRIC = {  # activations that take a value from activation_alpha, from activation_beta
    "Affine": (1, 1), "LeakyRelu": (1, 0), "ThresholdedRelu": (1, 0), "ScaledTanh": (1, 1), "HardSigmoid": (1, 1),
    "Elu": (1, 0),
}  # fmt: skip
TORCH_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # iofc -> ifco, zrh -> rzh


@rule("LSTM")
def lstm(call: Call, x: Tensor, w: Tensor, r: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
    b, lengths, h, c, p = (*rest, *[None] * 5)[:5]
    return _recurrent(call, x, (w, r, b, p), lengths, (h, c))


@rule("GRU", "RNN")
def gru(call: Call, x: Tensor, w: Tensor, r: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
    b, lengths, h = (*rest, *[None] * 3)[:3]
    return _recurrent(call, x, (w, r, b, None), lengths, (h,))


def _recurrent(
    call: Call, x: Tensor, weights: Sequence[Tensor | None], lengths: Tensor | None, initial: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """x: (time, batch, inputs), or (batch, time, inputs) with layout 1; outputs as the node has them."""
    by_batch = bool(call.get("layout", 0))
    if by_batch:
        x = x.transpose(0, 1)
    r = weights[1]
    assert r is not None
    zeros = x.new_zeros(r.shape[0], x.shape[1], r.shape[2])
    begins = [zeros if each is None else each.transpose(0, 1) if by_batch else each for each in initial]
    if lengths is not None and bool((lengths == x.shape[0]).all()):
        lengths = None
    run = _by_torch if lengths is None and weights[3] is None and _is_plain(call) else _by_formula
    y, ends = run(call, x, weights, lengths, begins)
    if by_batch:
        return y.permute(2, 0, 1, 3), *(each.transpose(0, 1) for each in ends)
    return y, *ends


def _is_plain(call: Call) -> bool:
    """Whether torch has the operator as the node wants it."""
    kind = call.node.op_type
    functions = call.get("activations") or DEFAULTS[kind]
    stated = [[each.lower() for each in DEFAULTS[kind]] * (len(functions) // len(DEFAULTS[kind]))]
    if kind == "RNN":
        stated.append(["relu"] * len(functions))
    if [each.lower() for each in functions] not in stated or "clip" in call.attributes:
        return False
    return not call.get("input_forget", 0) and (kind != "GRU" or bool(call.get("linear_before_reset", 0)))


def _by_torch(
    call: Call, x: Tensor, weights: Sequence[Tensor | None], lengths: None, begins: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    kind, direction = call.node.op_type, call.get("direction", "forward")
    w, r, b, _ = weights
    assert w is not None and r is not None
    order, gates, size = TORCH_ORDER[kind], GATES[kind], r.shape[2]

    def ordered(values: Tensor) -> Tensor:
        parts = values.split(size)
        return torch.cat([parts[gate] for gate in order]) if gates > 1 else values

    parameters = []
    for place in range(r.shape[0]):
        parameters += [ordered(w[place]), ordered(r[place])]
        if b is not None:
            parameters += [ordered(b[place, : gates * size]), ordered(b[place, gates * size :])]
    turned = direction == "reverse"
    relu = (call.get("activations") or ["Tanh"])[0].lower() == "relu"
    run = torch.lstm if kind == "LSTM" else torch.gru if kind == "GRU" else torch.rnn_relu if relu else torch.rnn_tanh
    state: Any = tuple(begins) if kind == "LSTM" else begins[0]
    fed = x.flip(0) if turned else x
    made, *ends = run(fed, state, parameters, b is not None, 1, 0.0, False, direction == "bidirectional", False)
    y = made.reshape(*made.shape[:2], r.shape[0], size).transpose(1, 2)
    return (y.flip(0) if turned else y), tuple(ends)


def _by_formula(
    call: Call, x: Tensor, weights: Sequence[Tensor | None], lengths: Tensor | None, begins: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    direction = call.get("direction", "forward")
    sequences, finals = [], []
    for place in range(begins[0].shape[0]):
        turned = direction == "reverse" or place == 1
        own = [None if each is None else each[place] for each in weights]
        fed = _turned(x, lengths) if turned else x
        y, ends = _one_way(fed, _cell(call, own, place), lengths, tuple(each[place] for each in begins))
        sequences.append(_turned(y, lengths) if turned else y)
        finals.append(ends)
    return torch.stack(sequences, 1), tuple(torch.stack(each) for each in zip(*finals, strict=True))


def _turned(x: Tensor, lengths: Tensor | None) -> Tensor:
    return x.flip(0) if lengths is None else reversed_within(x, lengths, 0, 1)


def _one_way(x: Tensor, cell: Cell, lengths: Tensor | None, state: State) -> tuple[Tensor, State]:
    """The hidden state after every step, zero beyond a sequence's length, and the last states."""
    made = []
    for step, row in enumerate(x):
        new = cell(row, state)
        if lengths is None:
            state = new
            made.append(new[0])
            continue
        going = (step < lengths)[:, None]
        state = tuple(torch.where(going, one, old) for one, old in zip(new, state, strict=True))
        made.append(torch.where(going, new[0], torch.zeros_like(new[0])))
    return (torch.stack(made) if made else x.new_zeros(0, *state[0].shape)), state


def _cell(call: Call, weights: Sequence[Tensor | None], place: int) -> Cell:
    """What makes the next states of a row of inputs and the states."""
    w, r, b, p = weights
    assert w is not None and r is not None
    kind, size = call.node.op_type, r.shape[1]
    bias = w.new_zeros(2 * GATES[kind] * size) if b is None else b
    functions = _functions(call, place)
    limit = call.get("clip")

    def bounded(x: Tensor) -> Tensor:
        return x if limit is None else x.clamp(-limit, limit)

    make = {"LSTM": _lstm_cell, "GRU": _gru_cell, "RNN": _rnn_cell}[kind]
    return make(call, (w, r, bias, p), functions, bounded)


def _functions(call: Call, place: int) -> list[Any]:
    """The activations of a direction, with their values in the order in which those that take some are named."""
    defaults = DEFAULTS[call.node.op_type]
    names = call.get("activations") or defaults * 2
    known = {each.lower(): each for each in (*PARAMETRIC, "Sigmoid", "Tanh", "Relu", "Softsign", "Softplus")}
    alphas, betas = list(call.get("activation_alpha") or []), list(call.get("activation_beta") or [])
    made = []
    for name in names:
        name = known[name.lower()]
        takes = PARAMETRIC.get(name, (0, 0))
        alpha = alphas.pop(0) if takes[0] and alphas else None
        beta = betas.pop(0) if takes[1] and betas else None
        made.append(activation(name, alpha, beta))
    return made[place * len(defaults) : (place + 1) * len(defaults)]


def _lstm_cell(call: Call, weights: Sequence[Any], functions: Sequence[Any], bounded: Any) -> Cell:
    w, r, b, p = weights
    size = r.shape[1]
    f, g, h_of = functions
    pi, po, pf = (0, 0, 0) if p is None else p.split(size)
    bias = b[: 4 * size] + b[4 * size :]

    def cell(x: Tensor, state: State) -> State:
        h, c = state
        i, o, forget, new = (x @ w.T + h @ r.T + bias).split(size, -1)
        i = f(bounded(i + pi * c))
        forget = 1 - i if call.get("input_forget", 0) else f(bounded(forget + pf * c))
        c = forget * c + i * g(bounded(new))
        return f(bounded(o + po * c)) * h_of(c), c

    return cell


def _gru_cell(call: Call, weights: Sequence[Any], functions: Sequence[Any], bounded: Any) -> Cell:
    w, r, b, _ = weights
    size = r.shape[1]
    f, g = functions
    own, hidden = b[: 3 * size], b[3 * size :]

    def cell(x: Tensor, state: State) -> State:
        (h,) = state
        fed = x @ w.T + own
        back = h @ r[: 2 * size].T + hidden[: 2 * size]
        z = f(bounded(fed[:, :size] + back[:, :size]))
        reset = f(bounded(fed[:, size : 2 * size] + back[:, size:]))
        if call.get("linear_before_reset", 0):
            inner = reset * (h @ r[2 * size :].T + hidden[2 * size :])
        else:
            inner = (reset * h) @ r[2 * size :].T + hidden[2 * size :]
        new = g(bounded(fed[:, 2 * size :] + inner))
        return ((1 - z) * new + z * h,)

    return cell


def _rnn_cell(call: Call, weights: Sequence[Any], functions: Sequence[Any], bounded: Any) -> Cell:
    w, r, b, _ = weights
    size = r.shape[1]
    (f,) = functions
    return lambda x, state: (f(bounded(x @ w.T + state[0] @ r.T + b[:size] + b[size:])),)
